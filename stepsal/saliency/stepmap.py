"""Step maps: how much each step reads from each earlier one, per layer and head.

In: `mass` and `pairs`, pooled by `stepsal.saliency.influence`. Out: densities, shares, tables, files.

For a query step `i` and a key step `j <= i`, over causal pairs `(t, k)` whose query has a next token to predict:

    mass[layer, head, i, j] = sum of influence I[layer, head, t, k]        pairs[i, j] = number of those pairs
    density = mass / pairs                                                 share = mass / its row sum

Source: Xu et al. (arXiv 2604.06695), equation for step pooling; method.md section 3 for what differs from the official code.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from einops import rearrange, reduce
from jaxtyping import Float, Int
from torch import Tensor

from stepsal.checks import checked, several
from stepsal.checks import path as check_path
from stepsal.errors import InputError
from stepsal.markdown import markdown_table, significant
from stepsal.saliency.mapfile import read_map, read_part, write_map
from stepsal.traces.trace import Step

if TYPE_CHECKING:
    from pandas import DataFrame
else:  # imported where used: it takes a while
    DataFrame = Any

Precision = Literal["bfloat16"]
_layers = several(int, "a list of the model's layers", "Of one layer make a list, [0].", optional=True)
_heads = several(int, "a list of heads", "Of one head make a list, [0].", optional=True)


@dataclass(frozen=True, eq=False)
class StepMap:
    """Step-to-step influence of one trace.

    Attributes:
        mass: summed influence, `layer head query_step key_step`; nats per unit of attention, times attention. Zero
            above the diagonal.
        pairs: number of token pairs pooled, `query_step key_step`; the last token has no target and counts as no query.
        steps: the trace's steps, in order.
        layers: the model layer of each index of the `layer` axis.
        meta: how it was made: model, objective, rule, versions, chunk, seconds, peak memory.

    >>> import torch
    >>> from stepsal import Step, StepMap
    >>> steps = (Step(0, "question", 0, 2, "2+2"), Step(1, "thinking", 2, 4, "= 4"))
    >>> stepmap = StepMap(torch.tensor([[[[3.0, 0.0], [1.0, 3.0]]]]), torch.tensor([[3, 0], [2, 1]]), steps, (0,), {})
    >>> stepmap.share()[0, 0, 1]
    tensor([0.2500, 0.7500])
    """

    mass: Float[Tensor, "layer head query_step key_step"]
    pairs: Int[Tensor, "query_step key_step"]
    steps: tuple[Step, ...]
    layers: tuple[int, ...]
    meta: dict[str, Any]

    _repr_png_: ClassVar[Callable[["StepMap"], bytes | None] | None] = None
    """The picture that a notebook shows: `stepsal.plot` fills this in when it is imported, so that a map knows of no plot."""

    def __post_init__(self) -> None:
        expected = (len(self.layers), *self.mass.shape[1:2], len(self.steps), len(self.steps))
        if tuple(self.mass.shape) != expected or tuple(self.pairs.shape) != expected[2:]:
            raise InputError(
                f"mass has shape {tuple(self.mass.shape)} and pairs {tuple(self.pairs.shape)}; with {len(self.layers)} "
                f"layers and {len(self.steps)} steps they must be (layer, head, query_step, key_step) and "
                "(query_step, key_step)"
            )

    def __repr__(self) -> str:
        layers, heads, steps, _ = self.mass.shape
        return f"StepMap({layers} layers, {heads} heads, {steps} steps)"

    def density(self, noncausal: bool = False) -> Float[Tensor, "layer head query_step key_step"]:
        """Mean influence per token pair, `mass / pairs`: the paper's pooling. NaN where there is no pair.

        `noncausal=True` divides by the whole block (query tokens times key tokens, masked pairs and the last token
        included) as the official code does: that halves the diagonal.
        """
        if not noncausal:
            return (self.mass / self.pairs).masked_fill_(self.pairs == 0, torch.nan)
        sizes = torch.tensor([step.stop - step.start for step in self.steps], device=self.mass.device)
        return self.mass / (rearrange(sizes, "query_step -> query_step 1") * sizes)

    def share(self) -> Float[Tensor, "layer head query_step key_step"]:
        """Each row's mass as parts of the row's sum; rows sum to 1. NaN for a row without any mass."""
        return self.mass / reduce(self.mass, "layer head query_step key_step -> layer head query_step 1", "sum")

    def mean_heads(self) -> "StepMap":
        """The map averaged over heads (the head axis stays, with size 1)."""
        mass = reduce(self.mass, "layer head query_step key_step -> layer 1 query_step key_step", "mean")
        return replace(self, mass=mass, meta=self.meta | {"heads": "mean"})

    def segment(self, name: str) -> list[int]:
        """Indices of the steps of a segment (`question`, `thinking` or `summary`)."""
        return [step.index for step in self.steps if step.segment == name]

    def summary(self) -> str:
        """A Markdown table of what each segment reads, by layer: the mean share from itself, from the question and so on, over
        heads and over the steps of the segment.
        """
        share = self.share().nanmean(1)
        names = [name for name in ("question", "thinking", "summary") if self.segment(name)]
        pairs = [
            (reader, source) for at, reader in enumerate(names) for source in names[: at + 1] if reader != "question"
        ]
        rows = [
            [
                str(layer),
                *(significant(float(of_layer[self.segment(i)][:, self.segment(j)].sum(1).nanmean())) for i, j in pairs),
            ]
            for layer, of_layer in zip(self.layers, share, strict=True)
        ]
        header = ["layer", *(f"{reader} from {source}" for reader, source in pairs)]
        return f"{self!r}: shares of what a segment's steps read, means over heads and steps\n\n{markdown_table(header, rows)}"

    def to_dataframe(self) -> DataFrame:
        """One row per layer, head and causal pair of steps, with mass, pairs, density and share."""
        import pandas as pd

        n = len(self.steps)
        query, key = torch.tril_indices(n, n)
        layers, heads = self.mass.shape[:2]
        segments = [step.segment for step in self.steps]
        rows = layers * heads

        def flat(map_: Float[Tensor, "layer head query_step key_step"]) -> Any:
            return rearrange(map_[:, :, query, key], "layer head pair -> (layer head pair)").cpu().numpy()

        return pd.DataFrame(
            {
                "layer": torch.tensor(self.layers).repeat_interleave(heads * len(query)).numpy(),
                "head": torch.arange(heads).repeat_interleave(len(query)).repeat(layers).numpy(),
                "query_step": query.repeat(rows).numpy(),
                "key_step": key.repeat(rows).numpy(),
                "query_segment": pd.Categorical([segments[i] for i in query] * rows),
                "key_segment": pd.Categorical([segments[i] for i in key] * rows),
                "mass": flat(self.mass),
                "pairs": self.pairs[query, key].repeat(rows).cpu().numpy(),
                "density": flat(self.density()),
                "share": flat(self.share()),
            }
        )

    @checked(path=check_path)
    def save(self, path: str | Path, *, precision: Precision | None = None) -> None:
        """Write the map as safetensors with a JSON header and a checksum, atomically: the file is whole or not there.

        The file holds the causal half alone. By default its numbers are those of the map to the bit. With
        `precision="bfloat16"` each takes two bytes and is off by 0.4 % at most; `meta["precision_error"]` of the file is the
        largest relative error that there is.

        Raises `InputError` for what a file cannot hold, and `FileError` where the file cannot be written.
        """
        stepmap = self if precision is None else in_precision(self, precision)
        write_map(path, stepmap.mass, stepmap.pairs, stepmap.steps, stepmap.layers, stepmap.meta)

    @classmethod
    @checked(path=check_path, layers=_layers, heads=_heads)
    def load(
        cls,
        path: str | Path,
        *,
        verify: bool = True,
        layers: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
    ) -> "StepMap":
        """Read a map that `save` wrote, and check it whole.

        Args:
            path: the file.
            verify: False does not compare the checksum, which takes half a second for each GB.
            layers, heads: layers of the model, and heads: a map that holds these alone. The rest of the file is not read, so
                its checksum is not compared, and `meta["checksum"]` says so.

        Raises:
            InputError: a layer or a head that the file does not hold.
            FileError: a file that is damaged, holds what no map can hold, or is something else.
        """
        if layers is None and heads is None:
            return cls(**read_map(path, verify))
        return cls(**read_part(path, layers, heads))


def in_precision(stepmap: StepMap, precision: Precision) -> StepMap:
    """The map with numbers of fewer bits, and with the largest relative error of any of them in its `meta`.

    Raises `InputError` for an unknown precision, and where a number is too large for it.
    """
    if precision != "bfloat16":
        raise InputError(f"precision={precision!r} is unknown: expected 'bfloat16', or None for the map's own numbers")
    mass, error = stepmap.mass.bfloat16(), 0.0
    for exact, rounded in zip(stepmap.mass, mass, strict=True):  # layer by layer, to hold little
        relative = ((rounded.double() - exact) / exact).abs()
        error = max(error, float(relative.nan_to_num(nan=0.0, posinf=torch.inf).max()))  # 0 / 0: nothing was lost
    if error == torch.inf:
        raise InputError("the map holds numbers that are too large for bfloat16: save it without `precision`")
    return replace(stepmap, mass=mass, meta=stepmap.meta | {"precision": precision, "precision_error": error})
