"""`stepsal faithfulness`."""

import argparse
from pathlib import Path

from stepsal.cli import options

HELP = "how well step maps rank what knocking steps out does"


def add(parser: argparse.ArgumentParser) -> None:
    options.describe(
        parser,
        run,
        description="Score the step maps in each MAPS by how well they rank what knockouts of the same traces measure, beside "
        "baselines. Writes faithfulness.csv and faithfulness_traces.csv beside the knockouts, and prints a summary.",
        example="stepsal faithfulness maps attention --knockouts maps",
        interrupted=options.STARTS_ANEW.format("DIR/faithfulness.csv"),
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
    options.add_resamples(parser, "bootstrap samples and sign flips")
    options.add_markdown(parser)
    options.add_quiet(parser)
    options.add_plugins(parser)


def run(given: argparse.Namespace) -> None:
    from stepsal.causality.faithfulness import faithfulness
    from stepsal.causality.folder import load_knockouts
    from stepsal.files import atomic_path
    from stepsal.saliency.folder import open_step_maps

    out, progress = given.maps[0] if given.knockouts is None else given.knockouts, not given.quiet
    knockouts = load_knockouts(out, progress=progress)
    stepmaps = [stepmap for folder in given.maps for stepmap in open_step_maps(folder, progress=progress)]
    check = faithfulness(stepmaps, knockouts, resamples=given.resamples, seed=given.seed)
    for name, table in (("faithfulness", check.table), ("faithfulness_traces", check.per_trace)):
        with atomic_path(out / f"{name}.csv") as temporary:
            table.to_csv(temporary, index=False)
    options.print_tables(check.summary(), given)
    print(f"\n{out}/faithfulness.csv   all of it; {out}/faithfulness_traces.csv   trace by trace")
