"""`stepsal compare`."""

import argparse
from pathlib import Path

from stepsal.cli import options


def add(commands: "options.Commands") -> None:
    parser = commands.add_parser(
        "compare",
        parents=[options.maps_folder(), options.seed(), options.plugins()],
        help="correct against wrong traces, with intervals and controls",
        description="Compare the correct with the wrong traces of DIR. Writes DIR/comparison.json and prints its table.",
    )
    parser.add_argument(
        "--traces", type=Path, default=None, metavar="TRACES.jsonl", help='"correct" by id, where the maps do not say'
    )
    parser.add_argument(
        "--resamples", type=options.positive, default=2000, help="bootstrap and permutations (default: %(default)s)"
    )
    parser.set_defaults(run=run, interrupted=options.STARTS_ANEW.format("DIR/comparison.json"))


def run(given: argparse.Namespace) -> None:
    from stepsal.diagnosis.comparison import compare
    from stepsal.diagnosis.folder import diagnose_files
    from stepsal.saliency.folder import group_maps, open_step_maps
    from stepsal.traces.files import read_grades

    grades = None if given.traces is None else read_grades(given.traces)
    groups = group_maps(open_step_maps(given.folder, progress=True), grades)
    correct, wrong = (diagnose_files(groups[name], progress=True) for name in ("correct", "wrong"))
    result = compare(correct, wrong, resamples=given.resamples, seed=given.seed)
    result.save(given.folder / "comparison.json")
    print(f"{result.summary()}\n\n{given.folder}/comparison.json   all of it (stepsal.Comparison.load)")
