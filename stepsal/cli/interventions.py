"""The options of `stepsal generate` that choose interventions, derived from the interventions that are defined.

Each intervention that needs no more than its strength is an option: `--oeb`, `--smi`, ...; `--layers` and `--heads` say where
they act.
"""

import argparse
import inspect
import re
from collections.abc import Callable
from typing import Any

from stepsal.cli import options
from stepsal.errors import InputError
from stepsal.interventions.base import INTERVENTIONS, Intervention


def add_interventions(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("interventions (odds-equal bridge: oeb; step momentum injection: smi)")
    for name, kind in _choosable().items():
        strength = kind.options()[str(kind.strength)]
        group.add_argument(
            f"--{name}",
            nargs="?",
            type=float,
            const=strength.default,
            metavar=strength.key.upper(),
            help=f"{kind.label}: {_first_line(kind)} (without a value: {strength.default}; default: off)",
        )
    group.add_argument(
        "--layers",
        nargs="+",
        type=_named(options.layers),
        default=[],
        metavar="LAYERS",
        help="where the chosen interventions act: shallow, deep, all or indices; or for one of them: oeb=0,1 smi=deep "
        "(default: oeb acts in the shallow, smi in the deep layers)",
    )
    group.add_argument(
        "--heads",
        nargs="+",
        type=_named(options.indices),
        default=[],
        metavar="HEADS",
        help="on which heads: 0,3, or for one of the interventions oeb=0,3 (default: all)",
    )


def chosen_interventions(given: argparse.Namespace) -> list[Intervention]:
    """The interventions that the options describe. Raises `InputError` where they contradict each other."""
    kinds = _choosable()
    strengths = {name: getattr(given, name.replace("-", "_")) for name in kinds}
    where: dict[str, dict[str, Any]] = {name: {} for name in kinds}
    for option in ("layers", "heads"):
        for named, value in getattr(given, option):
            if named and strengths[named] is None:
                raise InputError(f"--{option} {named}=... is for --{named}, which is not given")
            for name in [named] if named else kinds:
                if option in where[name]:
                    raise InputError(f"--{option} has two values for {name}: write several indices as 0,1")
                where[name][option] = value
    chosen = {name: strength for name, strength in strengths.items() if strength is not None}
    if (given.layers or given.heads) and not chosen:
        raise InputError("--layers and --heads say where interventions such as --oeb and --smi act: give one of them")
    makers: dict[str, Any] = kinds
    return [makers[name](**{str(kinds[name].strength): value}, **where[name]) for name, value in chosen.items()]


def _choosable() -> dict[str, type[Intervention]]:
    """The interventions that have a strength and nothing else that must be said."""
    return {
        name: kind
        for name, kind in INTERVENTIONS.items()
        if kind.strength and not any(option.required for option in kind.options().values())
    }


def _first_line(kind: type[Intervention]) -> str:
    """What the intervention does, from its docstring; classes by their options, percent signs as argparse needs them."""
    line = (inspect.getdoc(kind) or kind.__name__).splitlines()[0].rstrip(".:").replace("`", "").replace("%", "%%")
    options = {other.__name__: f"--{name}" for name, other in INTERVENTIONS.items()}
    return re.sub(r"\w+", lambda word: options.get(word[0], word[0]), line)


def _named(read: Callable[[str], Any]) -> Callable[[str], tuple[str, Any]]:
    """Reads a value with `oeb=` or another name before it as ("oeb", value); one without, for all, as ("", value)."""

    def value(text: str) -> tuple[str, Any]:
        name, equals, rest = text.partition("=")
        if equals and name not in _choosable():
            names = ", ".join(_choosable())
            raise argparse.ArgumentTypeError(f"{text!r}: expected one of {names} before the =, as in oeb=0,1")
        return (name, read(rest)) if equals else ("", read(text))

    return value
