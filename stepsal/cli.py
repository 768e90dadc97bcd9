"""The `stepsal` command.

Exit status: 0 done; 1 failed while working, or interrupted; 2 what was given cannot be used as it is: an option, the
traces, the model or the output folder. Then nothing was computed in vain, and the message says what to change.
"""

import argparse
import sys
from pathlib import Path

from stepsal.errors import FileError, InputError, StepsalError, UnsupportedModelError


def main(arguments: list[str] | None = None) -> int:
    parser = _parser()
    given = parser.parse_args(arguments)
    try:
        given.run(given)
    except KeyboardInterrupt:
        print(
            "stepsal: interrupted; what is finished is kept, and the same command goes on from there", file=sys.stderr
        )
        return 1
    except (InputError, FileError, UnsupportedModelError) as error:
        print(f"stepsal: {error}", file=sys.stderr)
        return 2
    except StepsalError as error:
        print(f"stepsal: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    from stepsal import __version__

    parser = argparse.ArgumentParser(prog="stepsal", description="Step-to-step saliency maps of reasoning models.")
    parser.add_argument("--version", action="version", version=f"stepsal {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="the bundled reasoner's step maps, right against wrong (no network)")
    demo.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for traces, maps and figures")
    demo.add_argument("--problems", type=_positive, default=128, help="how many test problems (default: %(default)s)")
    demo.set_defaults(run=_demo)

    saliency = commands.add_parser(
        "saliency",
        help="step maps of your own traces and model",
        description="Compute the step map of each trace. Run again after an interrupt: finished maps are kept.",
    )
    saliency.add_argument("traces", type=Path, metavar="TRACES.jsonl", help="one trace a line (see docs/method.md)")
    saliency.add_argument(
        "--model", required=True, metavar="NAME_OR_DIR", help="hub id or local Hugging Face directory"
    )
    saliency.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the maps")
    saliency.add_argument("--objective", default="token", choices=["token", "sequence"])
    saliency.add_argument("--rule", default="abs", choices=["abs", "signed", "grad", "attention"])
    saliency.add_argument("--layers", default="all", type=_layers, help="all, shallow, deep or indices such as 0,3,7")
    saliency.add_argument("--chunk", default="auto", type=_chunk, help="query positions per pass (default: auto)")
    saliency.add_argument(
        "--format", default=None, help="auto, think, harmony or plain (default: as the file says, or auto)"
    )
    saliency.add_argument("--steps", default=None, help="auto, paragraph, sentence or line (default: likewise)")
    saliency.add_argument("--device", default="auto")
    saliency.add_argument("--dtype", default="auto")
    saliency.add_argument("--skip-broken", action="store_true", help="read the other lines of a file with broken ones")
    saliency.set_defaults(run=_saliency)
    return parser


def _demo(given: argparse.Namespace) -> None:
    _calm()
    from stepsal.demo import run_demo

    print(run_demo(given.out, given.problems))


def _saliency(given: argparse.Namespace) -> None:
    _calm()
    from stepsal.folder import save_step_maps
    from stepsal.host import load_model, load_tokenizer
    from stepsal.trace_files import read_traces

    chosen = {name: getattr(given, name) for name in ("format", "steps") if getattr(given, name) is not None}
    # The traces first: a broken line shows at once, not after minutes of loading weights.
    tokenizer = load_tokenizer(given.model)
    traces = read_traces(given.traces, tokenizer, on_error="skip" if given.skip_broken else "raise", **chosen)
    if not traces:
        raise InputError(f"{given.traces} holds no trace. Give one JSON object a line, with 'prompt' and 'response'.")
    model = load_model(given.model, device=given.device, dtype=given.dtype)
    paths = save_step_maps(
        model, traces, given.out, objective=given.objective, rule=given.rule, layers=given.layers, chunk=given.chunk
    )
    print(f"{len(paths)} step map{'s' * (len(paths) != 1)} in {given.out}/maps (stepsal.StepMap.load)")


def _calm() -> None:
    """Two threads at most on the CPU of a laptop, and no progress bars but our own."""
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(min(2, torch.get_num_threads()))


def _positive(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, at least 1")
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} must be at least 1")
    return value


def _chunk(text: str) -> int | str:
    if text != "auto" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is neither auto nor a whole number")
    return text if text == "auto" else _positive(text)


def _layers(text: str) -> str | list[int]:
    if text.isalpha():
        return text  # a name: whether there is such a band, the model says
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a band nor indices such as 0,3,7") from error
