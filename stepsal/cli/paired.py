"""`stepsal paired`."""

import argparse
from pathlib import Path

from stepsal.cli import options

HELP = "two logged runs on the same problems: is one better?"


def add(parser: argparse.ArgumentParser) -> None:
    options.describe(
        parser,
        run,
        description="Compare two runs problem by problem: samples of lm-evaluation-harness (a file, or a folder of them), "
        "graded traces (JSONL), or a sweep's setting, FOLDER:SETTING. Prints a table with a row for each task.",
        example="stepsal paired before.jsonl after.jsonl --names baseline StepFlow -o paired.json",
        interrupted=options.STARTS_ANEW.format("--out"),
    )
    parser.add_argument("baseline", metavar="A", help="the run to compare with")
    parser.add_argument("treated", metavar="B", help="the run that is compared with it")
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        metavar="FILE.json",
        help="keep it, for `stepsal figure benchmark` (default: print it only)",
    )
    parser.add_argument("--names", nargs=2, metavar=("A", "B"), help="what the table calls them (default: their paths)")
    parser.add_argument(
        "--tasks", nargs="+", metavar="TASK", help="of those that both have (default: all, in both the same)"
    )
    parser.add_argument(
        "--metric",
        metavar="NAME",
        help="where a task has several; of traces and sweeps: correct or score (default: correct; else the only one)",
    )
    parser.add_argument(
        "--filter", metavar="NAME", help="of the harness, where a task has several (default: the only one)"
    )
    parser.add_argument("--latex", action="store_true", help="print LaTeX (booktabs)")
    options.add_resamples(parser, "bootstrap samples and sign flips, for scores that are not 0 or 1", default=10_000)
    options.add_markdown(parser)
    options.add_plugins(parser)


def run(given: argparse.Namespace) -> None:
    from stepsal.ablation.paired_runs import paired_runs

    if given.out is not None:
        options.check_out(given.out)
    comparison = paired_runs(
        given.baseline,
        given.treated,
        tasks=given.tasks,
        metric=given.metric,
        filter=given.filter,
        names=tuple(given.names) if given.names else None,
        resamples=given.resamples,
        seed=given.seed,
    )
    if given.out is not None:
        comparison.save(given.out)
    table = comparison.formatted()
    if given.latex:
        print(table.latex("tab:paired"), end="")
    else:
        options.print_tables(table.markdown().rstrip("\n"), given)
