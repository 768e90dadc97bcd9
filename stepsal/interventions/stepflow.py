"""StepFlow's two parts, their negative controls and a positive one, as frozen parameters.

In: layers, heads, strengths. Out: objects that can be compared, hashed, printed and saved. `stepsal.interventions.edits` has the tensor
maths, `stepsal.intervene` puts parts into a model. Source: method.md section 5; the paper's section 4.

**Odds-Equal Bridge.** For a query in the current group `S` with bridge group `B` and the rest `O`, which have the attention
p_S + p_B + p_O = 1, and `|S|`, `|B|` keys that the query can see:

1. share  r = sqrt(|B| / (|B| + |S|)),     target  tau_B = min(r, tau_max)
2. cap = (1 - p_O) * r  (`feasible="share"`; it leaves `S` its count share) or 1 - p_O - 1e-6  (`"clamp"`, the official code)
3. where 0 < p_B < min(tau_B, cap) and p_S > 0: scale `B` to that mass and `S` to what is left of 1 - p_O; `O` stays as it is.

It is the KL-closest row with those group masses. What a row's probabilities lack to 1 (an attention sink) belongs to `O`.

**Step Momentum Injection.** At the first token `t` of a step that follows thinking step `i`:

    z[t] += alpha * m,    m = mean of the values v[k], k in the window: the whole step `i`, or its last tokens.

**Controls.** `RandomBridge`, `RandomMomentum` and `NoiseMomentum` are as strong, on the wrong target: an effect that they have
too is no effect of StepFlow. `Starvation` plants a failure for the parts to mend, so that "no effect" can be believed.
"""

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from numbers import Real
from typing import Any

from stepsal.errors import InputError
from stepsal.models.layers import LayerSpec, band, resolve_layers

HeadsOfLayers = tuple[tuple[int, tuple[int, ...]], ...]
HeadSpec = None | Sequence[int] | Mapping[int, Sequence[int]] | HeadsOfLayers
"""All heads; those in every chosen layer; or for some chosen layers those, the other layers keeping all."""

SCOPES, FEASIBLE, INTO = ("segment", "step"), ("share", "clamp"), ("thinking", "summary")
STARVED = ("steps", "thinking", "summary", "openings")


@dataclass(frozen=True)
class OddsEqualBridge:
    """Give the bridge group, `B`, at least its target mass in the chosen attention rows (odds-equal bridge).

    Thinking rows: the bridge is the question, the current group the thinking; summary rows: thinking and summary. With
    `scope="step"`: everything before the current step, and the step. Question rows are never touched.

    Attributes:
        layers: `"shallow"` (the bottom quarter), `"deep"`, `"all"`, an index or several.
        heads: None, all; indices, these in every chosen layer; or a mapping from layers to indices (layers that it does
            not name keep all heads). Kept as tuples, so that parts can be compared and hashed.
        tau_max: the most that the target can be, in [0, 1). 0 does nothing at all.
        scope: `segment` (the paper) or `step`.
        feasible: `share` or `clamp` (the official code); see the equations above.
        bos_in_bridge: whether the first token, an attention sink in most models, counts as bridge.

    Raises `InputError`. Source: the paper's equations 5 to 8.

    >>> OddsEqualBridge(layers=[0, 1], heads={0: [3]}, tau_max=0.2).heads
    ((0, (3,)),)
    """

    layers: LayerSpec = "shallow"
    heads: HeadSpec = None
    tau_max: float | int = 0.15
    scope: str = "segment"
    feasible: str = "share"
    bos_in_bridge: bool = True

    def __post_init__(self) -> None:
        _freeze_places(self)
        if not _is_number(self.tau_max) or not 0 <= self.tau_max < 1:
            raise InputError(f"tau_max={self.tau_max!r} must be a number in [0, 1): it is a share of the attention")
        object.__setattr__(self, "tau_max", float(self.tau_max))
        _check_known("scope", self.scope, SCOPES)
        _check_known("feasible", self.feasible, FEASIBLE)
        if not isinstance(self.bos_in_bridge, bool):
            raise InputError(f"bos_in_bridge={self.bos_in_bridge!r} must be True or False")


