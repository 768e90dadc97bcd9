"""`stepsal saliency`."""

import argparse

from stepsal.cli import options
from stepsal.cli.process import prepare_process

HELP = "step maps of your own traces and model"


def add(parser: argparse.ArgumentParser) -> None:
    options.describe(
        parser,
        run,
        description="Compute the step map of each trace. Run again after an interrupt: finished maps are kept.",
        example="stepsal saliency traces.jsonl -m bundled -o run --score logit",
        interrupted=options.GOES_ON,
    )
    options.add_traces(parser, "folder for the maps")
    parser.add_argument(
        "--objective",
        default="token",
        choices=["token", "sequence"],
        help="whose loss L is differentiated. token: each row's own next token (the paper's equation); sequence: the sum over "
        "the whole trace (the official code) (default: %(default)s)",
    )
    parser.add_argument(
        "--rule",
        default="abs",
        choices=["abs", "signed", "grad", "attention", "value_attention"],
        help="what an entry is, for attention A. abs: |A * dL/dA|; signed: A * dL/dA; grad: |dL/dA|; attention: A alone, a "
        "baseline; value_attention: A times the norm of what the value adds, another baseline (default: %(default)s)",
    )
    parser.add_argument(
        "--score",
        default="loss",
        choices=["loss", "logit", "margin"],
        help="what is differentiated in the place of L. loss: L itself, which is flat where the model is sure; logit: that of "
        "the token that follows; margin: that logit minus the largest other one (default: %(default)s)",
    )
    parser.add_argument(
        "--layers",
        default="all",
        type=options.layers,
        help="all, shallow, deep or indices, 0,3,7 (default: %(default)s)",
    )
    parser.add_argument(
        "--chunk",
        default="auto",
        type=options.chunk_size,
        metavar="N",
        help="query positions in a pass; fewer take less memory (default: %(default)s, as memory allows)",
    )
    parser.add_argument(
        "--heads",
        default="all",
        choices=["all", "mean"],
        help="what a map keeps. all: every head; mean: only the mean of a layer's heads (default: %(default)s)",
    )
    parser.add_argument(
        "--precision",
        choices=["bfloat16"],
        help="how numbers are stored. bfloat16: in two bytes, off by 0.4 %% at most (default: exactly, in four)",
    )
    options.add_quiet(parser)
    options.add_segmentation(parser, default=None)
    options.add_placement(parser)
    options.add_trace_workers(parser)
    options.add_plugins(parser)


def run(given: argparse.Namespace) -> None:
    prepare_process(given.threads)
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
        progress=not given.quiet,
    )
    if given.precision is not None:
        error = "meta['precision_error'] of each map is the largest error"
        print(f"Numbers are stored in {given.precision} and off by 0.4 % at most: {error}.")
    print(f"{len(paths)} step map{'s' * (len(paths) != 1)} in {given.out}/maps (stepsal.StepMap.load)")
