"""`stepsal demo`."""

import argparse
from pathlib import Path

from stepsal.cli import options
from stepsal.cli.process import prepare_process

HELP = "step maps of the bundled reasoner's right and wrong traces (no network)"


def add(parser: argparse.ArgumentParser) -> None:
    options.describe(
        parser,
        run,
        description="The bundled reasoner answers problems; their traces, step maps and a picture are written to DIR.",
        example="stepsal demo -o demo",
        interrupted=options.GOES_ON,
    )
    parser.add_argument(
        "-o", "--out", type=Path, required=True, metavar="DIR", help="folder for traces, maps and the picture"
    )
    parser.add_argument(
        "--problems", type=options.positive, default=128, metavar="N", help="how many problems (default: %(default)s)"
    )
    options.add_markdown(parser)
    options.add_quiet(parser)
    options.add_plugins(parser)


def run(given: argparse.Namespace) -> None:
    prepare_process()
    from stepsal.demo import run_demo

    options.print_tables(run_demo(given.out, given.problems, progress=not given.quiet), given)
