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
    """Every head's step map of a layer, in CircuitsVis' viewer: heads to pick, steps to hover over.

    The page part is self-contained (1.3 MB of script, no network) and the steps' text is escaped.

    Args:
        stepmap: the map; steps, not tokens, so that the page stays small.
        layer: a model layer that the map holds.
        measure: `"share"` (of the row's influence) or `"density"` (influence per token pair).

    Raises:
        InputError: a layer that the map does not hold, or an unknown measure.

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
    # CircuitsVis puts the text in as markup, inside a script: no tag may open and no script may end.
    names = [escape(f"{step.index} {step.text.strip()[:24]}").replace("\n", " ") for step in stepmap.steps]
    shown = attention_heads(attention=values.clamp(min=0), tokens=names, max_value=float(values.max()))
    return Html(shown.local_src)
