"""Options that several commands share, as parents for `argparse`, and the values that options take.

A parent with a title makes a group of its own in a command's help. Names that a plug-in may register (formats, step rules,
figures, interventions) are no `choices` here: they are checked when the command runs, after the plug-ins were loaded.
"""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stepsal.engines.messages import ModelToLoad
    from stepsal.interventions.base import Intervention
    from stepsal.models.host import Model
    from stepsal.traces.trace import Trace

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]
    """What a command's `add` adds its parser to."""


EACH_TRACE = "so many processes (or Ray actors), each with the model, make one trace after the other, the longest first"
"""What `--workers` does where traces are handed out."""

MODELS = "hub id, local Hugging Face directory, or GGUF file (on the hub: owner/repository/file.gguf)"
"""What `--model` takes."""

GOES_ON = "interrupted; what is finished is kept, and the same command goes on from there"
"""What a command says after Ctrl-C where it goes on from what an earlier run finished."""

STARTS_ANEW = "interrupted; {} is as it was before, and the same command starts anew"
"""Likewise where a command writes once, at its end; with the name of what it would have written."""


def plugins() -> argparse.ArgumentParser:
    parent, group = _titled("plug-ins")
    group.add_argument(
        "--plugin",
        action="append",
        default=[],
        dest="plugins",
        metavar="MODULE",
        help="import this module first, for the formats, metrics, interventions, ... that it registers; may be repeated",
    )
    return parent


def segmentation(default: str | None = "auto") -> argparse.ArgumentParser:
    """How traces are split. `default` None: as the file of traces says."""
    formats = "auto, think, harmony, granite or plain, or your model's own pair of markers: '<reason>,</reason>'"
    steps = "auto, paragraph, sentence or line"
    if default is None:
        formats, steps = f"{formats} (default: as the file says, or auto)", f"{steps} (default: likewise)"
    parent, group = _titled("how traces are split into steps")
    group.add_argument("--format", type=format_or_markers, default=default, help=formats)
    group.add_argument("--steps", default=default, help=steps)
    return parent


def placement() -> argparse.ArgumentParser:
    """Where the model runs, in which precision, and as which of TransformerLens' models."""
    parent, group = _titled("where the model runs")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:0, mps, ... (default: %(default)s)")
    group.add_argument(
        "--device-map",
        metavar="MAP",
        help="for a model larger than one GPU: 'auto' or 'balanced', in the place of --device",
    )
    group.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16 (default: %(default)s)")
    group.add_argument(
        "--host", default="bridge", help="bridge, or hooked_transformer (TransformerLens 3.9; default: %(default)s)"
    )
    few_bits = group.add_mutually_exclusive_group()
    for bits, kind in ((4, "NF4"), (8, "LLM.int8")):
        few_bits.add_argument(
            f"--load-in-{bits}bit",
            action="store_const",
            const=f"{bits}bit",
            dest="quantization",
            help=f"quantise the weights to {bits} bits as they are loaded (bitsandbytes' {kind})",
        )
    return parent


def load_placed_model(given: argparse.Namespace) -> "Model":
    """The model that `--model` names, as the options of `placement` say."""
    from stepsal.models.loading import load_model

    return load_model(
        given.model,
        device=given.device,
        dtype=given.dtype,
        device_map=given.device_map,
        host=given.host,
        quantization=given.quantization,
    )


def workers(each: str) -> argparse.ArgumentParser:
    """How many models work at a time, and where; `each` says what is handed out to them."""
    parent, group = _titled("who does the work")
    group.add_argument("--engine", default="local", choices=["local", "ray"], help="this machine, or a Ray cluster")
    group.add_argument("--workers", type=positive, default=None, metavar="N", help=each)
    group.add_argument("--address", default=None, help="of an existing Ray cluster, such as auto or ray://host:10001")
    return parent


def model_or_one_to_load(given: argparse.Namespace) -> "Model | ModelToLoad":
    """The model that `--model` names: loaded, or to be loaded by each of the workers where these options name any."""
    from stepsal.engines.messages import ModelToLoad
    from stepsal.engines.workforce import check_engine

    check_engine(given.engine, given.workers, given.address)
    if given.workers is None and given.engine == "local":
        return load_placed_model(given)
    names = ("device", "dtype", "device_map", "host", "quantization")
    return ModelToLoad(path=given.model, **{name: getattr(given, name) for name in names})


def add_traces(parser: argparse.ArgumentParser, out: str) -> None:
    """The file of traces, the model and the folder of a command that makes a file for each trace; `out` says what for."""
    parser.add_argument("traces", type=Path, metavar="TRACES.jsonl", help="one trace a line (see docs/traces.md)")
    parser.add_argument("--model", required=True, metavar="NAME", help=MODELS)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help=out)
    parser.add_argument("--skip-broken", action="store_true", help="read the other lines of a file with broken ones")


