"""`stepsal knockout`."""

import argparse

from stepsal.cli import options
from stepsal.cli.process import prepare_process

HELP = "what later steps lose when a step is taken out of their sight"


def add(parser: argparse.ArgumentParser) -> None:
    options.describe(
        parser,
        run,
        description="Knock the steps of each trace out of the sight of later steps, one at a time, and measure what these "
        "lose. Run again after an interrupt: finished knockouts are kept.",
        example="stepsal knockout traces.jsonl -m bundled -o run --subsets 64",
        interrupted=options.GOES_ON,
    )
    options.add_traces(parser, "folder for the knockouts; that of the step maps is fine")
    parser.add_argument(
        "--mode",
        default="total",
        choices=["total", "direct"],
        help="total: a step's effect by all paths, also through other steps; direct: only what a token itself reads of it "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--subsets",
        type=options.natural,
        default=0,
        metavar="N",
        help="also remove N random halves of the thinking, for the score LDS (such as 64; default: %(default)s)",
    )
    options.add_seed(parser)
    options.add_quiet(parser)
    options.add_segmentation(parser, default=None)
    options.add_placement(parser)
    options.add_trace_workers(parser)
    options.add_plugins(parser)


def run(given: argparse.Namespace) -> None:
    prepare_process(given.threads)
    from stepsal.causality.folder import save_knockouts

    options.check_traces(given)
    traces = options.read_traces(given)
    paths = save_knockouts(
        options.model_or_one_to_load(given),
        traces,
        given.out,
        mode=given.mode,
        subsets=given.subsets,
        seed=given.seed,
        engine=given.engine,
        workers=given.workers,
        address=given.address,
        progress=not given.quiet,
    )
    print(f"{len(paths)} knockout{'s' * (len(paths) != 1)} in {given.out}/knockouts (stepsal.Knockout.load)")
