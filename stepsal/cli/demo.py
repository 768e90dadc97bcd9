"""`stepsal demo`."""

import argparse
from pathlib import Path

from stepsal.cli import options
from stepsal.cli.process import prepare_process


def add(commands: "options.Commands") -> None:
    parser = commands.add_parser(
        "demo",
        parents=[options.plugins()],
        help="the bundled reasoner's step maps, right against wrong (no network)",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for traces, maps and figures")
    parser.add_argument(
        "--problems", type=options.positive, default=128, help="how many test problems (default: %(default)s)"
    )
    parser.set_defaults(run=run, interrupted=options.GOES_ON)


def run(given: argparse.Namespace) -> None:
    prepare_process()
    from stepsal.demo import run_demo

    print(run_demo(given.out, given.problems))
