"""The `stepsal` command: one module for each subcommand, the options that several share in `options`.

Exit status: 0 when everything is done; 1 when the work failed, was interrupted, or (`traces convert`) left something unread; 2
when what was given cannot be used as it is: an option, the traces, the model or the output folder. After a 2 nothing was
computed in vain, and the message says what to change.
"""

import argparse
import sys

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

COMMANDS = (
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


def main(arguments: list[str] | None = None) -> int:
    """Run the command that the arguments name (those of the process by default), and return its exit status."""
    given = None
    try:
        from stepsal.plugins import load_plugins

        # The plug-ins first: what they define is then known to every option.
        early, _ = options.plugins().parse_known_args(arguments)
        load_plugins(early.plugins)
        given = _parser().parse_args(arguments)
        return given.run(given) or 0
    except KeyboardInterrupt:
        said = "interrupted before anything was done" if given is None else given.interrupted
        print(f"stepsal: {said}", file=sys.stderr)
        return 1
    except (InputError, FileError, UnsupportedModelError) as error:
        print(f"stepsal: {error}", file=sys.stderr)
        return 2
    except StepsalError as error:
        print(f"stepsal: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.filename is None:
            raise
        print(f"stepsal: cannot use {error.filename}: {error.strerror}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    from stepsal._version import __version__

    parser = argparse.ArgumentParser(prog="stepsal", description="Step-to-step saliency maps of reasoning models.")
    parser.add_argument("--version", action="version", version=f"stepsal {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return parser