@dataclass(frozen=True)
class StepMomentum:
    """Add the mean value of the previous thinking step to the head outputs at the first token of a step.

    Attributes:
        layers, heads: as for `OddsEqualBridge`; by default all heads of the top quarter.
        alpha: the strength, a finite number. 0 adds nothing.
        window: None, the mean of the whole previous step (the paper); `n`, of its last `n` tokens (the official code: 4).
        into: the segments whose steps receive: `thinking`, `summary` or both.

    Raises `InputError`. Source: the paper's section 4.2.

    >>> StepMomentum(layers=-1, window=4).into
    ('thinking', 'summary')
    """

    layers: LayerSpec = "deep"
    heads: HeadSpec = None
    alpha: float | int = 0.06
    window: int | None = None
    into: Sequence[str] = INTO

    def __post_init__(self) -> None:
        _freeze_places(self)
        if not _is_number(self.alpha) or not math.isfinite(self.alpha):
            raise InputError(f"alpha={self.alpha!r} must be a finite number, such as the paper's 0.06")
        object.__setattr__(self, "alpha", float(self.alpha))
        if self.window is not None and (not _is_integer(self.window) or self.window < 1):
            raise InputError(
                f"window={self.window!r} must be None (the whole previous step) or a whole number of tokens, at least 1"
            )
        into = (self.into,) if isinstance(self.into, str) else tuple(self.into)
        for name in into:
            _check_known("into", name, INTO)
        if not into or len(set(into)) < len(into):
            raise InputError(f"into={self.into!r} must name 'thinking', 'summary' or both, none twice")
        object.__setattr__(self, "into", into)


@dataclass(frozen=True)
class RandomBridge(OddsEqualBridge):
    """Negative control of `OddsEqualBridge`: the same, but the bridge is as many random earlier tokens of `B` and `S`.

    Which ones depends on `seed` and the tokens' positions only, so it is the same in every layer, head and batch.

    >>> RandomBridge(seed=1).tau_max
    0.15
    """

    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_seed(self.seed)


@dataclass(frozen=True)
class RandomMomentum(StepMomentum):
    """Negative control of `StepMomentum`: the same, but the giving step is a random one before the previous step.

    Any earlier step can be drawn, the question too, so it fires where `StepMomentum` does.

    >>> RandomMomentum(seed=1).alpha
    0.06
    """

    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_seed(self.seed)


@dataclass(frozen=True)
class NoiseMomentum(StepMomentum):
    """Negative control of `StepMomentum`: noise of the same norm, in a random direction for every layer, head and step.

    >>> NoiseMomentum(seed=1).alpha
    0.06
    """

    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_seed(self.seed)


@dataclass(frozen=True)
class Starvation:
    """Positive control: plants a failure, by multiplying the odds of some keys by `odds` (adding log odds to their scores).

    The rest of the row grows in proportion: its total stays. Put before the part that is to mend it.

    Attributes:
        rows: `steps`: thinking rows lose everything before their step (Shallow Lock-in). `thinking`: thinking rows lose the
            question. `summary`: summary rows lose the thinking (Deep Decay). `openings`: the first token of each thinking
            step loses the thinking before it.
        layers, heads: as for `OddsEqualBridge`; which layers must be said.
        odds: in [0, 1]. 1 does nothing at all, 0 hides the keys.

    Raises `InputError`. Source: none; ours.

    >>> Starvation("summary", layers="deep").odds
    0.0
    """

    rows: str
    layers: LayerSpec
    heads: HeadSpec = None
    odds: float | int = 0.0

    def __post_init__(self) -> None:
        _freeze_places(self)
        _check_known("rows", self.rows, STARVED)
        if not _is_number(self.odds) or not 0 <= self.odds <= 1:
            raise InputError(
                f"odds={self.odds!r} must be a number in [0, 1]: what the odds of the starved keys are multiplied by"
            )
        object.__setattr__(self, "odds", float(self.odds))


Part = OddsEqualBridge | StepMomentum | Starvation


def stepflow(**overrides: Any) -> tuple[OddsEqualBridge, StepMomentum]:
    """Both parts with the paper's defaults. Overrides go to the part that has them; `layers` and `heads`, which both have,
    are `oeb_layers`, `smi_layers`, `oeb_heads` and `smi_heads`.

    Raises `InputError` for a name that neither part has.

    >>> stepflow(tau_max=0.2, smi_layers=[6, 7])[1].layers
    (6, 7)
    """
    both = {"layers", "heads"}
    options: dict[str, dict[str, Any]] = {"oeb": {}, "smi": {}}
    where = {"oeb": OddsEqualBridge, "smi": StepMomentum}
    names = {
        f"{short}_{field.name}" if field.name in both else field.name: (short, field.name)
        for short, part in where.items()
        for field in fields(part)
    }
    for name, value in overrides.items():
        if name not in names:
            raise InputError(f"stepflow has no option {name!r}: expected some of {', '.join(names)}")
        short, field_name = names[name]
        options[short][field_name] = value
    return OddsEqualBridge(**options["oeb"]), StepMomentum(**options["smi"])


