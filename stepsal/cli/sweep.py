"""`stepsal sweep`."""

import argparse
from pathlib import Path

from stepsal.cli import options
from stepsal.cli.process import prepare_process
from stepsal.errors import InputError

HELP = "many settings of interventions on the same problems, resumable"


def add(parser: argparse.ArgumentParser) -> None:
    options.describe(
        parser,
        run,
        description="Run the sweep that CONFIG.toml describes. Run again after whatever stopped it: it goes on from there.",
        example="stepsal sweep config.toml --dry-run && stepsal sweep config.toml -o sweep",
        interrupted=options.GOES_ON,
    )
    parser.add_argument(
        "config", type=Path, metavar="CONFIG.toml", help="model, problems, decoding and grid (docs/sweeps.md)"
    )
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        metavar="DIR",
        help="folder for the rows and results.parquet (needed but for --dry-run)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print settings, number of answers and time; write nothing"
    )
    options.add_markdown(parser)
    options.add_quiet(parser)
    options.add_workers(parser, "one for each GPU or core, as memory allows")
    options.add_plugins(parser)


def run(given: argparse.Namespace) -> None:
    prepare_process()
    from stepsal.sweeps.run import estimate, run_sweep

    if given.dry_run:
        given.interrupted = "interrupted; a dry run writes nothing"
        print(estimate(given.config, given.engine, given.workers, given.address))
        return
    if given.out is None:
        raise InputError("--out DIR is needed: the folder for the rows (or --dry-run, to see what would be done)")
    table = run_sweep(given.config, given.out, given.engine, True, given.workers, given.address, not given.quiet)
    options.print_tables(table, given)
    print(f"\n{given.out}/results.parquet   a row for each answer (pandas.read_parquet)")
