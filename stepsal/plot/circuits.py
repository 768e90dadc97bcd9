"""Step maps per head in a notebook, through CircuitsVis."""

from html import escape

from stepsal.checks import checked
from stepsal.errors import InputError
from stepsal.plot.maps import map_values
from stepsal.saliency.checks import a_map
from stepsal.saliency.stepmap import StepMap


class Html:
    """A piece of HTML that a notebook shows; `str` gives its source."""

    def __init__(self, source: str) -> None:
        self._source = source

    def __str__(self) -> str:
        return self._source

    def _repr_html_(self) -> str:
        return self._source


@checked(stepmap=a_map)
def step_heads(stepmap: StepMap, layer: int, *, measure: str = "share") -> Html:
    """The step maps of all heads of a layer in the viewer of CircuitsVis, where heads are picked and steps are hovered over.

    The HTML is self-contained (1.3 MB of script, no network), and the text of the steps is escaped.

    Args:
        stepmap: the step map. The viewer shows its steps, not tokens, so that the page stays small.
        layer: a model layer that the map holds.
        measure: `"share"` (of the row's influence) or `"density"` (influence per token pair).

    Raises:
        InputError: the map does not hold the layer, or has no heads, or the measure is unknown.

    >>> import torch
    >>> from stepsal import Step, StepMap, plot
    >>> steps = (Step(0, "question", 0, 2, "<b>2+2"), Step(1, "summary", 2, 4, "= 4"))
    >>> stepmap = StepMap(torch.rand(1, 3, 2, 2).tril(), torch.tensor([[3, 0], [2, 1]]), steps, (0,), {})
    >>> "<b>" in str(plot.step_heads(stepmap, 0)).split("CircuitsVis.render")[-1]
    False
    """
    import torch
    from circuitsvis.attention import attention_heads

    heads = stepmap.mass.shape[1]
    if not heads:
        raise InputError("the map holds no head")
    values = torch.stack([map_values(stepmap, layer, head, measure) for head in range(heads)]).nan_to_num()
    # CircuitsVis inserts the text as markup inside a script, so the text must not open a tag or end the script.
    names = [escape(f"{step.index} {step.text.strip()[:24]}").replace("\n", " ") for step in stepmap.steps]
    shown = attention_heads(attention=values.clamp(min=0), tokens=names, max_value=float(values.max()))
    return Html(shown.local_src)
