"""Step maps -> one HTML page to explore them in: opens from disk, asks nothing of any network.

In: step maps. Out: a page with `page/page.html` as its template, and the numbers as JSON (`stepsal.html_report.numbers`); where
these are too many for one page, in files beside it (`stepsal.html_report.files`).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from stepsal.causality.folder import KnockoutFile
from stepsal.causality.knockout import Knockout
from stepsal.checks import checked, instance, path, several
from stepsal.errors import InputError
from stepsal.html_report.files import PAGE_LIMIT, write_report
from stepsal.html_report.numbers import bytes_of, numbers_of
from stepsal.saliency.checks import maps
from stepsal.saliency.stepmap import StepMap
from stepsal.saliency.stepmapfile import StepMapFile, heads_of


@checked(
    path=path,
    stepmaps=maps,
    heads=several(int, "a list of heads", "Of one head make a list, [0].", optional=True),
    knockouts=several((Knockout, KnockoutFile), "a list of knockouts", "Of one knockout make a list, [knockout]."),
    title=instance(str, "the heading of the page", "Leave it out to take it from the maps.", optional=True),
)
def report(
    path: str | Path,
    stepmaps: Sequence[StepMap | StepMapFile],
    *,
    heads: Sequence[int] | None = None,
    knockouts: Sequence[Knockout | KnockoutFile] = (),
    title: str | None = None,
) -> Path:
    """Write step maps as one self-contained HTML page, and return its path.

    The page shows a trace's text beside its map, for each layer, band, measure and embedded head; what a step reads and
    who reads it; the depth profiles and verdicts of `stepsal.diagnose`; and a summary of all traces. It is written map by map,
    whole or not at all. Beyond 50 MB of maps the traces are in files beside the page, in the folder `NAME_files`: the page
    loads the trace that is looked at. Keep both together.

    Args:
        path: the file to write, usually `*.html`.
        stepmaps: the maps (`layer head query_step key_step`), one per trace, of a rule without signs.
        heads: heads to embed beside the mean of all; each adds as much to the file as the mean does (0.8 MB for 150 steps
            and 28 layers).
        knockouts: knockouts of these traces (`stepsal.step_knockout`), which the page puts beside the maps. A trace may have
            none.
        title: the page's heading. None names the model and the folder of the maps, as far as the maps say them.

    Raises:
        InputError: no maps, a head that a map does not hold, a map with signed influence, a knockout of another trace or of
            other steps.
        FileError: the file cannot be written.

    >>> import tempfile
    >>> from stepsal import Trace, load_model, step_saliency
    >>> from stepsal.html_report.report import report
    >>> model = load_model()
    >>> trace = Trace.from_text(model.tokenizer, "Facts: k = 37.<think>", "First k = 37.</think>So 37.")
    >>> report(tempfile.mkdtemp() + "/report.html", [step_saliency(model, trace)], heads=[0, 3]).name
    'report.html'
    """
    if not stepmaps:
        raise InputError("there is no step map to report on: give one at least, for example from `stepsal saliency`")
    chosen, names = list(heads or ()), _names(stepmaps)
    for name, stepmap in zip(names, stepmaps, strict=True):
        _check_heads(stepmap, chosen, name)

    matching = _matching(stepmaps, knockouts)

    def numbers() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        for name, stepmap, knockout in zip(names, stepmaps, matching, strict=True):
            yield numbers_of(stepmap, chosen, name, knockout)

    pairs = zip(stepmaps, matching, strict=True)
    size = sum(bytes_of(stepmap, len(chosen), knockout is not None) for stepmap, knockout in pairs)
    write_report(Path(path), title or _title(stepmaps), numbers(), beside=size > PAGE_LIMIT)
    return Path(path)


def _matching(
    stepmaps: Sequence[StepMap | StepMapFile], knockouts: Sequence[Knockout | KnockoutFile]
) -> list[Knockout | KnockoutFile | None]:
    """The knockout of each map's trace, or None. Raises `InputError` for a knockout that no map goes with."""
    by_trace: dict[str, Knockout | KnockoutFile] = {}
    for knockout in knockouts:
        trace = knockout.meta.get("trace", "")
        if trace in by_trace:
            raise InputError(f"two knockouts are of trace {trace!r}: give one knockout of each trace")
        by_trace[trace] = knockout
    matching: list[Knockout | KnockoutFile | None] = []
    for stepmap in stepmaps:
        found = by_trace.get(stepmap.meta.get("trace", ""))
        matching.append(found if found is not None and found.steps == stepmap.steps else None)
    of_other_steps = by_trace.keys() - {found.meta.get("trace", "") for found in matching if found is not None}
    for stepmap in stepmaps:
        if (trace := stepmap.meta.get("trace", "")) in of_other_steps:
            raise InputError(
                f"the step map and the knockout of trace {trace!r} have other steps ({len(stepmap.steps)} and "
                f"{len(by_trace[trace].steps)}): make both from the same trace"
            )
    if of_other_steps:
        raise InputError(
            f"the knockout of trace {min(of_other_steps)!r} has no step map in the report: give that map, or leave the "
            "knockout out"
        )
    return matching


def _title(stepmaps: Sequence[StepMap | StepMapFile]) -> str:
    """The model that all maps are of, and the folders that they are in."""
    models = {str(stepmap.meta.get("model", "")) for stepmap in stepmaps}
    parts = [Path(model).name for model in models if model and len(models) == 1]
    parts += dict.fromkeys(name for name in map(_folder, stepmaps) if name)
    return " · ".join(parts) or "Step maps"


def _folder(stepmap: StepMap | StepMapFile) -> str:
    """The name of the folder of results that a map's file is in; of a map in memory there is none."""
    return stepmap.path.resolve().parent.parent.name if isinstance(stepmap, StepMapFile) else ""


def _names(stepmaps: Sequence[StepMap | StepMapFile]) -> list[str]:
    """A name for each map that no other has: its trace's id; where two maps are of one trace, also their folder or number."""
    names = [str(stepmap.meta.get("trace") or f"trace {index}") for index, stepmap in enumerate(stepmaps)]
    if len(set(names)) < len(names):
        names = [f"{_folder(stepmap)}/{name}".lstrip("/") for name, stepmap in zip(names, stepmaps, strict=True)]
    used: set[str] = set()
    for index, name in enumerate(names):
        number, unique = 1, name
        while unique in used:
            number += 1
            unique = f"{name} ({number})"
        used.add(unique)
        names[index] = unique
    return names


def _check_heads(stepmap: StepMap | StepMapFile, heads: list[int], name: str) -> None:
    """Raise `InputError` for a head that a map does not hold, before any map is read from its file."""
    n_heads = heads_of(stepmap)
    for head in heads:
        if isinstance(head, bool) or not 0 <= head < n_heads:
            raise InputError(
                f"head {head!r} is not in the map of {name!r}, which holds heads 0 to {n_heads - 1}. Name some of those, "
                "or none for the mean of all."
            )
    if len(set(heads)) < len(heads):
        raise InputError(f"heads={heads} names a head twice: give each once")
