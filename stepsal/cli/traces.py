"""`stepsal traces convert`."""

import argparse
import sys
from pathlib import Path

from stepsal.cli import options
from stepsal.cli.process import prepare_process


def add(commands: "options.Commands") -> None:
    traces = commands.add_parser("traces", help="traces of other tools to ours").add_subparsers(
        title="commands", required=True, metavar="COMMAND"
    )
    parser = traces.add_parser(
        "convert",
        parents=[options.segmentation(), options.plugins()],
        help="logs of servers, batches and chats to one file of traces",
        description="Write one file of traces, and say why of each line that gave none; then the exit status is 1.",
    )
    parser.add_argument("files", nargs="+", metavar="IN.jsonl", help="a batch's requests and results: both files")
    parser.add_argument("--out", type=Path, required=True, metavar="TRACES.jsonl", help="replaced if it is there")
    parser.add_argument("--model", required=True, metavar="NAME", help="whose tokenizer and chat template to use")
    parser.set_defaults(run=convert, interrupted=options.STARTS_ANEW.format("the file of --out"))


def convert(given: argparse.Namespace) -> int:
    prepare_process()
    from stepsal.models.loading import load_tokenizer
    from stepsal.traces.convert import convert_traces

    tokenizer = load_tokenizer(given.model)
    result = convert_traces(given.files, given.out, tokenizer, format=given.format, steps=given.steps)
    for unread in result.unread:
        print(f"stepsal: {unread}", file=sys.stderr)
    print(result if result.written else f"no trace in these files: {given.out} is not written")
    return 1 if result.unread or not result.written else 0
