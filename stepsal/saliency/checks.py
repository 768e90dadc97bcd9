"""Is it a step map, or a list of step maps? Asked by every public function that takes them, before any work."""

from stepsal.checks import instance, several
from stepsal.saliency.stepmap import StepMap
from stepsal.saliency.stepmapfile import StepMapFile

_MAKE = "Make one with `stepsal.step_saliency`, or read a file with `stepsal.StepMap.load(path)`"
a_map = instance(StepMap, "one StepMap", f"{_MAKE}; for several, call this for each of them.")
maps = several((StepMap, StepMapFile), "a list of step maps", f"{_MAKE}; of one map make a list, [stepmap].")
