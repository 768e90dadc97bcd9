"""`stepsal diagnose`."""

import argparse
from pathlib import Path

from stepsal.cli import options

HELP = "metrics of each trace's step map, and whether it shows the two failures"


def add(parser: argparse.ArgumentParser) -> None:
    options.describe(
        parser,
        run,
        description="Judge each step map in DIR: does it show shallow lock-in or deep decay? Writes DIR/diagnosis.jsonl, a "
        "line for each trace, and prints a summary.",
        example="stepsal diagnose run --reference run",
        interrupted=options.STARTS_ANEW.format("DIR/diagnosis.jsonl"),
    )
    options.add_maps_folder(parser)
    parser.add_argument(
        "--reference",
        type=Path,
        metavar="DIR2",
        help="judge against the right traces of this folder, of the same model (default: each trace against its own middle "
        "layers)",
    )
    options.add_markdown(parser)
    options.add_quiet(parser)
    options.add_plugins(parser)


def run(given: argparse.Namespace) -> None:
    from stepsal.diagnosis.diagnosis import summarise, write_diagnoses
    from stepsal.diagnosis.folder import diagnose_files
    from stepsal.saliency.folder import group_maps, open_step_maps

    maps = open_step_maps(given.folder, progress=not given.quiet)
    reference = None
    if given.reference is not None:
        right = group_maps(open_step_maps(given.reference, progress=not given.quiet))["correct"]
        reference = diagnose_files(right, progress=not given.quiet)
    diagnoses = diagnose_files(maps, reference=reference, progress=not given.quiet)
    write_diagnoses(given.folder / "diagnosis.jsonl", diagnoses)
    options.print_tables(summarise(diagnoses), given)
    print(f"\n{given.folder}/diagnosis.jsonl   a line for each trace")
