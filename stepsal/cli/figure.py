"""`stepsal figure`."""

import argparse
from pathlib import Path

from stepsal.cli import options

HELP = "a figure or table for a paper, from a folder of results"


def add(parser: argparse.ArgumentParser) -> None:
    from stepsal.figures.maps import MAP_FIGURES
    from stepsal.figures.save import FIGURES

    options.describe(
        parser,
        run,
        description="Draw a figure from a folder of results, as PNG and PDF with its caption; tables as Markdown and LaTeX.",
        example="stepsal figure profiles run -o profiles.png",
        interrupted="interrupted; every file is whole, old or new: the same command writes all of them",
    )
    of_sweeps = [name for name in FIGURES if name not in (*MAP_FIGURES, "before_after", "benchmark")]
    parser.add_argument(
        "name",
        metavar="NAME",
        help=f"of step maps: {', '.join(MAP_FIGURES)}; of a sweep: {', '.join(of_sweeps)}; of two folders of step maps: "
        "before_after; of a folder of what `stepsal paired --out` wrote: benchmark",
    )
    parser.add_argument(
        "folder", type=Path, metavar="DIR", help="what `stepsal saliency`, `demo`, `sweep` or `paired` wrote"
    )
    parser.add_argument(
        "second",
        type=Path,
        nargs="?",
        metavar="DIR2",
        help="before_after: the maps after; compute: a sweep with several samples (default: none)",
    )
    parser.add_argument(
        "-o", "--out", type=Path, required=True, metavar="FILE", help="the picture; its PDF and caption go beside it"
    )
    options.add_plugins(parser)


def run(given: argparse.Namespace) -> None:
    from stepsal.figures.save import save_figure

    options.check_out(given.out)
    for path in save_figure(given.name, given.folder, given.out, second=given.second):
        print(path)
