"""`stepsal faithfulness`."""

import argparse
from pathlib import Path

from stepsal.cli import options


def add(commands: "options.Commands") -> None:
    parser = commands.add_parser(
        "faithfulness",
        parents=[options.seed(), options.plugins()],
        help="how well step maps rank what knocking steps out does",
        description="Score the step maps in each MAPS by how well they rank what knockouts of the same traces measure, beside "
        "baselines. Writes faithfulness.csv and faithfulness_traces.csv beside the knockouts, and prints a summary.",
    )
    parser.add_argument(
        "maps",
        type=Path,
        nargs="+",
        metavar="MAPS",
        help="what `stepsal saliency` wrote; several folders are compared with each other",
    )
    parser.add_argument(
        "--knockouts", type=Path, metavar="DIR", help="what `stepsal knockout` wrote (default: the first MAPS)"
    )
    parser.add_argument(
        "--reference",
        type=Path,
        metavar="DIR",
        help="knockouts of the same traces in the other mode, scored as if they were maps: an upper reference",
    )
    parser.add_argument(
        "--resamples", type=options.positive, default=2000, help="bootstrap and sign flips (default: %(default)s)"
    )
    parser.set_defaults(run=run, interrupted=options.STARTS_ANEW.format("DIR/faithfulness.csv"))


def run(given: argparse.Namespace) -> None:
    from stepsal.causality.faithfulness import faithfulness
    from stepsal.causality.folder import load_knockouts
    from stepsal.files import atomic_path
    from stepsal.saliency.folder import open_step_maps

    out = given.maps[0] if given.knockouts is None else given.knockouts
    knockouts = load_knockouts(out, progress=True)
    stepmaps = [stepmap for folder in given.maps for stepmap in open_step_maps(folder, progress=True)]
    reference = [] if given.reference is None else load_knockouts(given.reference, progress=True)
    check = faithfulness(stepmaps, knockouts, reference=reference, resamples=given.resamples, seed=given.seed)
    for name, table in (("faithfulness", check.table), ("faithfulness_traces", check.per_trace)):
        with atomic_path(out / f"{name}.csv") as temporary:
            table.to_csv(temporary, index=False)
    print(f"{check.summary()}\n\n{out}/faithfulness.csv   all of it; {out}/faithfulness_traces.csv   trace by trace")
