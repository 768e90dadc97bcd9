"""`stepsal saliency`."""

import argparse

from stepsal.cli import options
from stepsal.cli.process import prepare_process


def add(commands: "options.Commands") -> None:
    parser = commands.add_parser(
        "saliency",
        parents=[
            options.segmentation(default=None),
            options.placement(),
            options.workers(options.EACH_TRACE),
            options.plugins(),
        ],
        help="step maps of your own traces and model",
        description="Compute the step map of each trace. Run again after an interrupt: finished maps are kept.",
    )
    options.add_traces(parser, "folder for the maps")
    parser.add_argument("--objective", default="token", choices=["token", "sequence"])
    parser.add_argument("--rule", default="abs", choices=["abs", "signed", "grad", "attention"])
    parser.add_argument(
        "--score",
        default="loss",
        choices=["loss", "logit", "margin"],
        help="what is differentiated (default: %(default)s)",
    )
    parser.add_argument(
        "--layers", default="all", type=options.layers, help="all, shallow, deep or indices such as 0,3,7"
    )
    parser.add_argument(
        "--chunk", default="auto", type=options.chunk_size, help="query positions per pass (default: auto)"
    )
    parser.add_argument("--heads", default="all", choices=["all", "mean"], help="keep all, or their mean alone")
    parser.add_argument(
        "--precision", choices=["bfloat16"], help="store numbers in two bytes, off by 0.4 %% at most (default: exactly)"
    )
    parser.set_defaults(run=run, interrupted=options.GOES_ON)


def run(given: argparse.Namespace) -> None:
    prepare_process()
    from stepsal.saliency.folder import save_step_maps
    from stepsal.saliency.influence import check_options

    options.check_traces(given)
    check_options(0, given.objective, given.rule, given.chunk, None, given.score)
    options.check_layers(given.layers, given.model)
    traces = options.read_traces(given)
    model = options.model_or_one_to_load(given)
    paths = save_step_maps(
        model,
        traces,
        given.out,
        objective=given.objective,
        rule=given.rule,
        score=given.score,
        layers=given.layers,
        chunk=given.chunk,
        heads=given.heads,
        precision=given.precision,
        engine=given.engine,
        workers=given.workers,
        address=given.address,
    )
    if given.precision is not None:
        error = "meta['precision_error'] of each map is the largest error"
        print(f"Numbers are stored in {given.precision} and off by 0.4 % at most: {error}.")
    print(f"{len(paths)} step map{'s' * (len(paths) != 1)} in {given.out}/maps (stepsal.StepMap.load)")
