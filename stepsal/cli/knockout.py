"""`stepsal knockout`."""

import argparse

from stepsal.cli import options
from stepsal.cli.process import prepare_process


def add(commands: "options.Commands") -> None:
    parser = commands.add_parser(
        "knockout",
        parents=[
            options.segmentation(default=None),
            options.placement(),
            options.workers(options.EACH_TRACE),
            options.seed(),
            options.plugins(),
        ],
        help="what later steps lose without a step, by taking it out of their sight",
        description="Knock the steps of each trace out of the sight of later steps, one at a time, and measure what these "
        "lose. Run again after an interrupt: finished knockouts are kept.",
    )
    options.add_traces(parser, "folder for the knockouts; that of the step maps is fine")
    parser.add_argument(
        "--mode",
        default="total",
        choices=["total", "direct"],
        help="count paths through other steps, too, or only what a token itself reads (default: %(default)s)",
    )
    parser.add_argument(
        "--subsets",
        type=options.natural,
        default=0,
        metavar="N",
        help="also remove N random halves of the thinking, for the score LDS (such as 64; default: %(default)s)",
    )
    parser.set_defaults(run=run, interrupted=options.GOES_ON)


def run(given: argparse.Namespace) -> None:
    prepare_process()
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
    )
    print(f"{len(paths)} knockout{'s' * (len(paths) != 1)} in {given.out}/knockouts (stepsal.Knockout.load)")
