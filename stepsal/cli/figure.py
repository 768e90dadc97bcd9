"""`stepsal figure`."""

import argparse
from pathlib import Path
from typing import Any

from stepsal.cli import options

HELP = "a figure or table for a paper, from a folder of results"


def add(parser: argparse.ArgumentParser) -> None:
    from stepsal.figures.causality import CHECK_FIGURES
    from stepsal.figures.maps import MAP_FIGURES
    from stepsal.figures.save import FIGURES, FORMATS, OPTIONS, figures_with
    from stepsal.plot.maps import MEASURES

    options.describe(
        parser,
        run,
        description="Draw a picture from a folder of results, as PNG, PDF or SVG with its caption; a table as Markdown, LaTeX.",
        example="stepsal figure maps run --trace aime-3 --layers 4,20-27 --head 2 -o aime-3.svg",
        interrupted="interrupted; every file is whole, old or new: the same command writes all of them",
    )
    of_sweeps = [name for name in FIGURES if name not in (*MAP_FIGURES, *CHECK_FIGURES, "before_after", "benchmark")]
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
        "second",
        type=Path,
        nargs="?",
        metavar="DIR2",
        help="before_after: the maps after; compute: a sweep with several samples (default: none)",
    )
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="the picture, a name that ends in .png, .pdf or .svg, or in none; its caption goes beside it",
    )
    parser.add_argument(
        "--format",
        dest="formats",
        type=lambda text: text.split(","),
        metavar="FORMAT",
        help=f"of a picture: {', '.join(FORMATS)}, or several with commas (default: png,pdf; svg where FILE ends in .svg)",
    )
    group = parser.add_argument_group("what is shown, in the figures that take the option")

    def add_option(option: str, help: str, default: str, **how: Any) -> None:
        takers = ", ".join(figures_with(option))
        group.add_argument(OPTIONS[option], dest=option, help=f"{help} ({takers}; default: {default})", **how)

    add_option(
        "trace",
        "the traces to show, by their ids, with commas; may be repeated",
        "all; of maps the first of each group",
        action="append",
        metavar="ID",
    )
    add_option(
        "grades",
        'lines with "id" and "correct" that say which traces are right',
        "as the maps say",
        type=Path,
        metavar="TRACES.jsonl",
    )
    add_option(
        "layers",
        "the layers of each column, with commas: a layer, a range such as 4-7 (its mean), shallow, deep or all",
        "shallow,deep",
        type=options.columns_of_layers,
        metavar="LAYERS",
    )
    add_option("head", "one head", "the mean over all", type=options.natural, metavar="N")
    add_option("measure", f"{', '.join(MEASURES)} (docs/method.md)", "share", metavar="MEASURE")
    add_option(
        "metric",
        "the metrics to show, by their names, with commas; may be repeated",
        "the usual ones",
        action="append",
        metavar="NAME",
    )
    options.add_plugins(parser)


def run(given: argparse.Namespace) -> None:
    from stepsal.figures.save import OPTIONS, save_figure

    options.check_out(given.out)
    chosen = {option: getattr(given, option) for option in OPTIONS}
    if given.metric is not None:
        chosen["metric"] = [name for entry in given.metric for name in entry.split(",")]
    for path in save_figure(given.name, given.folder, given.out, second=given.second, formats=given.formats, **chosen):
        print(path)