def part_record(part: Part) -> dict[str, Any]:
    """A part as plain data, for results and files.

    >>> part_record(StepMomentum(alpha=0.1))["part"]
    'StepMomentum'
    """
    return {"part": type(part).__name__, **asdict(part)}


def resolve_heads(part: Part, n_layers: int, n_heads: int) -> dict[int, tuple[int, ...]]:
    """The chosen layers of a model, ascending, each with its chosen heads; negative indices count from the end.

    Raises `InputError` for a layer or head out of range, one named twice, or heads of a layer that is not chosen.

    >>> resolve_heads(OddsEqualBridge(layers=[0, 2], heads={2: [-1]}), n_layers=8, n_heads=4)
    {0: (0, 1, 2, 3), 2: (3,)}
    """
    layers = resolve_layers(part.layers, n_layers)
    heads: Any = part.heads
    if heads is None or not heads or not isinstance(heads[0], tuple):
        return dict.fromkeys(layers, _heads(heads, n_heads))
    chosen = dict.fromkeys(layers, tuple(range(n_heads)))
    named: set[int] = set()
    for given, those in heads:
        (layer,) = resolve_layers(given, n_layers)
        if layer not in chosen or layer in named:
            raise InputError(
                f"heads={dict(heads)} names layer {given}, but the chosen layers are {list(layers)}: name only those, each once"
            )
        named.add(layer)
        chosen[layer] = _heads(those, n_heads)
    return chosen


def _heads(heads: Sequence[int] | None, n_heads: int) -> tuple[int, ...]:
    if heads is None:
        return tuple(range(n_heads))
    for head in heads:
        if not _is_integer(head) or not -n_heads <= head < n_heads:
            raise InputError(f"head {head!r} does not exist: each layer has heads 0 to {n_heads - 1}")
    indices = sorted(head % n_heads for head in heads)
    if not indices or len(set(indices)) < len(indices):
        raise InputError(f"heads {list(heads)} must name at least one head and none twice; None means all")
    return tuple(indices)


def _freeze_places(part: "Part") -> None:
    """Sequences and mappings become tuples, numpy's integers Python's, so that a part is hashable and never changes."""
    layers: Any = part.layers
    heads: Any = part.heads
    if isinstance(layers, str):
        band(layers, 1)
    elif isinstance(layers, Iterable):
        object.__setattr__(part, "layers", _indices("layers", layers))
    else:
        object.__setattr__(part, "layers", _indices("layers", [layers])[0])
    if isinstance(heads, Mapping):
        heads = tuple(heads.items())
    if isinstance(heads, Iterable) and not isinstance(heads, str):
        heads = tuple(heads)
        if heads and all(isinstance(each, tuple) and len(each) == 2 for each in heads):
            frozen: Any = tuple((_indices("heads", [layer])[0], _indices("heads", those)) for layer, those in heads)
        else:
            frozen = _indices("heads", heads)
        object.__setattr__(part, "heads", frozen)
    elif heads is not None:
        raise InputError(f"heads={heads!r}: expected None (all), several indices, or a mapping from layers to indices")


def _indices(name: str, given: Any) -> tuple[int, ...]:
    try:
        if any(isinstance(each, bool) for each in given):
            raise TypeError
        return tuple(operator.index(each) for each in given)
    except TypeError:
        kinds = "'shallow', 'deep', 'all', an index or several indices" if name == "layers" else "indices of heads"
        raise InputError(f"{name}={given!r}: expected {kinds}") from None


def _check_known(name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InputError(f"unknown {name} {value!r}: expected {' or '.join(map(repr, known))}")


def _check_seed(seed: object) -> None:
    if not _is_integer(seed) or int(seed) < 0:  # type: ignore[call-overload]
        raise InputError(f"seed={seed!r} must be a whole number, at least 0")


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
