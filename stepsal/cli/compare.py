"""`stepsal compare`."""

import argparse
from pathlib import Path

from stepsal.cli import options
from stepsal.errors import InputError

HELP = "right against wrong traces, with intervals and controls"


def add(parser: argparse.ArgumentParser) -> None:
    options.describe(
        parser,
        run,
        description="Compare the step maps of right with those of wrong traces. Writes DIR/comparison.json and prints, for "
        "each metric, the layer that tells them apart best.",
        example="stepsal compare run --traces grades.jsonl",
        interrupted=options.STARTS_ANEW.format("DIR/comparison.json"),
    )
    options.add_maps_folder(parser)
    parser.add_argument(
        "--traces",
        type=Path,
        metavar="TRACES.jsonl",
        help='lines with "id" and "correct" that say which traces are right (default: as the maps say)',
    )
    options.add_resamples(parser, "bootstrap samples and permutations")
    options.add_markdown(parser)
    options.add_quiet(parser)
    options.add_plugins(parser)


def run(given: argparse.Namespace) -> None:
    from stepsal.diagnosis.comparison import compare
    from stepsal.diagnosis.folder import diagnose_files
    from stepsal.saliency.folder import group_maps, open_step_maps
    from stepsal.traces.files import read_grades

    grades = None if given.traces is None else read_grades(given.traces)
    groups = group_maps(open_step_maps(given.folder, progress=not given.quiet), grades)
    right, wrong = len(groups["correct"]), len(groups["wrong"])
    if min(right, wrong) < 2:
        raise InputError(
            f"{given.folder} has maps of {right} right and {wrong} wrong traces: a comparison needs two of each, and should "
            "have dozens. Make maps of more traces, with `stepsal generate` and `stepsal saliency`."
        )
    diagnoses = [diagnose_files(groups[name], progress=not given.quiet) for name in ("correct", "wrong")]
    result = compare(*diagnoses, resamples=given.resamples, seed=given.seed)
    result.save(given.folder / "comparison.json")
    options.print_tables(result.summary(), given)
    print(f"\n{given.folder}/comparison.json   all of it (stepsal.Comparison.load)")
