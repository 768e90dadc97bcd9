"""The ablation tables of a sweep, as Markdown and as LaTeX (booktabs).

In: `stepsal.ablation.results` and `stepsal.ablation.effects`. Out: `Table`s of plain text cells, and their source in either
format. A cell is written once, in plain Unicode (`−0.4`, `τ_max`); each format escapes it.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from stepsal.ablation.effects import against_controls, by_error, by_length
from stepsal.ablation.labels import in_full, title
from stepsal.ablation.results import Results
from stepsal.markdown import markdown_table

if TYPE_CHECKING:
    from pandas import DataFrame
else:  # pandas takes a while to import, so it is imported where it is used
    DataFrame = Any

CONTROL_LINE = "An effect that a control has too is no effect of the setting."
ADAPTIVE_LINE = (
    "Forward selection: these same answers chose which settings there are, which the intervals and p do not allow for."
)
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "−": "$-$",
    "–": "--",
    "τ_max": r"$\tau_{\max}$",
    "α": r"$\alpha$",
    "→": r"$\rightarrow$",
    "×": r"$\times$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
} | {character: f"\\{character}" for character in "&%$#_{}"}


@dataclass(frozen=True)
class Table:
    """A table with cells of plain text. `rules` are the rows (counted from 0) above which a line separates groups of rows."""

    title: str
    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    rules: tuple[int, ...] = ()

    def markdown(self) -> str:
        table = markdown_table(self.header, self.rows, align_numbers=True)
        return f"**{self.title}.** {self.caption}\n\n{table}\n"

    def latex(self, label: str) -> str:
        """The table as a `table*` of LaTeX, which needs `\\usepackage{booktabs}`."""

        def line(cells: Sequence[str]) -> str:
            return " & ".join(map(latex, cells)) + r" \\"

        body = [(r"\midrule" + "\n" if row in self.rules else "") + line(cells) for row, cells in enumerate(self.rows)]
        return "\n".join(
            [
                r"\begin{table*}",
                r"\centering\small",
                rf"\caption{{{latex(self.title)}. {latex(self.caption)}}}",
                rf"\label{{{label}}}",
                rf"\begin{{tabular}}{{l{'r' * (len(self.header) - 1)}}}",
                r"\toprule",
                line(self.header),
                r"\midrule",
                *body,
                r"\bottomrule",
                r"\end{tabular}",
                r"\end{table*}",
                "",
            ]
        )


def latex(text: str) -> str:
    r"""Plain text, escaped for LaTeX.

    >>> print(latex("τ_max 0.15 & 5 % of a_b"))
    $\tau_{\max}$ 0.15 \& 5 \% of a\_b
    """
    return re.sub("|".join(map(re.escape, _LATEX)), lambda match: _LATEX[match[0]], text)


def ablation(results: Results) -> list[Table]:
    """The tables of a sweep: its settings, then, where it has them, controls, chain lengths and kinds of error."""
    tables = [_settings(results)]
    if len(controls := against_controls(results)):
        tables.append(_controls(results, controls))
    if results.lengths:
        tables.append(_cells(results, by_length(results), "Accuracy by chain length", _LENGTHS))
    if len(errors := by_error(results)):
        tables.append(_cells(results, errors, "Answers by kind of error", _ERRORS))
    names = {table.title: in_full(*(row[0] for row in table.rows)) for table in tables}
    return [replace(table, caption=f"{table.caption} {names[table.title]}".strip()) for table in tables]


_LENGTHS = "Per cent right (in brackets: points more or less than the baseline)"
_ERRORS = (
    "Per cent of answers whose first deviation from the solution is of this kind (in brackets: points more or less than the "
    "baseline); an answer may come out right all the same"
)


def interval_kind(results: Results) -> str:
    """How the intervals and the p-values of paired differences are computed, for captions."""
    if results.samples == 1:
        return "95 % score intervals (Tango), McNemar's exact p"
    return "95 % bootstrap intervals over problems, exact p of swapping the settings within problems"


def _settings(results: Results) -> Table:
    header = ("Setting", "Accuracy %", "Difference", "95 % interval", "Gained/lost", "p", "p Holm", "n", "Tokens")
    rows = []
    for setting, row in zip(results.settings, results.effects.to_dict("records"), strict=True):
        differs = setting is not results.baseline
        rows.append(
            (
                title(setting),
                percent(row["accuracy"]),
                points(row["difference"]) + star(row["p_corrected"]) if differs else "–",
                f"{points(row['low'])} to {points(row['high'])}" if differs else "–",
                f"{row['gained']:.0f}/{row['lost']:.0f}" if differs else "–",
                p_value(row["p"]),
                p_value(row["p_corrected"]),
                str(row["n"]),
                f"{row['tokens']:.0f}",
            )
        )
    caption = (
        f"{results.size}. Difference: paired, to the baseline, in percentage points, with {interval_kind(results)}; "
        "gained/lost: problems right more, less often than under the baseline; p Holm: corrected over the "
        f"{len(results.treated)} settings (* below 0.05); tokens: mean of an answer."
    )
    if any(setting.controls_for for setting in results.settings):
        caption += " " + CONTROL_LINE
    if results.adaptive:
        caption += " " + ADAPTIVE_LINE
    return Table("Ablation", caption, header, tuple(rows), _rules(results))


def _controls(results: Results, comparisons: DataFrame) -> Table:
    header = ("Setting", "Its control", "Difference", "95 % interval", "Gained/lost", "p", "p Holm")
    rows = tuple(
        (
            row["setting"],
            row["control"].split(", ")[0],
            points(row["difference"]) + star(row["p_corrected"]),
            f"{points(row['low'])} to {points(row['high'])}",
            f"{row['gained']:.0f}/{row['lost']:.0f}",
            p_value(row["p"]),
            p_value(row["p_corrected"]),
        )
        for row in comparisons.to_dict("records")
    )
    caption = (
        f"Each setting against its controls, which act in the same places with the same strength on the wrong target: accuracy "
        f"of the setting less the control's, paired, in percentage points; {results.size}; {interval_kind(results)}; p Holm: "
        f"corrected over the {len(rows)} pairs (* below 0.05). {CONTROL_LINE}"
    )
    return Table("Against the controls", caption, header, rows)


def _cells(results: Results, comparisons: DataFrame, heading: str, what: str) -> Table:
    columns = list(dict.fromkeys(comparisons["column"]))
    sizes = comparisons.groupby("column")["n"].first()
    differ = len(set(sizes)) > 1 or sizes.iloc[0] != results.n
    rows = []
    for setting in results.settings:
        own = comparisons[comparisons["id"] == setting.id].set_index("column").loc[columns]
        cells = [
            percent(row["accuracy"])
            + ("" if math.isnan(row["difference"]) else f" ({points(row['difference'])}){star(row['p_corrected'])}")
            for row in own.to_dict("records")
        ]
        rows.append((title(setting), *cells))
    header = ("Setting", *(f"{name} (n = {sizes[name]})" if differ else name for name in columns))
    tests = comparisons["p"].notna().sum()
    caption = f"{what}; {results.size}. *: paired difference, p < 0.05, corrected by Holm over the {tests} cells."
    return Table(heading, caption, header, tuple(rows), _rules(results))


def _rules(results: Results) -> tuple[int, ...]:
    """The rows that a rule stands above: the first after the baseline, and the first control."""
    controls = [row for row, setting in enumerate(results.settings) if setting.controls_for]
    return tuple(row for row in dict.fromkeys((1, *controls[:1])) if row < len(results.settings))


def percent(part: float) -> str:
    """A share in per cent, with one decimal and without the per cent sign.

    >>> percent(0.625)
    '62.5'
    """
    return f"{100 * part:.1f}"


def points(difference: float) -> str:
    """A difference of two shares in percentage points, with its sign.

    >>> points(-0.0125), points(0.02), points(0.0)
    ('−1.2', '+2.0', '0.0')
    """
    text = f"{100 * difference:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "−")


def star(p: float) -> str:
    """The mark of a p-value below 0.05."""
    return "*" if p < 0.05 else ""


def p_value(p: float) -> str:
    """A p-value with two digits, and at most three decimals.

    >>> p_value(0.0321), p_value(0.51), p_value(0.0002), p_value(float("nan"))
    ('0.032', '0.51', '<0.001', '–')
    """
    if math.isnan(p):
        return "–"
    return "<0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"
