"""The answers of each setting of a sweep, and its paired difference to the baseline.

In: the rows that `stepsal.sweep` returns (`results.parquet`). Out: `Results`. No model is loaded. `stepsal.ablation.effects`
and `stepsal.ablation.votes` compute from them what else tables and figures show.

1. The answers of a setting become an array `problem answer`, with one answer for each seed and sample. The problems are the
   same in every setting.
2. Every comparison is `stepsal.paired` of a setting with the baseline. The p-values are corrected by Holm's method over the
   tests that are shown together.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Shaped

from stepsal.ablation.labels import Label, label_settings
from stepsal.errors import FileError, InputError
from stepsal.statistics.paired import holm, paired, wilson
from stepsal.sweeps.settings import Setting

if TYPE_CHECKING:
    from pandas import DataFrame
else:  # pandas takes a while to import, so it is imported where it is used
    DataFrame = Any


class Results:
    """The answers of a sweep by setting: the baseline is the first setting, controls are the last.

    `config` is the content of the sweep's config.json, where it is known.

    Raises `InputError` where the rows lack a column, the baseline, or problems that another setting has, and where a setting
    has two rows of the same problem, seed and sample.
    """

    def __init__(self, rows: DataFrame, config: Mapping[str, Any] | None = None) -> None:
        self.config: Mapping[str, Any] = config or {}
        wanted = {"setting_id", "setting", "part", "parts", "problem", "seed", "sample", "correct"}
        if missing := sorted(wanted - set(rows.columns)):
            raise InputError(
                f"the rows have no column {missing[0]!r}: give what `stepsal.sweep` returns, or results.parquet"
            )
        groups = {str(name): group for name, group in rows.groupby("setting_id", sort=False)}
        first = {name: group.iloc[0] for name, group in groups.items()}
        baselines = [name for name, row in first.items() if row["part"] == "none"]
        if len(baselines) != 1:
            raise InputError(
                f"{len(baselines)} baselines among {len(first)} settings: give the rows of one sweep, its baseline included"
            )
        settings = {name: Setting.from_row(dict(row)) for name, row in first.items()}
        order = sorted(first, key=lambda name: (name not in baselines, settings[name].controls_for is not None))
        self.settings = [settings[name] for name in order]
        self._labels = label_settings(self.settings)
        self._frames: dict[Setting, DataFrame] = {}
        for name in order:
            self._frames[settings[name]] = self._checked(settings[name], groups[name])
        index = self._frames[self.baseline].index
        self.problems: list[str] = list(dict.fromkeys(index.get_level_values("problem")))
        self.n = len(self.problems)
        if len(set(Counter(index.get_level_values("problem")).values())) > 1:
            raise InputError("some problems have more answers than others: give the rows of one finished sweep")
        self.samples = len(index) // self.n

    def _checked(self, setting: Setting, rows: DataFrame) -> DataFrame:
        """The rows of a setting, indexed by problem, seed and sample. Each must be there once, as in the baseline's rows."""
        frame = rows.set_index(["problem", "seed", "sample"]).sort_index()
        if not frame.index.is_unique:
            raise InputError(
                f"setting {setting.name!r} has two rows of {frame.index[frame.index.duplicated()][0]} (problem, seed, sample): "
                "give the rows of one sweep"
            )
        if not frame.index.equals(self._frames.get(self.settings[0], frame).index):
            raise InputError(
                f"setting {setting.name!r} has other problems or samples than the baseline, but a paired comparison needs "
                "the same: give the rows of one finished sweep"
            )
        return frame

    @classmethod
    def of(cls, rows: "DataFrame | Results") -> "Results":
        return rows if isinstance(rows, Results) else cls(rows)

    @classmethod
    def read(cls, folder: str | Path) -> "Results":
        """Read the results of a sweep's folder.

        Raises `FileError` where the folder has no results.parquet, or where that file is not a table.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        from stepsal.sweeps.store import check_results, schema

        path = Path(folder) / "results.parquet"
        if not path.exists():
            begun = (Path(folder) / "config.json").exists()
            fix = "it is not finished: run the same command again" if begun else "make it with `stepsal sweep`"
            raise FileError(f"there is no {path}: {fix}")
        check_results(path)
        try:
            there = pq.read_schema(path).names  # rows of an older version lack cpu_seconds
            table = pq.read_table(
                path,
                page_checksum_verification=True,
                columns=[name for name in schema().names if name != "trace" and name in there],
            )
        except (OSError, pa.ArrowException) as error:
            raise FileError(f"{path} is damaged ({error}): move it away, and `stepsal sweep` makes it again") from error
        try:
            config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):  # only captions need it
            config = {}
        return cls(table.to_pandas(), config)

    def of_problems(self, names: Sequence[str]) -> "Results":
        """The results for some of the problems only."""
        import pandas as pd

        rows = pd.concat([frame.reset_index() for frame in self._frames.values()], ignore_index=True)
        return Results(rows[rows["problem"].isin(names)], self.config)

    @property
    def adaptive(self) -> bool:
        """Whether settings were chosen by the answers of earlier ones (forward selection). False where that is not known."""
        return self.config.get("config", {}).get("grid", {}).get("shape") == "forward-selection"

    @property
    def model(self) -> dict[str, Any]:
        """What the rows say about the model. The dictionary is empty where they say nothing."""
        frame = self._frames[self.baseline]
        text = frame["model"].iloc[0] if "model" in frame else None
        model: dict[str, Any] = json.loads(text) if text else {}
        return model

    @property
    def cost_column(self) -> str | None:
        """The column that measures the cost of an answer: processor time on a CPU, since other work on the machine changes it
        little, and clock time on other devices.

        None where rows of a CPU have no processor time, because an older version wrote them.
        """
        if str(self.model.get("device", "cpu")).partition(":")[0] != "cpu":
            return "seconds"
        known = all("cpu_seconds" in frame and frame["cpu_seconds"].notna().all() for frame in self._frames.values())
        return "cpu_seconds" if known else None

    @property
    def baseline(self) -> Setting:
        """The setting without interventions."""
        return self.settings[0]

    @property
    def treated(self) -> list[Setting]:
        """All other settings."""
        return self.settings[1:]

    def label(self, setting: Setting) -> Label:
        """What the setting is called beside the other settings."""
        return self._labels[setting]

    def about(self, setting: Setting) -> dict[str, Any]:
        """The columns that describe a setting: `id`, `part` (its kind), `label`, and whether it is a `control`."""
        control = setting.controls_for is not None
        return {"id": setting.id, "part": setting.kind, "label": self.label(setting).text, "control": control}

    @property
    def size(self) -> str:
        """The numbers of problems and answers for captions, such as `240 problems, one answer each`."""
        return f"{self.n} problems, {'one answer' if self.samples == 1 else f'{self.samples} answers'} each"

    def values(self, setting: Setting, column: str = "correct") -> Shaped[np.ndarray, "problem answer"]:
        """One column of a setting's rows, with the problems in the order of their ids."""
        if column not in self._frames[setting]:
            raise InputError(f"the rows have no column {column!r}: read them again without leaving it out")
        return self._frames[setting][column].to_numpy().reshape(self.n, self.samples)

    def right(self, setting: Setting) -> Bool[np.ndarray, "problem answer"]:
        """Which answers are right under a setting."""
        return self.values(setting).astype(bool)

    @property
    def lengths(self) -> list[int]:
        """The chain lengths of the problems. The list is empty where the problems have no chain length."""
        values = self.values(self.baseline, "length")[:, 0]
        return sorted({int(length) for length in values if length == length and length is not None})

    def of_length(self, length: int) -> Bool[np.ndarray, "problem"]:
        """Which problems have this chain length."""
        chosen: Bool[np.ndarray, problem] = self.values(self.baseline, "length")[:, 0] == length
        return chosen

    @cached_property
    def effects(self) -> DataFrame:
        """A row per setting: its accuracy, its paired difference to the baseline, and the tokens and seconds of an answer."""
        rows = []
        for setting in self.settings:
            about = self.about(setting)
            about = {"id": about.pop("id"), "setting": setting.name, **about}
            means = {name: float(self.values(setting, name).astype(float).mean()) for name in ("tokens", "seconds")}
            compared = compare_answers(self.right(self.baseline), self.right(setting), setting is self.baseline)
            rows.append(about | compared | means)
        return corrected(rows)

    def some_effects(self, settings: Sequence[Setting]) -> DataFrame:
        """The rows of `effects` for some settings, with the p-values corrected over these settings."""
        table = self.effects.set_index("id", drop=False).loc[[setting.id for setting in settings]]
        return corrected(table.reset_index(drop=True).to_dict("records"))


