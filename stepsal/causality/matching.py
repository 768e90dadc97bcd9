"""Which step maps belong to which knockout, and whether they may be compared.

In: step maps and knockouts. Out: for each trace its knockout and its maps, by their kind; or an error that names what does not
match. Traces are told by the `trace` in `meta`, kinds of maps by rule, objective and score.
"""

from collections.abc import Sequence

from stepsal.causality.baselines import BASELINES, SHUFFLED
from stepsal.causality.knockout import Knockout
from stepsal.errors import InputError
from stepsal.saliency.gradients import WITHOUT_GRADIENT
from stepsal.saliency.stepmap import StepMap
from stepsal.saliency.stepmapfile import StepMapFile

Map = StepMap | StepMapFile
Matched = dict[str, tuple[Knockout, dict[str, Map]]]
"""By the trace's id: its knockout, and its maps by their kind."""


def kind_of_map(stepmap: Map) -> str:
    """The name of a map's kind: its rule, objective and score, as far as its `meta` says them and they are not the defaults.

    What needs no gradient has no objective and no score.
    """
    said = [stepmap.meta.get(name) for name in ("rule", "objective", "score")]
    if said[0] in WITHOUT_GRADIENT:
        return str(said[0])
    shown = [text for text, usual in zip(said, ("", "token", "loss"), strict=True) if text and text != usual]
    return " ".join(map(str, shown)) or "map"


def match(stepmaps: Sequence[Map], knockouts: Sequence[Knockout]) -> Matched:
    """Every trace's knockout and maps, in the order of ids. Raises `InputError` for what does not match."""
    matched: Matched = {}
    for knockout in knockouts:
        name = knockout.meta.get("trace", "")
        if name in matched:
            raise InputError(f"two knockouts are of trace {name!r}: give one knockout of each trace")
        matched[name] = (knockout, {})
    for stepmap in stepmaps:
        _add(matched, stepmap)
    if not matched:
        raise InputError("there are no step maps and no knockouts: give one of each for every trace")
    kinds = list(dict.fromkeys(kind for _, of_kind in matched.values() for kind in of_kind))
    for name, (knockout, of_kind) in matched.items():
        missing = [kind for kind in kinds if kind not in of_kind]
        if missing or not kinds:
            of_which = f" of the kind {missing[0]!r}" if missing else ""
            raise InputError(
                f"trace {name!r} has a knockout but no step map{of_which}: give that map, or leave the trace out"
            )
        _check_alike(*next(iter(matched.items())), name, (knockout, of_kind))
    return {name: (matched[name][0], {kind: matched[name][1][kind] for kind in kinds}) for name in sorted(matched)}


def match_reference(matched: Matched, reference: Sequence[Knockout]) -> dict[str, dict[str, Knockout]]:
    """By trace, the other knockouts of it by name, `knockout MODE`. Raises `InputError` unless each trace has them all."""
    found: dict[str, dict[str, Knockout]] = {}
    for other in reference:
        trace, name = other.meta.get("trace", ""), f"knockout {other.meta.get('mode')}"
        if trace not in matched:
            raise InputError(f"the reference is of trace {trace!r}, which has no knockout: leave it out")
        if name in found.setdefault(trace, {}):
            raise InputError(f"two references of trace {trace!r} are of the mode {other.meta.get('mode')!r}: give one")
        if other.steps != matched[trace][0].steps:
            raise InputError(
                f"the reference and the knockout of trace {trace!r} have other steps: make both from one trace"
            )
        if has_question(other) != has_question(matched[trace][0]):
            raise InputError(f"of the reference and the knockout of trace {trace!r} one alone knocked out the question")
        found[trace][name] = other
    names = list(dict.fromkeys(name for of_trace in found.values() for name in of_trace))
    for trace in matched:
        if missing := [name for name in names if name not in found.get(trace, {})]:
            raise InputError(f"trace {trace!r} has no reference {missing[0]!r}: give one for every trace")
    return found


def _add(matched: Matched, stepmap: Map) -> None:
    """Add a map to its trace."""
    name, kind = stepmap.meta.get("trace", ""), kind_of_map(stepmap)
    if name not in matched:
        known = ", ".join(repr(each) for each in list(matched)[:5]) or "none"
        raise InputError(f"the step map of trace {name!r} has no knockout: the knockouts are of {known}")
    knockout, of_kind = matched[name]
    if kind in (*BASELINES, SHUFFLED):
        raise InputError(f"the step map of trace {name!r} says of itself the rule {kind!r}, but {kind!r} is a baseline")
    if kind in of_kind:
        raise InputError(
            f"two step maps of trace {name!r} are of one kind, {kind!r}: kinds are told apart by rule, objective and score in "
            "their meta. Give one map of each kind."
        )
    if stepmap.steps != knockout.steps:
        at = next((a.index for a, b in zip(stepmap.steps, knockout.steps, strict=False) if a != b), None)
        where = f"step {at} differs" if at is not None else f"{len(stepmap.steps)} and {len(knockout.steps)} steps"
        raise InputError(
            f"the step map and the knockout of trace {name!r} have other steps ({where}): make both from the same trace"
        )
    of_kind[kind] = stepmap


def _check_alike(
    first: str, one: tuple[Knockout, dict[str, Map]], second: str, other: tuple[Knockout, dict[str, Map]]
) -> None:
    """Raise `InputError` unless two traces' knockouts were made alike, and so were their maps."""
    names = ("mode", "keep_first", "model")
    said = [
        {name: each.meta.get(name) for name in names} | {"the question knocked out": has_question(each)}
        for each in (one[0], other[0])
    ]
    for name, value in said[0].items():
        if value != said[1][name]:
            raise InputError(
                f"the knockouts of traces {first!r} and {second!r} differ in {name}: {value!r} and {said[1][name]!r}. Give "
                "knockouts that were made alike."
            )
    for kind, stepmap in one[1].items():
        if kind in other[1] and stepmap.layers != (layers := other[1][kind].layers):
            raise InputError(
                f"the maps {kind!r} of traces {first!r} and {second!r} differ in layers: {stepmap.layers} and {layers}. Give "
                "maps that were made alike."
            )


def has_question(knockout: Knockout) -> bool:
    return not bool(knockout.kl[:, 0].isnan().all())
