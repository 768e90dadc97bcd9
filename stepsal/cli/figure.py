"""`stepsal figure`."""

import argparse
from pathlib import Path

from stepsal.cli import options

# Written out, so that --help need not import what draws them; a test holds them against the figures that there are.
MAP_FIGURES = ("tokens", "maps", "profiles", "heads", "forest")
SWEEP_FIGURES = ("ablation", "effects", "grid", "strength", "compute", "difficulty")


def add(commands: "options.Commands") -> None:
    parser = commands.add_parser(
        "figure",
        parents=[options.plugins()],
        help="a figure for a paper, from a folder of results (PNG, PDF, caption)",
    )
    parser.add_argument(
        "name",
        metavar="NAME",
        help=f"of step maps: {', '.join(MAP_FIGURES)}; of a sweep: {', '.join(SWEEP_FIGURES)}; of two folders of step maps: "
        "before_after",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="what `stepsal saliency`, `demo` or `sweep` wrote")
    parser.add_argument(
        "second", type=Path, nargs="?", metavar="DIR2", help="before_after: after; compute: a sweep with samples"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="its PDF and caption go beside it")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> None:
    from stepsal.figures.maps import save_figure

    for path in save_figure(given.name, given.folder, given.out, second=given.second):
        print(path)
