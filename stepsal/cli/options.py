"""Options that several commands share: functions that add them to a command's parser, and the values that options take.

Names that a plug-in may register (formats, step rules, figures, interventions) are no `choices` here: they are checked when the
command runs, after the plug-ins were loaded.
"""

import argparse
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stepsal.engines.messages import ModelToLoad
    from stepsal.interventions.base import Intervention
    from stepsal.models.host import Model
    from stepsal.traces.tracefile import TraceFile

MODELS = "'bundled', a hub id, a local Hugging Face directory, or a GGUF file (on the hub: owner/repository/file.gguf)"
"""What `--model` takes."""

GOES_ON = "interrupted; what is finished is kept, and the same command goes on from there"
"""What a command says after Ctrl-C where it goes on from what an earlier run finished."""

STARTS_ANEW = "interrupted; {} is as it was before, and the same command starts anew"
"""Likewise where a command writes once, at its end; with the name of what it would have written."""

DEFAULT_WIDTH = 120
"""The width of tables where the terminal's is not known, as in a pipe."""


class HelpFormatter(argparse.HelpFormatter):
    """Wraps texts, and leaves the lines of an example as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith("example:"):
            return "".join(f"{indent}{line}\n" for line in text.splitlines())
        return super()._fill_text(text, width, indent)


def describe(
    parser: argparse.ArgumentParser,
    run: Callable[[argparse.Namespace], int | None],
    *,
    description: str,
    example: str,
    interrupted: str,
) -> None:
    """Say what a command does, with an example, and what runs it; `interrupted` is what it says after Ctrl-C."""
    parser.description, parser.epilog = description, f"example:\n  {example}"
    parser.set_defaults(run=run, interrupted=interrupted, parser=parser)


def add_plugins(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("plug-ins")
    group.add_argument(
        "--plugin",
        action="append",
        default=[],
        dest="plugins",
        metavar="MODULE",
        help="import this module first, for the formats, metrics, interventions, ... that it registers; may be repeated "
        "(default: none but those of installed packages)",
    )


def add_quiet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress bars")


def add_markdown(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--markdown", action="store_true", help="print tables in Markdown, not aligned for a terminal")


def print_tables(text: str, given: argparse.Namespace) -> None:
    """Print a text with tables in Markdown: aligned for the terminal, or as it is with `--markdown`."""
    from stepsal.markdown import plain_text

    print(text if given.markdown else plain_text(text, shutil.get_terminal_size((DEFAULT_WIDTH, 24)).columns))


def add_segmentation(parser: argparse.ArgumentParser, default: str | None = "auto") -> None:
    """How traces are split. `default` None: as the file of traces says."""
    usual = "as the file says, or auto" if default is None else "%(default)s"
    group = parser.add_argument_group("how traces are split into steps")
    group.add_argument(
        "--format",
        type=format_or_markers,
        default=default,
        help="how the model marks its thinking: auto, think, harmony, granite, plain (no marks), or its own pair of markers, "
        f"such as '<reason>,</reason>' (default: {usual})",
    )
    group.add_argument(
        "--steps",
        default=default,
        help=f"where a step ends: auto, paragraph, sentence or line (default: {usual})",
    )


def add_placement(parser: argparse.ArgumentParser) -> None:
    """Where the model runs, in which precision, and as which of TransformerLens' models."""
    group = parser.add_argument_group("where the model runs")
    group.add_argument(
        "--device",
        default="auto",
        help="auto (CUDA, else MPS, else the CPU), cpu, cuda, cuda:0, mps (default: %(default)s)",
    )
    group.add_argument(
        "--device-map",
        metavar="MAP",
        help="for a model larger than one GPU: auto or balanced, in the place of --device (default: one device)",
    )
    group.add_argument(
        "--dtype",
        default="auto",
        help="auto (the checkpoint's on a GPU, float32 on a CPU), float32, bfloat16 or float16 (default: %(default)s)",
    )
    group.add_argument(
        "--host", default="bridge", help="bridge, or hooked_transformer (TransformerLens 3.9; default: %(default)s)"
    )
    group.add_argument(
        "--threads",
        type=positive,
        metavar="N",
        help="threads of the CPU for torch (default: OMP_NUM_THREADS, else every core that the container allows; 1 for each of "
        "several --workers)",
    )
    few_bits = group.add_mutually_exclusive_group()
    for bits, kind in ((4, "NF4"), (8, "LLM.int8")):
        few_bits.add_argument(
            f"--load-in-{bits}bit",
            action="store_const",
            const=f"{bits}bit",
            dest="quantization",
            help=f"quantise the weights to {bits} bits as they are loaded (bitsandbytes' {kind}; default: as they are stored)",
        )


def load_placed_model(given: argparse.Namespace) -> "Model":
    """The model that `--model` names, as the options of `add_placement` say."""
    from stepsal.models.loading import load_model

    return load_model(
        given.model,
        device=given.device,
        dtype=given.dtype,
        device_map=given.device_map,
        host=given.host,
        quantization=given.quantization,
    )


def file_size(path: Path) -> str:
    """How large a file is, as a user is told it: in MB, or in kB where it is small."""
    size = path.stat().st_size
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def add_workers(parser: argparse.ArgumentParser, default: str) -> None:
    """How many models work at a time, and where; `default` says how many where nothing does."""
    group = parser.add_argument_group("who does the work")
    group.add_argument(
        "--engine",
        default="local",
        choices=["local", "ray"],
        help="local: processes on this machine; ray: a Ray cluster (default: %(default)s)",
    )
    group.add_argument(
        "--workers",
        type=positive,
        metavar="N",
        help=f"models at work at a time, each in a process (default: {default})",
    )
    group.add_argument(
        "--address", help="of an existing Ray cluster: auto or ray://host:10001 (default: a cluster of this machine)"
    )


