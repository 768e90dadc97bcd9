"""What is known about a running sweep: its right answers by setting and problem, a bar, and a line per finished setting."""

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from stepsal.markdown import markdown_table
from stepsal.statistics.paired import Paired, paired, wilson
from stepsal.sweeps.settings import Setting

logger = logging.getLogger("stepsal")
COLUMNS = ("problem", "sample", "seed", "correct")
"""The columns of a `Row` that `Scores` reads."""
_READING_AID = (
    "A difference is to the baseline on the same problems. p is not corrected for the number of settings; `stepsal figure "
    "ablation` compares each setting with its control, too."
)


class Scores:
    """Whether each answer so far is right."""

    def __init__(self) -> None:
        self._right: dict[Setting, dict[str, dict[tuple[int, int], bool]]] = defaultdict(lambda: defaultdict(dict))
        self._parts: dict[str, list[int]] = defaultdict(lambda: [0, 0])

    def add(self, setting: Setting, rows: Iterable[Mapping[str, Any]]) -> None:
        sums = self._parts[setting.kind]
        for row in rows:
            sums[0] += bool(row["correct"])
            sums[1] += 1
            self._right[setting][row["problem"]][row["seed"], row["sample"]] = row["correct"]

    def counts(self, setting: Setting) -> tuple[int, int]:
        """The numbers of right answers and of all answers."""
        answers = [right for by_sample in self._right[setting].values() for right in by_sample.values()]
        return sum(answers), len(answers)

    def right(self, setting: Setting) -> int:
        return self.counts(setting)[0]

    def by_part(self) -> dict[str, float]:
        """The accuracy of each kind of setting, over all settings of that kind."""
        return {part: right / all_ for part, (right, all_) in self._parts.items() if all_}

    def against_baseline(self, setting: Setting) -> Paired | None:
        """The paired comparison of a setting with the baseline, over the problems that both have answered equally often.

        None where there are no such problems, and for the baseline itself.
        """
        before, after = self._right[Setting()], self._right[setting]
        common = [name for name in after if name in before and after[name].keys() == before[name].keys()]
        most = max((len(after[name]) for name in common), default=0)
        common = [name for name in common if len(after[name]) == most]
        if not common or setting == Setting():
            return None
        arrays = [
            np.array([[answers[name][key] for key in sorted(answers[name])] for name in common])
            for answers in (before, after)
        ]
        return paired(*arrays)

    def line(self, setting: Setting) -> str:
        """What is known about a setting, in one line."""
        right, all_ = self.counts(setting)
        accuracy = f"{setting.name}: n {all_}, accuracy {right / all_:.1%}"
        comparison = self.against_baseline(setting)
        if comparison is None:
            low, high = wilson(right, all_)
            return f"{accuracy} (95 % {low:.1%} to {high:.1%})"
        gain = f"{comparison.difference:+.1%} against the baseline"
        interval = f"95 % {comparison.low:+.1%} to {comparison.high:+.1%}"
        return f"{accuracy}, {gain} ({interval}, p {comparison.p:.2g}, uncorrected)"

    def table(self, settings: Sequence[Setting]) -> str:
        """A Markdown table with a row for each setting, and a sentence on how it is read."""
        rows = []
        for setting in settings:
            right, all_ = self.counts(setting)
            comparison = self.against_baseline(setting)
            compared = ["", ""]
            if comparison is not None:
                interval = f"{comparison.low:+.1%} to {comparison.high:+.1%}"
                compared = [f"{comparison.difference:+.1%} ({interval})", f"{comparison.p:.2g}"]
            rows.append([setting.name, str(all_), f"{right / all_:.1%}", *compared])
        table = markdown_table(["setting", "answers", "right", "difference (95 %)", "p, uncorrected"], rows)
        return f"{table}\n\n{_READING_AID}"


class Progress:
    """The bar, which shows the answers done, their rate, the time left, and the accuracy of each kind of setting.

    While the bar is shown, the messages that stepsal logs (at level `INFO`) are written above it.
    """

    def __init__(self, scores: Scores, shown: bool) -> None:
        from tqdm import tqdm

        self._scores, self._shown = scores, shown
        self._bar = tqdm(total=0, unit="answer", desc="sweep", disable=not shown, smoothing=0.1)
        self._handler = _AboveTheBar(self._bar)
        self._level_before = logger.level
        if shown:
            logger.addHandler(self._handler)
            logger.setLevel(min(logger.getEffectiveLevel(), logging.INFO))

    def expect(self, total: int, done: int) -> None:
        """Expect `total` more answers, of which `done` are there already."""
        if self._shown:  # a tqdm that is off has none of these attributes
            self._bar.total = (self._bar.total or 0) + total
            self._bar.initial += done
            self._bar.n += done
            self._bar.refresh()

    def add(self, answers: int) -> None:
        accuracies = [f"{part} {value:.0%}" for part, value in self._scores.by_part().items()]
        self._bar.set_postfix_str(" · ".join(accuracies), refresh=False)
        self._bar.update(answers)

    def close(self) -> None:
        if self._shown:
            logger.removeHandler(self._handler)
            logger.setLevel(self._level_before)
        self._bar.close()


class _AboveTheBar(logging.Handler):
    """Writes log messages to standard output, between two drawings of the bar."""

    def __init__(self, bar: Any) -> None:
        super().__init__(logging.INFO)
        self._bar = bar

    def emit(self, record: logging.LogRecord) -> None:
        self._bar.write(record.getMessage())
