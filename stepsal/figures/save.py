"""Every figure by name, drawn from a folder of results and written with its caption.

In: a name in `FIGURES`, and the folder that the figure is of. Out: files. `stepsal.figures.maps` draws the figures of step
maps, `stepsal.figures.causality` that of a faithfulness check, `stepsal.figures.sweeps` the figures and tables of sweeps,
`stepsal.figures.benchmark` that of paired comparisons.
"""

from collections.abc import Callable
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepsal import plot
from stepsal.errors import InputError
from stepsal.figures.benchmark import benchmark
from stepsal.figures.causality import CHECK_FIGURES
from stepsal.figures.maps import MAP_FIGURES
from stepsal.figures.sweeps import SWEEP_FIGURES, FigureOrTables
from stepsal.files import atomic_path, locked

if TYPE_CHECKING:
    from matplotlib.figure import Figure
else:  # imported where used: it takes a while
    Figure = Any


def _of_one_folder(
    name: str, draw: Callable[[Path], tuple[Figure, str]]
) -> Callable[[Path, Path | None], FigureOrTables]:
    def checked(folder: Path, second: Path | None) -> FigureOrTables:
        if second is not None:
            raise InputError(f"figure {name!r} takes one folder; given a second one, {second}")
        figure, caption = draw(folder)
        return FigureOrTables(caption, figure)

    return checked


_SUFFIXES = (".png", ".pdf", ".md", ".tex")

FIGURES: dict[str, Callable[[Path, Path | None], FigureOrTables]] = {
    **{name: _of_one_folder(name, draw) for name, draw in (MAP_FIGURES | CHECK_FIGURES).items()},
    **SWEEP_FIGURES,
    "benchmark": _of_one_folder("benchmark", benchmark),
}
"""What a folder (or two) of results is made into."""


def save_figure(
    name: str, folder: str | Path, out: str | Path, *, second: str | Path | None = None, command: str = ""
) -> list[Path]:
    """Draw a figure of `FIGURES` from a folder of results.

    The figure is written as PNG and as PDF, with its caption as Markdown beside them; tables are written as Markdown and LaTeX.

    Args:
        name: of the figure.
        folder: the results.
        out: where to write. A suffix `.png`, `.pdf`, `.md` or `.tex` gives way to that of each file; any other is part of the
            name.
        second: another folder, for the figures that compare two.
        command: how the files say that they were made; by default with `stepsal figure`.

    Returns:
        The paths of the files.

    Raises:
        InputError: an unknown name, or a second folder for a figure that takes one.
        FileError: a folder that lacks what the figure needs.
    """
    if name not in FIGURES:
        raise InputError(f"unknown figure {name!r}: expected one of {', '.join(FIGURES)}")
    out = Path(out)
    stem = out.with_suffix("") if out.suffix.lower() in _SUFFIXES else out
    at_work = f"another run is drawing {stem}: wait for it, or give another --out"
    with plot.style(), locked(stem, at_work, also=[f"{escape(stem.name)}{suffix}" for suffix in _SUFFIXES]):
        made = FIGURES[name](Path(folder), None if second is None else Path(second))
        folders = f"{folder} {second}" if second else f"{folder}"
        command = command or f"stepsal figure {name} {folders} --out {stem}.{'md' if made.figure is None else 'png'}"
        return _write(made, stem, f"Made by `{command}`.")


def _write(made: FigureOrTables, stem: Path, how: str) -> list[Path]:
    paths = []
    if made.figure is not None:
        for suffix in ("png", "pdf"):
            paths.append(stem.with_name(f"{stem.name}.{suffix}"))
            metadata: Any = {"CreationDate": None} if suffix == "pdf" else None  # the same results give the same file
            with atomic_path(paths[-1]) as temporary:
                made.figure.savefig(temporary, format=suffix, metadata=metadata)
    for suffix, text in made.texts.items():
        paths.append(stem.with_name(f"{stem.name}.{suffix}"))
        with atomic_path(paths[-1]) as temporary:
            temporary.write_text(f"% {how}\n{text}" if suffix == "tex" else f"{text}\n{how}\n", encoding="utf-8")
    return paths
