"""Step maps that stay in their files: what a folder of thousands of maps is worked through with, one map in memory at a time.

In: the path of a map's file. Out: what its header says, and the map when it is asked for.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stepsal.errors import FileError
from stepsal.saliency.mapfile import MapHeader, read_map_header
from stepsal.saliency.stepmap import StepMap
from stepsal.traces.trace import Step


@dataclass(frozen=True, eq=False)
class StepMapFile:
    """The file of a step map, of which the header was read and checked. Functions that take lists of maps take these, too.

    Attributes:
        path: the file.
        header: what it says of the map.
    """

    path: Path
    header: MapHeader

    @classmethod
    def open(cls, path: str | Path) -> "StepMapFile":
        """Read the header. Raises `FileError` for a file that is no map, or whose header is damaged."""
        return cls(Path(path), read_map_header(path))

    @property
    def steps(self) -> tuple[Step, ...]:
        return self.header.steps

    @property
    def layers(self) -> tuple[int, ...]:
        return self.header.layers

    @property
    def meta(self) -> dict[str, Any]:
        return self.header.meta

    def load(self) -> StepMap:
        """The map, read and checked whole. Raises `FileError`, also where the file holds another map by now."""
        stepmap = StepMap.load(self.path)
        if (stepmap.steps, stepmap.layers, stepmap.meta) != (self.steps, self.layers, self.meta):
            raise FileError(
                f"{self.path} was replaced while it was worked with: wait for what writes it, and run this again"
            )
        return stepmap


def loaded(stepmap: StepMap | StepMapFile) -> StepMap:
    """The map, read from its file if it is there."""
    return stepmap.load() if isinstance(stepmap, StepMapFile) else stepmap


def heads_of(stepmap: StepMap | StepMapFile) -> int:
    """How many heads the map holds."""
    return stepmap.header.heads if isinstance(stepmap, StepMapFile) else stepmap.mass.shape[1]


def dtype_of(stepmap: StepMap | StepMapFile) -> torch.dtype:
    """The type of the map's numbers; those of a file in bfloat16 are float32 when they are loaded."""
    dtype = stepmap.header.dtype if isinstance(stepmap, StepMapFile) else stepmap.mass.dtype
    return torch.float32 if dtype == torch.bfloat16 else dtype