def maps_folder() -> argparse.ArgumentParser:
    parent = argparse.ArgumentParser(add_help=False)
    parent.add_argument("folder", type=Path, metavar="DIR", help="what `stepsal saliency` or `stepsal demo` wrote")
    return parent


def seed() -> argparse.ArgumentParser:
    parent = argparse.ArgumentParser(add_help=False)
    parent.add_argument("--seed", type=int, default=0, help="of everything random (default: %(default)s)")
    return parent


def _titled(title: str) -> tuple[argparse.ArgumentParser, argparse._ArgumentGroup]:
    parent = argparse.ArgumentParser(add_help=False)
    return parent, parent.add_argument_group(title)


# --- what commands with `add_traces` do with these options ------------------------------------------------------------
def check_traces(given: argparse.Namespace) -> None:
    """Raise `InputError` or `FileError` for what can be seen to be wrong before anything is loaded."""
    check_segmentation(given.format or "auto", given.steps or "auto")
    check_placement(given)
    check_out(given.out, folder=True)


def read_traces(given: argparse.Namespace) -> "list[Trace]":
    """The traces, split by the model's tokenizer. A broken line shows at once, not after minutes of loading weights."""
    from stepsal.errors import InputError
    from stepsal.models.loading import load_tokenizer
    from stepsal.traces.files import read_traces

    chosen = {name: getattr(given, name) for name in ("format", "steps") if getattr(given, name) is not None}
    tokenizer = load_tokenizer(given.model)
    traces = read_traces(given.traces, tokenizer, on_error="skip" if given.skip_broken else "raise", **chosen)
    if not traces:
        raise InputError(f"{given.traces} holds no trace. Give one JSON object a line, with 'prompt' and 'response'.")
    return traces


# --- what can be checked before anything is loaded --------------------------------------------------------------------
def check_segmentation(format: str, steps: str) -> None:
    """Raise `InputError` for a format or a rule for steps that is not known."""
    from stepsal.traces.formats import find_formats, find_rule

    find_formats(format)
    find_rule(steps, "paragraph")


def check_layers(chosen: "str | list[int]", model: str) -> None:
    """Raise `InputError` for the name of no band, an index that is there twice, or one that the model lacks."""
    from stepsal.models.layer_choice import resolve_layers
    from stepsal.models.loading import sizes

    layers, _ = sizes(model) or (None, None)
    if layers is not None:
        resolve_layers(chosen, layers)


def check_heads(interventions: "list[Intervention]", model: str | None) -> None:
    """Raise `InputError` for an intervention in layers or on heads that the model lacks."""
    from stepsal.models.loading import sizes

    if interventions and (size := sizes(model)) is not None:
        for each in interventions:
            each.heads_by_layer(*size)


def check_placement(given: argparse.Namespace) -> None:
    """Raise `InputError` for a device, a precision, a host or a quantization that cannot be used here."""
    from stepsal.models.loading import check_placement

    check_placement(given.device, given.dtype, given.device_map, given.host, given.quantization)


def check_out(path: Path, *, folder: bool = False) -> None:
    """Raise `FileError` where a file, or a folder, cannot be written at `path`."""
    from stepsal.errors import FileError

    kind = "folder" if folder else "file"
    if path.exists() and path.is_dir() != folder:
        raise FileError(f"--out {path} is a {'file' if folder else 'folder'}: give the name of a {kind} to write")
    there = path
    while not there.exists() and there != there.parent:
        there = there.parent
    if there != path or folder:
        writable, reason = there.is_dir() and os.access(there, os.W_OK | os.X_OK), "you may not write there"
        if not there.is_dir():
            reason = f"{there} is a file"
        if not writable:
            raise FileError(f"cannot write {path}: {reason}. Give an --out {kind} where you may write.")


def natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, at least 0")
    return int(text)


def positive(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, at least 1")
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} must be at least 1")
    return value


def format_or_markers(text: str) -> str | tuple[str, str]:
    """A format's name, or a pair of markers with a comma between them."""
    if "," not in text:
        return text
    markers = tuple(marker.strip() for marker in text.split(","))
    if len(markers) != 2 or not all(markers) or markers[0] == markers[1]:
        raise argparse.ArgumentTypeError(f"{text!r} is not a pair of markers such as '<reason>,</reason>'")
    return markers


def chunk_size(text: str) -> int | str:
    if text != "auto" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is neither auto nor a whole number")
    return text if text == "auto" else positive(text)


def indices(text: str) -> list[int]:
    try:
        return [int(index) for index in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of indices such as 0,3,7") from error


def layers(text: str) -> str | list[int]:
    if text.isalpha():
        return text  # the name of a band: the model says whether there is such a band
    try:
        return [int(index) for index in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a band nor indices such as 0,3,7") from error
