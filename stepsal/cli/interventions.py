"""The options of `stepsal generate` that choose interventions: --oeb, --smi, and for these --layers and --heads."""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from stepsal.cli import options
from stepsal.errors import InputError

if TYPE_CHECKING:
    from stepsal.interventions.stepflow import Part

_NAMES = ("oeb", "smi")


def intervention_options() -> argparse.ArgumentParser:
    """A parent for `argparse` with these options."""
    parent = argparse.ArgumentParser(add_help=False)
    group = parent.add_argument_group("interventions")
    group.add_argument("--oeb", nargs="?", type=float, const=0.15, metavar="TAU_MAX", help="odds-equal bridge (0.15)")
    group.add_argument("--smi", nargs="?", type=float, const=0.06, metavar="ALPHA", help="step momentum (0.06)")
    group.add_argument(
        "--layers",
        nargs="+",
        type=_named(options.layers),
        default=[],
        metavar="LAYERS",
        help="shallow, deep, all or indices, for each given; or for one of them: oeb=0,1 smi=deep (default: shallow, deep)",
    )
    group.add_argument(
        "--heads", nargs="+", type=_named(options.indices), default=[], metavar="HEADS", help="likewise: 0,3 or oeb=0,3"
    )
    return parent


def chosen_interventions(given: argparse.Namespace) -> list["Part"]:
    """The interventions that the options describe. Raises `InputError` where they contradict each other."""
    from stepsal.interventions.stepflow import OddsEqualBridge, StepMomentum

    where: dict[str, dict[str, Any]] = {name: {} for name in _NAMES}
    for option in ("layers", "heads"):
        for named, value in getattr(given, option):
            if named and getattr(given, named) is None:
                raise InputError(f"--{option} {named}=... is for --{named}, which is not given")
            for name in [named] if named else _NAMES:
                if option in where[name]:
                    raise InputError(f"--{option} has two values for {name}: write several indices as 0,1")
                where[name][option] = value
    if (given.layers or given.heads) and given.oeb is None and given.smi is None:
        raise InputError("--layers and --heads say where --oeb and --smi act: give one of them")
    chosen: list[Part] = []
    if given.oeb is not None:
        chosen.append(OddsEqualBridge(tau_max=given.oeb, **where["oeb"]))
    if given.smi is not None:
        chosen.append(StepMomentum(alpha=given.smi, **where["smi"]))
    return chosen


def _named(read: Callable[[str], Any]) -> Callable[[str], tuple[str, Any]]:
    """Reads a value with `oeb=` or `smi=` before it as ("oeb", value); one without, for both, as ("", value)."""

    def value(text: str) -> tuple[str, Any]:
        name, equals, rest = text.partition("=")
        if equals and name not in _NAMES:
            raise argparse.ArgumentTypeError(f"{text!r}: an intervention is oeb or smi, as in oeb=0,1")
        return (name, read(rest)) if equals else ("", read(text))

    return value
