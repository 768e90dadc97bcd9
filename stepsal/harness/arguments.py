"""Interventions as the harness's `--model_args` and a file of settings name them.

In: arguments such as `oeb=0.15,oeb_layers=shallow`, or a TOML file with one table for each setting and the name of a table.
Out: the interventions. What `NAME_OPTION` may be is what a sweep's `[[settings]]` know (docs/sweeps.md).

    [both]
    interventions = [{name = "oeb", tau_max = 0.15}, {name = "smi", layers = "deep"}]
"""

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stepsal.errors import FileError, InputError
from stepsal.interventions.base import INTERVENTIONS, Intervention
from stepsal.sweeps.config import read_config


def interventions_of(given: Mapping[str, Any], *, known: Sequence[str] = ()) -> tuple[Intervention, ...]:
    """The interventions that arguments name, in the order in which they are named.

    `NAME=0.15` gives the strength, `NAME=true` takes the default strength; `NAME_layers`, `NAME_heads` and `NAME_OPTION` say
    the rest. Several indices are joined by `+`, since the harness separates arguments by commas.

    Raises `InputError` for an argument that no intervention has. `known` are the other arguments, which the message names, too.

    >>> interventions_of({"smi": 0.1, "smi_layers": "0+3", "oeb": True})[0].layers
    (0, 3)
    """
    tables: dict[str, dict[str, Any]] = {}
    for key, value in given.items():
        if key in INTERVENTIONS:
            tables[key] = {"name": key} | _strength(key, value)
    for key, value in given.items():
        if key in INTERVENTIONS:
            continue
        owner = max((name for name in INTERVENTIONS if key.startswith(f"{name}_")), key=len, default=None)
        if owner is None:
            near = difflib.get_close_matches(key, [*known, *INTERVENTIONS], n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise InputError(
                f"the model has no argument {key}={value!r}.{hint} It knows {', '.join(known)}; and of the interventions "
                f"{', '.join(INTERVENTIONS)} the strength, NAME=0.1, and each option, NAME_layers=shallow."
            )
        if owner not in tables:
            raise InputError(f"{key}={value!r} is an option of {owner!r}, which is not chosen: give {owner}=true, too")
        option = key.removeprefix(f"{owner}_")
        tables[owner][option] = _indices(value) if option in ("layers", "heads") else value
    return _made(list(tables.values()))


def setting_of(path: str | Path, name: str | None) -> tuple[Intervention, ...]:
    """The interventions of the table `name` in a TOML file of settings.

    Raises:
        FileError: the file cannot be read, or is no TOML.
        InputError: no such table, or a table that is no setting.
    """
    try:
        tables = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"cannot read settings from {path}: {error}. Give a TOML file that you may read.") from error
    except tomllib.TOMLDecodeError as error:
        raise FileError(f"{path} is no TOML: {error}") from error
    if name not in tables:
        raise InputError(f"setting={name!r} is none of {path}: it has {', '.join(map(repr, tables)) or 'no table'}")
    table = tables[name]
    interventions = table.get("interventions") if isinstance(table, Mapping) else None
    if not isinstance(interventions, list) or set(table) != {"interventions"}:
        raise InputError(
            f"[{name}] of {path} must hold interventions = [{{name = 'oeb', ...}}, ...] and nothing else; for the baseline "
            f"interventions = []. Given: {table!r}"
        )
    return _made(interventions)


def _made(tables: list[dict[str, Any]]) -> tuple[Intervention, ...]:
    return read_config({"settings": [{"interventions": tables}]}).settings[0].made()


def _strength(name: str, value: Any) -> dict[str, Any]:
    kind = INTERVENTIONS[name]
    if value is True:
        return {}
    if kind.strength is None or isinstance(value, bool) or not isinstance(value, int | float):
        numbers = "" if kind.strength is None else f", or a number for its {kind.strength}"
        raise InputError(f"{name}={value!r}: give {name}=true{numbers}; leave it out for a run without it")
    return {kind.options()[kind.strength].key: float(value)}


def _indices(value: Any) -> Any:
    """Layers or heads: `3` and `0+3` are lists of indices."""
    if isinstance(value, int) and not isinstance(value, bool):
        return [value]
    if isinstance(value, str) and all(each.isdecimal() for each in value.split("+")):
        return [int(each) for each in value.split("+")]
    return value
