"""Every figure by name, drawn from a folder of results and written with its caption.

In: a name in `FIGURES`, and the folder that the figure is of. Out: files. `stepsal.figures.maps` draws the figures of step
maps, `stepsal.figures.causality` that of a faithfulness check, `stepsal.figures.sweeps` the figures and tables of sweeps,
`stepsal.figures.benchmark` that of paired comparisons.
"""

import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from glob import escape
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepsal import plot
from stepsal.checks import nearest
from stepsal.errors import FileError, InputError
from stepsal.figures.benchmark import benchmark
from stepsal.figures.causality import CHECK_FIGURES
from stepsal.figures.maps import MAP_FIGURES
from stepsal.figures.sweeps import SWEEP_FIGURES, FigureOrTables
from stepsal.files import atomic_path, locked
from stepsal.sweeps.settings import ranges

if TYPE_CHECKING:
    from matplotlib.figure import Figure
else:  # imported where used: it takes a while
    Figure = Any


@dataclass(frozen=True)
class OfOneFolder:
    """A figure of one folder, called as those of two are: it refuses a second one."""

    name: str
    draw: Callable[..., tuple[Figure, str]]

    def __call__(self, folder: Path, second: Path | None, **options: Any) -> FigureOrTables:
        if second is not None:
            raise InputError(f"figure {self.name!r} takes one folder; given a second one, {second}")
        figure, caption = self.draw(folder, **options)
        return FigureOrTables(caption, figure)


FORMATS = ("png", "pdf", "svg")
"""What a picture is written as."""
_TEXTS = ("md", "tex")

FIGURES: dict[str, Callable[..., FigureOrTables]] = {
    **{name: OfOneFolder(name, draw) for name, draw in (MAP_FIGURES | CHECK_FIGURES).items()},
    **SWEEP_FIGURES,
    "benchmark": OfOneFolder("benchmark", benchmark),
}
"""What a folder (or two) of results is made into. The options of a figure are the keyword parameters of what draws it."""
TABLES = ("ablation",)
"""Those of `FIGURES` that are tables."""
OPTIONS = {
    "trace": "--trace",
    "grades": "--traces",
    "layers": "--layers",
    "head": "--head",
    "measure": "--measure",
    "metric": "--metric",
}
"""The options that figures may take, with what the command line calls them."""


def figures_with(option: str) -> list[str]:
    """The names of the figures that take an option.

    >>> figures_with("head")
    ['maps', 'before_after']
    """
    functions = {name: made.draw if isinstance(made, OfOneFolder) else made for name, made in FIGURES.items()}
    return [name for name, function in functions.items() if option in signature(function).parameters]


def save_figure(
    name: str,
    folder: str | Path,
    out: str | Path,
    *,
    second: str | Path | None = None,
    formats: Sequence[str] | None = None,
    command: str = "",
    **options: Any,
) -> list[Path]:
    """Draw a figure of `FIGURES` from a folder of results.

    The picture is written with its caption as Markdown beside it; tables are written as Markdown and LaTeX.

    Args:
        name: of the figure.
        folder: the results.
        out: where to write: a name, with or without the suffix of a file that is written.
        second: another folder, for the figures that compare two.
        formats: of the picture: `"png"`, `"pdf"`, `"svg"`. By default PNG and PDF, or SVG where `out` ends in `.svg`.
        command: how the files say that they were made; by default with `stepsal figure`.
        options: of the figure; `OPTIONS` names those that there are.

    Returns:
        The paths of the files.

    Raises:
        InputError: an unknown name, format or suffix, an option that this figure does not take, or a second folder for a figure
            that takes one.
        FileError: a folder that lacks what the figure needs.
    """
    if name not in FIGURES:
        raise InputError(f"unknown figure {name!r}{nearest(name, FIGURES)}: expected one of {', '.join(FIGURES)}")
    options = {option: value for option, value in options.items() if value is not None}
    for option in options:
        if name not in (takers := figures_with(option)):
            raise InputError(
                f"figure {name!r} takes no {OPTIONS.get(option, option)}: {', '.join(takers) or 'no figure'} "
                f"take{'s' * (len(takers) < 2)} it"
            )
    stem, suffixes = _files(name, Path(out), formats)
    at_work = f"another run is drawing {stem}: wait for it, or give another --out"
    with plot.style(), locked(stem, at_work, also=[f"{escape(stem.name)}.{suffix}" for suffix in (*FORMATS, *_TEXTS)]):
        made = FIGURES[name](Path(folder), None if second is None else Path(second), **options)
        shown = command or shlex.join(
            [
                *("stepsal", "figure", name, str(folder), *([str(second)] if second else [])),
                *(word for option, value in options.items() for word in _words(option, value)),
                *(["--format", ",".join(formats)] if formats else []),
                *("--out", f"{stem}.{suffixes[0]}"),
            ]
        )
        _check_beside(Path(out), stem, [*(suffixes if made.figure is not None else ()), *made.texts])
        return _write(made, stem, suffixes, f"Made by `{shown}`.")


