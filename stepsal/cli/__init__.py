"""The `stepsal` command: one module for each subcommand, the options that several share in `options`.

A subcommand's module has `HELP`, its line in `stepsal --help`, and `add`, which fills its parser. Only the parser of the
command that is named is filled, and no module here imports torch, pandas or matplotlib before it is needed: help comes at once.

Exit status: 0 when everything is done; 1 when the work failed, was interrupted, or (`traces convert`) left something unread; 2
when what was given cannot be used as it is: an option, the traces, the model or the output folder. After a 2 nothing was
computed in vain, and the message says what to change.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from stepsal.cli import (
    compare,
    demo,
    diagnose,
    export,
    faithfulness,
    figure,
    generate,
    knockout,
    options,
    paired,
    report,
    saliency,
    sweep,
    traces,
)
from stepsal.errors import FileError, InputError, StepsalError, UnsupportedModelError

COMMANDS = {
    module.__name__.rpartition(".")[2]: module
    for module in (
        demo,
        generate,
        traces,
        saliency,
        knockout,
        diagnose,
        compare,
        faithfulness,
        sweep,
        paired,
        figure,
        report,
        export,
    )
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name (those of the process by default), and return its exit status."""
    arguments, given = sys.argv[1:] if arguments is None else arguments, None
    try:
        named = _named(arguments)
        if named is not None:
            _load_plugins(arguments)
        parser = _parser(named)
        _complete(parser)
        given = parser.parse_args(arguments)
        return given.run(given) or 0
    except KeyboardInterrupt:
        said = "interrupted before anything was done" if given is None else given.interrupted
        print(f"stepsal: {said}", file=sys.stderr)
        return 1
    except StepsalError as error:
        said = str(error) if given is None else options.as_options(str(error), given.parser)
        print(f"stepsal: {said}", file=sys.stderr)
        return 2 if isinstance(error, InputError | FileError | UnsupportedModelError) else 1
    except OSError as error:
        if error.filename is None:
            raise
        print(f"stepsal: cannot use {error.filename}: {error.strerror}", file=sys.stderr)
        return 2


def _named(arguments: Sequence[str]) -> str | None:
    """The command that the arguments name, or that the shell asks for completions of."""
    words = os.environ.get("COMP_LINE", "").split() or arguments
    return next((word for word in words if word in COMMANDS), None)


def _load_plugins(arguments: Sequence[str]) -> None:
    """The plug-ins come first: what they define is then known to every option."""
    from stepsal.plugins import load_plugins

    early = argparse.ArgumentParser(add_help=False)
    options.add_plugins(early)
    load_plugins(early.parse_known_args(arguments)[0].plugins)


def _parser(named: str | None) -> argparse.ArgumentParser:
    """The parser of all commands. Only that of the command that is named is filled."""
    from stepsal._version import __version__

    parser = argparse.ArgumentParser(
        prog="stepsal",
        description="Step-to-step saliency maps of reasoning models: which step of its reasoning a model reads.",
        epilog="`stepsal COMMAND --help` explains a command, with an example. To begin with: stepsal demo -o demo",
    )
    parser.add_argument("--version", action="version", version=f"stepsal {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        of_command = commands.add_parser(name, help=command.HELP, formatter_class=options.HelpFormatter)
        if name == named:
            command.add(of_command)
    return parser


def _complete(parser: argparse.ArgumentParser) -> None:
    """Answer the shell when it asks for completions, where argcomplete is installed (`stepsal[completion]`)."""
    if "_ARGCOMPLETE" in os.environ:
        from argcomplete import autocomplete

        autocomplete(parser)
