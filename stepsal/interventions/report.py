"""What one intervention did in one layer: counts and means, kept on the device until somebody asks.

In: what each forward pass did (`PatternEdit`, `HeadOutputEdit`). Out: the numbers of a row of `live.report()`. The edits of
64 decoding passes are summed together: summing every pass on its own would cost a good part of the intervention's own time.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stepsal.interventions.base import HeadOutputEdit, Intervention, PatternEdit

_TOGETHER = 64


def report_columns(interventions: Iterable[Intervention]) -> list[str]:
    """The columns of `live.report()`: where, what, how often, and what these interventions measure and count."""
    measures = dict.fromkeys(name for each in interventions for name in (*each.measures, *each.counts))
    return ["layer", "head", "part", "opportunities", "activations", *measures]


class RowEdits(NamedTuple):
    """What is counted of a `PatternEdit`."""

    opportunity: Tensor
    active: Tensor
    measures: Mapping[str, Tensor]
    counts: Mapping[str, Tensor]


class Activity:
    """Opportunities, activations and means of an intervention in a layer.

    Rows of attention and head outputs are counted alike: a measure of rows is a mean over the opportunities, one of head
    outputs a mean over the activations.
    """

    def __init__(self) -> None:
        self._opportunities = self._activations = 0  # of head outputs, where all heads have the same
        self._outputs: list[Mapping[str, Tensor]] = []  # measures of head outputs that are not in the sums yet
        self._output_sums: dict[str, Tensor] = {}  # measure -> head
        self._rows: list[RowEdits] = []  # pattern edits that are not in the sums yet
        self._row_sums: dict[str, Tensor] = {}  # opportunities, activations, measures, counts -> head
        self._counts: set[str] = set()  # which of these sums are numbers of rows

    def add_pattern_edit(self, edit: PatternEdit) -> None:
        """Count one forward pass's edit of a pattern."""
        if self._rows and len(self._rows[0].active) != len(edit.active):
            self._sum_up_rows()
        # without the pattern, which is large
        self._rows.append(RowEdits(edit.opportunity, edit.active, edit.measures, edit.counts))
        if len(self._rows) == _TOGETHER or edit.active.shape[2] > 1:
            self._sum_up_rows()

    def add_head_output_edit(self, edit: HeadOutputEdit) -> None:
        """Count one forward pass's edit of head outputs."""
        self._opportunities += edit.opportunities
        self._activations += edit.activations
        if edit.activations:
            self._outputs.append(edit.measures)
            if len(self._outputs) == _TOGETHER:
                self._sum_up_outputs()

    def acted(self) -> bool:
        """Whether anything was done."""
        self._sum_up_rows()
        return self._activations > 0 or ("activations" in self._row_sums and bool(self._row_sums["activations"].any()))

    def of_head(self, head: int) -> dict[str, float | int]:
        """The numbers of a head: `opportunities`, `activations` and its measures."""
        self._sum_up_rows()
        self._sum_up_outputs()
        found: dict[str, Any] = {"opportunities": self._opportunities, "activations": self._activations}
        for name, sums in self._output_sums.items():
            found[name] = float(sums[head]) / self._activations
        if self._row_sums:
            rows = {name: float(sums[head]) for name, sums in self._row_sums.items()}
            opportunities = rows.pop("opportunities")
            found["opportunities"] += round(opportunities)
            found["activations"] += round(rows.pop("activations"))
            found |= {name: round(rows.pop(name)) for name in self._counts}
            if opportunities:
                found |= {name: total / opportunities for name, total in rows.items()}
        return found

    def _sum_up_rows(self) -> None:
        if not self._rows:
            return
        active, opportunity = (
            torch.cat([getattr(each, name) for each in self._rows], -1) for name in ("active", "opportunity")
        )
        self._counts.update(self._rows[0].counts)
        both = [{**each.measures, **each.counts} for each in self._rows]
        measures = {name: torch.cat([each[name] for each in both], -1) for name in both[0]}
        self._rows = []
        numbers = {"opportunities": opportunity.expand_as(active), "activations": active}
        numbers |= {name: values * opportunity for name, values in measures.items()}
        precise = torch.float32 if active.device.type == "mps" else torch.float64
        sums = torch.stack([values.to(torch.float32) for values in numbers.values()]).sum((1, 3), dtype=precise)
        for name, total in zip(numbers, sums, strict=True):
            self._row_sums[name] = self._row_sums[name] + total if name in self._row_sums else total

    def _sum_up_outputs(self) -> None:
        if not self._outputs:
            return
        for name in self._outputs[0]:
            total = torch.cat([each[name] for each in self._outputs]).sum(0)
            self._output_sums[name] = self._output_sums[name] + total if name in self._output_sums else total
        self._outputs = []
