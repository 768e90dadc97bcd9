"""The diagnoses of maps that stay in their files: map by map, on all cores, and a map that does not change is read once.

In: `StepMapFile`s. Out: their `Diagnosis`es, which are the same to the bit as those of the loaded maps.

OUT/diagnoses/NAME.safetensors    the built-in metrics of OUT/maps/NAME.safetensors (`stepsal.diagnosis.measuredfile`)

Verdicts are cheap, and are judged anew each time. Metrics that a user defined are measured anew each time, too, since nothing
says whether the code that they call is still the same. The folder `diagnoses` may be emptied at any time.
"""

import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch

from stepsal.diagnosis.diagnosis import Diagnosis, Measured, judged, measure, unjudged
from stepsal.diagnosis.measuredfile import key_of, read_measured, write_measured
from stepsal.diagnosis.registry import METRICS
from stepsal.errors import FileError
from stepsal.models.memory import free_bytes
from stepsal.saliency.stepmap import StepMap
from stepsal.saliency.stepmapfile import StepMapFile, dtype_of

_MAPS_IN_MEMORY = 4
"""Measuring one map takes the memory of no more than this many: its file, the map, its control, and what comes of them."""


def diagnose_files(
    files: Sequence[StepMapFile], *, reference: Sequence[Diagnosis] | None = None, progress: bool = False
) -> list[Diagnosis]:
    """The diagnosis of each map, in order, judged as `stepsal.diagnose` does; as many maps are in memory as there are cores.

    Raises `InputError` for a map with signed influence and where the maps of the reference were made otherwise, and `FileError`
    for a map that is damaged.
    """
    from tqdm import tqdm

    with _one_thread_each(), ThreadPoolExecutor(_workers(files)) as pool:
        try:
            measured = list(
                tqdm(pool.map(_measured, files), total=len(files), desc="diagnosing", unit="map", disable=not progress)
            )
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    unkept = [path for _, path in measured if path is not None]
    if unkept:
        warnings.warn(
            f"the metrics of {len(unkept)} maps cannot be kept in {unkept[0].parent}, and will be measured again: that folder "
            "cannot be written",
            stacklevel=2,
        )
    return [judged(unjudged(file, each), reference) for file, (each, _) in zip(files, measured, strict=True)]


def diagnose_loaded(file: StepMapFile, stepmap: StepMap) -> Diagnosis:
    """The diagnosis of one map that was just loaded from its file."""
    return judged(unjudged(file, _measured(file, stepmap)[0]), None)


def _measured(file: StepMapFile, stepmap: StepMap | None = None) -> tuple[Measured, Path | None]:
    """The metrics of a map; and the path where they should have been kept, if they could not."""
    built_in = {name: metric for name, metric in METRICS.items() if metric.built_in}
    path, key, unkept = file.path.parent.parent / "diagnoses" / file.path.name, key_of(file), None
    kept = read_measured(path, key)
    if kept is None or kept.values.keys() != built_in.keys():
        stepmap = stepmap or file.load()
        kept = measure(stepmap, built_in)
        try:
            write_measured(path, key, kept)
        except FileError:
            unkept = path
    if own := {name: metric for name, metric in METRICS.items() if not metric.built_in}:
        new = measure(stepmap or file.load(), own)
        kept = Measured(kept.values | new.values, kept.position_only | new.position_only)
    # In the order in which `diagnose` has them.
    return Measured(*({name: part[name] for name in METRICS} for part in (kept.values, kept.position_only))), unkept


def _workers(files: Sequence[StepMapFile]) -> int:
    """As many threads as there are cores, but no more than have room for their maps in half of the free memory."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    sizes = [len(file.layers) * file.header.heads * len(file.steps) ** 2 * dtype_of(file).itemsize for file in files]
    room = free_bytes(torch.device("cpu")) // 2 // (_MAPS_IN_MEMORY * max(sizes, default=1))
    return max(1, min(cores, room))


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """While maps are worked on side by side, torch splits none of their operations over threads of its own."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
