"""Is it a model that stepsal can work with? Asked by every public function that takes one, before any work."""

from pathlib import Path
from typing import Any

from stepsal.checks import kind_of, shown
from stepsal.errors import InputError


def a_model(name: str, value: Any) -> None:
    """Raise `InputError` unless the value looks like a model of TransformerLens; `check_supported` says more.

    >>> a_model("model", "org/name")
    Traceback (most recent call last):
    stepsal.errors.InputError: model='org/name' is a name, and no model: load it first, stepsal.load_model('org/name')
    """
    if hasattr(value, "cfg") and hasattr(value, "hook_dict"):
        return
    if isinstance(value, str | Path):
        raise InputError(
            f"{name}={shown(value)} is a name, and no model: load it first, stepsal.load_model({str(value)!r})"
        )
    if hasattr(value, "config") and hasattr(value, "forward"):
        raise InputError(
            f"{name} is a {type(value).__name__}, a model of Hugging Face without the hooks that stepsal needs: give its "
            "folder or hub id to stepsal.load_model, and what it returns to this function (or wrap yours: transformer_lens."
            "model_bridge.TransformerBridge.boot_transformers(name, hf_model=model, tokenizer=tokenizer))"
        )
    raise InputError(
        f"{name}={shown(value)} is {kind_of(value)}: expected a model of TransformerLens. Give what stepsal.load_model returns."
    )