def accuracy_interval(per_problem: Float[np.ndarray, "problem"], answers: int) -> tuple[float, float, float]:
    """The mean accuracy and the ends of its 95 % interval over problems.

    The interval is Wilson's where each problem has one answer, and otherwise the normal one.

    >>> [round(value, 3) for value in accuracy_interval(np.array([1.0, 1.0, 0.0, 1.0]), 1)]
    [0.75, 0.301, 0.954]
    """
    n, mean = len(per_problem), float(per_problem.mean())
    deviation = float(per_problem.std(ddof=1)) if n > 1 else 0.0
    if answers == 1 and np.isin(per_problem, (0.0, 1.0)).all():
        return (mean, *wilson(round(per_problem.sum()), n))
    if (
        np.ptp(per_problem) == 0
    ):  # the problems do not vary, so Wilson's interval says what other problems might be like
        low, high = wilson(round(mean * n), n)
        return mean, min(low, mean), max(high, mean)
    margin = 1.96 * deviation / math.sqrt(n)
    return mean, max(0.0, mean - margin), min(1.0, mean + margin)


def compare_answers(
    before: Bool[np.ndarray, "problem answer"], after: Bool[np.ndarray, "problem answer"], same: bool
) -> dict[str, Any]:
    """The columns of a paired comparison. With `same`, `after` is the baseline itself, which has no difference to itself."""
    accuracy, low, high = accuracy_interval(after.mean(1), after.shape[1])
    columns: dict[str, Any] = {"n": len(after), "accuracy": accuracy, "accuracy_low": low, "accuracy_high": high}
    if same:
        return columns | dict.fromkeys(("difference", "low", "high", "gained", "lost", "p"), math.nan)
    result = paired(before, after)
    return columns | {name: getattr(result, name) for name in ("difference", "low", "high", "gained", "lost", "p")}


def corrected(rows: Sequence[Mapping[Any, Any]]) -> DataFrame:
    """A table of the rows, with the p-values corrected by Holm's method over the tests in it."""
    ps = np.array([row["p"] for row in rows], dtype=float)
    adjusted = np.full(len(rows), math.nan)
    tested = ~np.isnan(ps)
    adjusted[tested] = holm(ps[tested])
    return as_table([{**row, "p_corrected": float(p)} for row, p in zip(rows, adjusted, strict=True)])


def as_table(rows: Sequence[Mapping[Any, Any]]) -> DataFrame:
    import pandas as pd

    return pd.DataFrame(list(rows))
