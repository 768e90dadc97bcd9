"""All maps of a report -> the summary on top of its page: how many traces are right, what the verdicts say, profiles by group.

In: of each map the entry that lists it and its depth profiles (`stepsal.html_report.numbers`). Out: what JSON can hold.

1. Traces are in groups by their grade: right, wrong, and those without one.
2. The accuracy is that of the graded traces, with Wilson's interval.
3. A profile is the mean over the traces of a group, with the 95 % interval of a bootstrap over traces (2,000 resamples).
"""

from typing import Any

import numpy as np

from stepsal.statistics.paired import wilson
from stepsal.statistics.same_traces import means_with_intervals

_GROUPS = {"right": True, "wrong": False, "not graded": None}
_RESAMPLES = 2000


class Run:
    """What has been seen of the maps of a report, one after the other. It keeps a few hundred numbers of each."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        self._shown: list[dict[str, Any]] = []

    def add(self, shown: dict[str, Any], entry: dict[str, Any]) -> None:
        """Take note of a map; both are what `numbers_of` returns."""
        self.entries.append(entry)
        self._shown.append({key: shown[key] for key in ("about", "layers", "profiles", "verdicts")})

    def about(self) -> dict[str, Any]:
        """What all maps say alike of how they were made."""
        first, *others = (shown["about"] for shown in self._shown)
        return {
            key: value for key, value in first.items() if all(key in each and each[key] == value for each in others)
        }

    def summary(self) -> dict[str, Any]:
        """The groups, the accuracy, the verdicts by group and the profiles by group."""
        groups = {
            name: [index for index, entry in enumerate(self.entries) if entry["correct"] is grade]
            for name, grade in _GROUPS.items()
        }
        groups = {name: members for name, members in groups.items() if members}
        right, wrong = (len(groups.get(name, ())) for name in ("right", "wrong"))
        layers = self._shown[0]["layers"]
        alike = all(shown["layers"] == layers for shown in self._shown)
        return {
            "groups": [{"name": name, "traces": len(members)} for name, members in groups.items()],
            "accuracy": [right / (right + wrong), *wilson(right, right + wrong)] if right + wrong else None,
            "verdicts": [
                {
                    "failure": verdict["failure"],
                    "counts": [
                        [
                            sum(self.entries[member]["verdicts"][index] is found for member in members)
                            for found in (True, False, None)
                        ]
                        for members in groups.values()
                    ],
                }
                for index, verdict in enumerate(self._shown[0]["verdicts"])
            ],
            "layers": layers if alike else None,
            "profiles": [
                {key: profile[key] for key in ("name", "label", "line")}
                | {"groups": [self._profile(index, members) for members in groups.values()]}
                for index, profile in enumerate(self._shown[0]["profiles"])
                if alike
            ],
        }

    def _profile(self, index: int, members: list[int]) -> dict[str, Any]:
        """The mean of a profile over these maps by layer, with its interval, and how many maps have one."""
        rows = [self._shown[member]["profiles"][index]["values"] for member in members]
        values = np.array(rows, dtype=np.float64)  # None becomes NaN
        mean, low, high = means_with_intervals(values, _RESAMPLES, seed=0)
        parts = {"mean": mean, "low": low, "high": high}
        return {"traces": int(np.isfinite(values).any(1).sum())} | {
            name: [float(value) if np.isfinite(value) else None for value in part] for name, part in parts.items()
        }
