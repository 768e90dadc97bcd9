"""`stepsal export`."""

import argparse
from pathlib import Path

from stepsal.cli import options


def add(commands: "options.Commands") -> None:
    parser = commands.add_parser(
        "export",
        parents=[options.maps_folder(), options.plugins()],
        help="all step maps of a folder as one Parquet table",
        description="Write the step maps in DIR as one long table, a row for each trace, layer, head and pair of steps.",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the Parquet file to write")
    parser.set_defaults(run=run, interrupted=options.STARTS_ANEW.format("the table"))


def run(given: argparse.Namespace) -> None:
    from stepsal.saliency.export import export_step_maps

    options.check_out(given.out)
    path = export_step_maps(given.folder, given.out)
    print(f"{path}   {path.stat().st_size / 1e6:.1f} MB; pandas.read_parquet reads it")
