"""What tables and figures call the settings of a sweep.

In: `Setting`s. Out: for each setting a title that describes it in full, and a label that names only what distinguishes it from
the other settings of its kind.
"""

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from stepsal.interventions.base import Intervention
from stepsal.sweeps.settings import Setting, heads_named, kind_label, ranges

_WHERE = ("layers", "heads")
_IN_FULL = {"OEB": "odds-equal bridge (OEB)", "SMI": "step momentum injection (SMI)"}


@dataclass(frozen=True)
class Label:
    """What a setting is called beside the other settings of a sweep.

    text: what distinguishes it from the others of its kind. common: what it has in common with all of them.
    """

    text: str
    common: str


def label_settings(settings: Sequence[Setting]) -> dict[Setting, Label]:
    """A label for each setting: fields that vary within its kind are in `text`, fields that do not are in `common`."""
    varied = varied_fields(settings)
    labels = {}
    for setting in settings:
        pairs = list(zip(setting.interventions, varied[setting.kind], strict=True))
        words = [describe(intervention, names) for intervention, names in pairs if names]
        fixed = [
            describe(intervention, [name for name in shown_fields(intervention) if name not in names])
            for intervention, names in pairs
        ]
        text = ", ".join([kind_label(setting.kind), *(["; ".join(words)] if words else [])])
        labels[setting] = Label(text, "; ".join(phrase for phrase in fixed if phrase))
    return labels


def title(setting: Setting) -> str:
    """The setting described in full.

    >>> from stepsal import OddsEqualBridge
    >>> title(Setting((OddsEqualBridge(layers=(0, 1)),)))
    'OEB, layers 0–1, τ_max 0.15'
    """
    words = "; ".join(describe(intervention, shown_fields(intervention)) for intervention in setting.interventions)
    name = kind_label(setting.kind) + (" (control)" if setting.controls_for else "")
    return f"{name}, {words}" if words else name


def varied_fields(settings: Sequence[Setting], without: str | None = None) -> dict[str, list[list[str]]]:
    """The fields that differ among the settings of a kind, for each kind and each of its interventions.

    The field `without` is left out.
    """
    groups: dict[str, list[Setting]] = defaultdict(list)
    for setting in settings:
        groups[setting.kind].append(setting)
    return {
        kind: [
            [name for name in _fields(same[0]) if name != without and len({_as_json(one, name) for one in same}) > 1]
            for same in zip(*(setting.interventions for setting in group), strict=True)
        ]
        for kind, group in groups.items()
    }


def shown_fields(intervention: Intervention) -> list[str]:
    """The fields worth showing: where the intervention acts, its strength, and the options that are not at their default."""
    options = intervention.options()
    return [
        name
        for name in _fields(intervention)
        if name in _WHERE
        or name == intervention.strength
        or options[name].required
        or getattr(intervention, name) != options[name].default
    ]


def describe(intervention: Intervention, names: Sequence[str]) -> str:
    """Some of the fields in words, such as `layers 0–1, τ_max 0.15`.

    Where heads are described, the layers are left out: a head's name contains its layer.
    """
    words = []
    layers: Any = intervention.layers
    for name in names:
        if name == "layers":
            if intervention.heads is None or "heads" not in names:
                words.append(f"layer{'s' * (len(layers) > 1)} {ranges(layers).replace('-', '–')}")
        elif name == "heads":
            if intervention.heads is not None:
                pairs = head_pairs(intervention)
                words.append(f"head{'s' * (len(pairs) > 1)} " + " ".join(f"{layer}.{head}" for layer, head in pairs))
        else:
            option = intervention.options()[name]
            words.append(f"{option.symbol} {option.shown(getattr(intervention, name))}")
    return ", ".join(words)


def head_pairs(intervention: Intervention) -> list[tuple[int, int]]:
    """The pairs (layer, head) of the heads that the intervention names."""
    return [(layer, head) for layer, heads in heads_named(intervention).items() for head in heads or ()]


def acts_alike(setting: Setting, control: Setting) -> bool:
    """Whether a control acts where the setting does, with the same values of every option that both have."""
    return all(
        one[name] == other[name]
        for one, other in zip(setting.records, control.records, strict=True)
        for name in one.keys() & other.keys() - {"part"}
    )


def _fields(intervention: Intervention) -> list[str]:
    """The names of an intervention's fields: layers, heads, the strength, then the other options."""
    strength = [intervention.strength] if intervention.strength else []
    return [*_WHERE, *strength, *(name for name in intervention.options() if name != intervention.strength)]


def _as_json(intervention: Intervention, name: str) -> str:
    own: Any = intervention
    return json.dumps(asdict(own)[name])


def in_full(*texts: str) -> str:
    """A sentence that spells out the abbreviations that these texts use; empty where they use none.

    >>> in_full("OEB + SMI, layers 0–1"), in_full("PASTA")
    ('Odds-equal bridge (OEB), step momentum injection (SMI).', '')
    """
    words = {word for text in texts for word in re.findall(r"\w+", text)}
    names = ", ".join(name for short, name in _IN_FULL.items() if short in words)
    return f"{names[0].upper()}{names[1:]}." if names else ""
