"""`stepsal diagnose`."""

import argparse
from pathlib import Path

from stepsal.cli import options


def add(commands: "options.Commands") -> None:
    parser = commands.add_parser(
        "diagnose",
        parents=[options.maps_folder(), options.plugins()],
        help="metrics and verdicts of each trace's step map",
        description="Judge each step map in DIR. Writes DIR/diagnosis.jsonl, a line per trace, and prints a summary.",
    )
    parser.add_argument(
        "--reference", type=Path, metavar="DIR2", help="judge against the correct traces of this folder (same model)"
    )
    parser.set_defaults(run=run, interrupted=options.STARTS_ANEW.format("DIR/diagnosis.jsonl"))


def run(given: argparse.Namespace) -> None:
    from stepsal.diagnosis.diagnosis import summarise, write_diagnoses
    from stepsal.diagnosis.folder import diagnose_files
    from stepsal.saliency.folder import group_maps, open_step_maps

    maps = open_step_maps(given.folder, progress=True)
    reference = None
    if given.reference is not None:
        correct = group_maps(open_step_maps(given.reference, progress=True))["correct"]
        reference = diagnose_files(correct, progress=True)
    diagnoses = diagnose_files(maps, reference=reference, progress=True)
    write_diagnoses(given.folder / "diagnosis.jsonl", diagnoses)
    print(f"{summarise(diagnoses)}\n\n{given.folder}/diagnosis.jsonl   a line per trace")
