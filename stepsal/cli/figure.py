"""`stepsal figure`."""

import argparse
from pathlib import Path

from stepsal.cli import options


def add(commands: "options.Commands") -> None:
    from stepsal.figures.causality import CHECK_FIGURES
    from stepsal.figures.maps import MAP_FIGURES
    from stepsal.figures.save import FIGURES

    of_sweeps = [name for name in FIGURES if name not in (*MAP_FIGURES, *CHECK_FIGURES, "before_after", "benchmark")]
    parser = commands.add_parser(
        "figure",
        parents=[options.plugins()],
        help="a figure for a paper, from a folder of results (PNG, PDF, caption)",
    )
    parser.add_argument(
        "name",
        metavar="NAME",
        help=f"of step maps: {', '.join(MAP_FIGURES)}; of what `stepsal faithfulness` wrote: {', '.join(CHECK_FIGURES)}; of a "
        f"sweep: {', '.join(of_sweeps)}; of two folders of step maps: before_after; of a folder of what `stepsal paired --out` "
        "wrote: benchmark",
    )
    parser.add_argument(
        "folder",
        type=Path,
        metavar="DIR",
        help="what `stepsal saliency`, `faithfulness`, `demo`, `sweep` or `paired` wrote",
    )
    parser.add_argument(
        "second", type=Path, nargs="?", metavar="DIR2", help="before_after: after; compute: a sweep with samples"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="its PDF and caption go beside it")
    parser.set_defaults(
        run=run, interrupted="interrupted; every file is whole, old or new: the same command writes all of them"
    )


def run(given: argparse.Namespace) -> None:
    from stepsal.figures.save import save_figure

    options.check_out(given.out)
    for path in save_figure(given.name, given.folder, given.out, second=given.second):
        print(path)
