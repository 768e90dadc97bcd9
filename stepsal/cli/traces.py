"""`stepsal traces convert`."""

import argparse
import sys
from pathlib import Path

from stepsal.cli import options
from stepsal.cli.process import prepare_process

HELP = "make a file of traces from the logs of other tools"


def add(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    convert = commands.add_parser("convert", help=HELP, formatter_class=options.HelpFormatter)
    options.describe(
        convert,
        run,
        description="Read logs of servers, batches and chats, and write one file of traces. Each line that gives no trace is "
        "named with the reason; the exit status is then 1.",
        example="stepsal traces convert requests.jsonl results.jsonl -m openai/gpt-oss-20b -o traces.jsonl",
        interrupted=options.STARTS_ANEW.format("the file of --out"),
    )
    convert.add_argument(
        "files", nargs="+", metavar="IN.jsonl", help="the logs; of a batch, the requests and the results"
    )
    convert.add_argument(
        "-o", "--out", type=Path, required=True, metavar="TRACES.jsonl", help="replaced if it is there"
    )
    convert.add_argument(
        "-m",
        "--model",
        required=True,
        metavar="NAME",
        help=f"whose tokenizer and chat template to use: {options.MODELS}",
    )
    options.add_segmentation(convert)
    options.add_plugins(convert)


def run(given: argparse.Namespace) -> int:
    prepare_process()
    from stepsal.models.loading import load_tokenizer
    from stepsal.traces.convert import convert_traces

    tokenizer = load_tokenizer(given.model)
    result = convert_traces(given.files, given.out, tokenizer, format=given.format, steps=given.steps)
    for unread in result.unread:
        print(f"stepsal: {unread}", file=sys.stderr)
    print(result if result.written else f"no trace in these files: {given.out} is not written")
    return 1 if result.unread or not result.written else 0
