"""`stepsal export`."""

import argparse
from pathlib import Path

from stepsal.cli import options

HELP = "all step maps of a folder as one Parquet table"


def add(parser: argparse.ArgumentParser) -> None:
    options.describe(
        parser,
        run,
        description="Write the step maps in DIR as one long table, a row for each trace, layer, head and pair of steps.",
        example="stepsal export run -o maps.parquet",
        interrupted=options.STARTS_ANEW.format("the table"),
    )
    options.add_maps_folder(parser)
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help="the Parquet file to write")
    options.add_plugins(parser)


def run(given: argparse.Namespace) -> None:
    from stepsal.saliency.export import export_step_maps

    options.check_out(given.out)
    path = export_step_maps(given.folder, given.out)
    print(f"{path}   {options.file_size(path)}; pandas.read_parquet reads it")