def add_trace_workers(parser: argparse.ArgumentParser) -> None:
    """`add_workers`, for a command that does all of the work itself where these options name no workers."""
    add_workers(parser, "this process does all; with --engine ray, one for each GPU or core")


def model_or_one_to_load(given: argparse.Namespace) -> "Model | ModelToLoad":
    """The model that `--model` names: loaded, or to be loaded by each of the workers where these options name any."""
    from stepsal.engines.messages import ModelToLoad
    from stepsal.engines.workforce import check_engine

    check_engine(given.engine, given.workers, given.address)
    if given.workers is None and given.engine == "local":
        return load_placed_model(given)
    names = ("device", "dtype", "device_map", "host", "quantization")
    placement = {name: getattr(given, name) for name in names}
    return ModelToLoad(path=given.model, threads=given.threads or 1, **placement)


def add_traces(parser: argparse.ArgumentParser, out: str) -> None:
    """The file of traces, the model and the folder of a command that makes a file for each trace; `out` says what for."""
    parser.add_argument(
        "traces",
        type=Path,
        metavar="TRACES.jsonl",
        help='a trace in each line: {"id", "prompt", "response", "correct"}, chat messages, or what a server wrote '
        "(docs/traces.md)",
    )
    parser.add_argument("-m", "--model", required=True, metavar="NAME", help=MODELS)
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help=out)
    parser.add_argument(
        "--skip-broken", action="store_true", help="leave broken lines out, with a warning (default: refuse the file)"
    )


def add_maps_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="what `stepsal saliency` or `stepsal demo` wrote")


def add_resamples(parser: argparse.ArgumentParser, what: str, default: int = 2000) -> None:
    parser.add_argument(
        "--resamples",
        type=positive,
        default=default,
        metavar="N",
        help=f"how many {what} (at least 99; default: %(default)s)",
    )
    add_seed(parser)


def add_seed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of everything random (default: %(default)s)")


def as_options(message: str, parser: argparse.ArgumentParser) -> str:
    """A message as the command line says it: for `dtype='float32'`, which is Python, `--dtype float32` where there is that
    option, and for a pair of texts, `('<a>', '</a>')`, the `'<a>,</a>'` that `--format` takes.

    >>> parser = argparse.ArgumentParser()
    >>> _ = parser.add_argument("--dtype")
    >>> as_options("Load the model in a wider precision (dtype='float32'), or host='bridge'.", parser)
    "Load the model in a wider precision (--dtype float32), or host='bridge'."
    """

    def option(found: re.Match[str]) -> str:
        for action in parser._actions:
            if action.dest == found["name"] and action.option_strings:
                long = action.option_strings[-1]
                if action.nargs != 0:
                    return f"{long} {shlex.quote(found['value'])}"
                if action.const == found["value"]:
                    return long
        return found[0]

    message = re.sub(r"\('([^']+)', '([^']+)'\)", r"'\1,\2'", message)
    return re.sub(r"(?<![\w.])(?P<name>[a-z_]+)=(?P<quote>['\"])(?P<value>[^'\"]+)(?P=quote)", option, message)


# --- what commands with `add_traces` do with these options ------------------------------------------------------------
def check_traces(given: argparse.Namespace) -> None:
    """Raise `InputError` or `FileError` for what can be seen to be wrong before anything is loaded."""
    check_segmentation(given.format or "auto", given.steps or "auto")
    check_placement(given)
    check_out(given.out, folder=True)


def read_traces(given: argparse.Namespace) -> "TraceFile":
    """The traces, split by the model's tokenizer. A broken line shows at once, not after minutes of loading weights."""
    from stepsal.errors import InputError
    from stepsal.traces.convert import PLAIN_PROMPT
    from stepsal.traces.tracefile import open_traces

    chosen = {name: getattr(given, name) for name in ("format", "steps") if getattr(given, name) is not None}
    on_error = "skip" if given.skip_broken else "raise"
    traces = open_traces(given.traces, given.model, on_error=on_error, progress=not given.quiet, **chosen)
    if not traces:
        raise InputError(f"{given.traces} holds no trace. Give one JSON object a line, with 'prompt' and 'response'.")
    if traces.plain:
        print(f"stepsal: {traces.plain} of {len(traces)} traces have {PLAIN_PROMPT}", file=sys.stderr)
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


def columns_of_layers(text: str) -> list[str | int | list[int]]:
    """Layers with commas between them, each for a column of a figure: a band, a layer or a range.

    >>> columns_of_layers("shallow,4,20-22")
    ['shallow', 4, [20, 21, 22]]
    """
    columns: list[str | int | list[int]] = []
    for entry in text.split(","):
        first, _, last = entry.partition("-")
        if entry.isalpha():
            columns.append(entry)  # the name of a band: the map says whether there is such a band
        elif entry.isdecimal():
            columns.append(int(entry))
        elif first.isdecimal() and last.isdecimal() and int(first) <= int(last):
            columns.append(list(range(int(first), int(last) + 1)))
        else:
            raise argparse.ArgumentTypeError(f"{entry!r} is neither a band, nor a layer, nor a range such as 4-7")
    return columns