def _files(name: str, out: Path, formats: Sequence[str] | None) -> tuple[Path, tuple[str, ...]]:
    """The path without suffix, and the suffixes of the files that a figure is written into."""
    suffix = out.suffix.lower().removeprefix(".")
    also: tuple[str, ...] = ("md",)
    if name in TABLES:
        if formats:
            raise InputError(f"{name!r} is a table, written as .md and .tex: it takes no --format")
        formats = also = _TEXTS
    else:
        if unknown := [each for each in formats or () if each not in FORMATS]:
            raise InputError(f"cannot write the format {unknown[0]!r}: expected one of {', '.join(FORMATS)}")
        formats = tuple(dict.fromkeys(formats or (("svg",) if suffix == "svg" else ("png", "pdf"))))
    if suffix and suffix not in (*formats, *also):
        kind, known = ("table", _TEXTS) if name in TABLES else ("picture", FORMATS)
        fix = f"give --format {suffix}, or let" if suffix in known else "let"
        raise InputError(
            f"cannot write {out}: the {kind} {name!r} is written as {' and '.join(f'.{each}' for each in formats)}, not as "
            f"{out.suffix!r}; {fix} --out end in .{formats[0]}"
        )
    if out.name.endswith("."):
        raise InputError(f"cannot write {out}: the name ends in a dot; let --out end in .{formats[0]}")
    return (out.with_suffix("") if suffix else out), tuple(formats)


def _check_beside(out: Path, stem: Path, suffixes: Iterable[str]) -> None:
    """Refuse to replace files that the user did not name and that no figure was written into."""
    for beside in (stem.with_name(f"{stem.name}.{suffix}") for suffix in suffixes):
        if beside != out and beside.is_file() and not any(mark in beside.read_bytes() for mark in _MARKS):
            raise FileError(
                f"the figure is also written into {beside}, which is a file of something else: move it away, "
                "or give another --out"
            )


def _words(option: str, value: Any) -> list[str]:
    """An option as the command line takes it."""
    flag = OPTIONS[option]
    if isinstance(value, str | int | Path):
        return [flag, str(value)]
    if option == "trace":  # an id may hold a comma
        return [word for each in value for word in (flag, each)]
    return [flag, ",".join(ranges(each) if isinstance(each, list | tuple) else str(each) for each in value)]


def _write(made: FigureOrTables, stem: Path, suffixes: Sequence[str], how: str) -> list[Path]:
    paths = []
    if made.figure is not None:
        for suffix in suffixes:
            paths.append(stem.with_name(f"{stem.name}.{suffix}"))
            with atomic_path(paths[-1]) as temporary:
                made.figure.savefig(temporary, format=suffix, metadata=_NO_DATE.get(suffix))
    for suffix, text in made.texts.items():
        paths.append(stem.with_name(f"{stem.name}.{suffix}"))
        with atomic_path(paths[-1]) as temporary:
            temporary.write_text(f"% {how}\n{text}" if suffix == "tex" else f"{text}\n{how}\n", encoding="utf-8")
    return paths


_MARKS = (b"Made by `", b"Matplotlib")  # in the files that `_write` makes
_NO_DATE: dict[str, Any] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}  # the same results give the same file
