"""`stepsal saliency`."""

import argparse
from pathlib import Path

from stepsal.cli import options
from stepsal.cli.process import prepare_process
from stepsal.errors import InputError


def add(commands: "options.Commands") -> None:
    parser = commands.add_parser(
        "saliency",
        parents=[options.segmentation(default=None), options.placement(), options.plugins()],
        help="step maps of your own traces and model",
        description="Compute the step map of each trace. Run again after an interrupt: finished maps are kept.",
    )
    parser.add_argument("traces", type=Path, metavar="TRACES.jsonl", help="one trace a line (see docs/traces.md)")
    parser.add_argument("--model", required=True, metavar="NAME", help=options.MODELS)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the maps")
    parser.add_argument("--objective", default="token", choices=["token", "sequence"])
    parser.add_argument("--rule", default="abs", choices=["abs", "signed", "grad", "attention"])
    parser.add_argument(
        "--layers", default="all", type=options.layers, help="all, shallow, deep or indices such as 0,3,7"
    )
    parser.add_argument(
        "--chunk", default="auto", type=options.chunk_size, help="query positions per pass (default: auto)"
    )
    parser.add_argument("--skip-broken", action="store_true", help="read the other lines of a file with broken ones")
    parser.set_defaults(run=run, interrupted=options.GOES_ON)


def run(given: argparse.Namespace) -> None:
    prepare_process()
    from stepsal.models.loading import load_tokenizer
    from stepsal.saliency.folder import save_step_maps
    from stepsal.saliency.influence import check_options
    from stepsal.traces.files import read_traces

    options.check_segmentation(given.format or "auto", given.steps or "auto")
    options.check_placement(given)
    check_options(0, given.objective, given.rule, given.chunk, None)
    options.check_layers(given.layers, given.model)
    options.check_out(given.out, folder=True)
    chosen = {name: getattr(given, name) for name in ("format", "steps") if getattr(given, name) is not None}
    # The traces first: a broken line shows at once, not after minutes of loading weights.
    tokenizer = load_tokenizer(given.model)
    traces = read_traces(given.traces, tokenizer, on_error="skip" if given.skip_broken else "raise", **chosen)
    if not traces:
        raise InputError(f"{given.traces} holds no trace. Give one JSON object a line, with 'prompt' and 'response'.")
    model = options.load_placed_model(given)
    paths = save_step_maps(
        model, traces, given.out, objective=given.objective, rule=given.rule, layers=given.layers, chunk=given.chunk
    )
    print(f"{len(paths)} step map{'s' * (len(paths) != 1)} in {given.out}/maps (stepsal.StepMap.load)")
