"""`stepsal sweep`."""

import argparse
from pathlib import Path

from stepsal.cli import options
from stepsal.cli.process import prepare_process
from stepsal.errors import InputError


def add(commands: "options.Commands") -> None:
    parser = commands.add_parser(
        "sweep",
        parents=[options.workers("models at work (default: what is there allows)"), options.plugins()],
        help="many settings of StepFlow on the same problems, resumable",
        description="Run the sweep that CONFIG.toml describes. Run again after whatever stopped it: it goes on from there.",
    )
    parser.add_argument("config", type=Path, metavar="CONFIG.toml", help="model, problems, decoding, grid")
    parser.add_argument("--out", type=Path, default=None, metavar="DIR", help="folder for the rows and results.parquet")
    parser.add_argument(
        "--dry-run", action="store_true", help="print settings, number of answers and time; write nothing"
    )
    parser.set_defaults(run=run, interrupted=options.GOES_ON)


def run(given: argparse.Namespace) -> None:
    prepare_process()
    from stepsal.sweeps.run import estimate, run_sweep

    if given.dry_run:
        given.interrupted = "interrupted; a dry run writes nothing"
        print(estimate(given.config, given.engine, given.workers, given.address))
        return
    if given.out is None:
        raise InputError("--out DIR is needed: the folder for the rows (or --dry-run, to see what would be done)")
    table = run_sweep(given.config, given.out, given.engine, True, given.workers, given.address)
    print(f"{table}\n\n{given.out}/results.parquet   a row per answer (pandas.read_parquet)")
