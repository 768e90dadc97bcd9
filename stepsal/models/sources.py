"""Where a model's name leads: to a folder, a GGUF file, or the hub, which is asked once, shortly; and its configuration.

In: a hub id, a local directory, a GGUF file (here or on the hub), or nothing (the bundled reasoner). Out: what transformers
takes: a folder, the path of a GGUF file, or a hub id that the hub knows. Where the hub cannot be reached, what an earlier
download left in the cache.

Left to themselves, the libraries ask the hub for file after file, each several times over: minutes for a misspelt name.
"""

from pathlib import Path
from typing import Any

from stepsal.checks import kind_of, shown
from stepsal.errors import FileError, InputError
from stepsal.models.gguf_files import gguf_config, is_gguf
from stepsal.models.host import BUNDLED

WAIT = 5.0
"""Seconds in which the hub must answer."""
_GIVE = (
    "Give a Hugging Face model directory, a GGUF file, a hub id such as 'org/name' or a GGUF file there, 'org/name/file.gguf' "
    "(those need the network), or 'bundled'."
)


def locate(name: str | Path | None, needed: str = "config.json") -> str:
    """The folder, the GGUF file or the hub id that a name stands for; None and `"bundled"` are the bundled reasoner.

    A GGUF file on the hub (`"owner/repository/file.gguf"`) is fetched, and stands in the hub's cache from then on.

    Args:
        name: what a user wrote.
        needed: a file without which a local folder is none of what is looked for; empty for any folder.

    Raises:
        InputError: something that is no name.
        FileError: a folder that holds no model, or a name that is neither a folder's, nor a GGUF file's, nor known to the hub,
            or not to be known because the hub cannot be reached.

    >>> locate("bundled") == locate(None)
    True
    """
    if name is None or name == "bundled":
        return str(BUNDLED)
    a_name("name", name)
    source = Path(name).expanduser()
    if source.is_dir():
        if needed and not (source / needed).is_file():
            raise FileError(f"{source} is no model: there is no {needed} in it. Give a Hugging Face model directory.")
        return str(source)
    if source.exists():
        if is_gguf(source):
            return str(source)
        raise FileError(
            f"{source} is no model: it is a file. Expected a folder with config.json, weights and tokenizer. {_GIVE}"
        )
    slashes, here = str(name).count("/"), source.is_absolute() or str(name).startswith((".", "~"))
    if is_gguf(source):
        if here or slashes < 2 or source.parent.is_dir():
            raise FileError(f"there is no file {source}. {_GIVE}")
        return _gguf_on_the_hub(str(name))
    if here or slashes > 1:
        raise FileError(
            f"there is no folder {source}. Give a Hugging Face model directory or a hub id such as 'org/name'."
        )
    return _on_the_hub(str(name))


def read_config(source: str) -> Any:
    """The configuration of what `locate` gave. Raises what transformers raises, and `FileError` for a GGUF file."""
    from transformers import AutoConfig

    return gguf_config(source) if is_gguf(source) else AutoConfig.from_pretrained(source)


def a_name(name: str, value: object) -> None:
    """Raise `InputError` unless the value may be the name of a model; None is the bundled one."""
    if value is not None and not (isinstance(value, str | Path) and str(value).strip()):
        raise InputError(f"{name}={shown(value)} is {kind_of(value)}, and no name of a model. {_GIVE}")


def _on_the_hub(name: str) -> str:
    """The hub id if the hub knows it; the folder of the cache where the hub cannot be reached."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HFValidationError, RepositoryNotFoundError

    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=WAIT)
    except HFValidationError as error:
        raise FileError(f"there is no folder {name!r}, and it is no hub id. {_GIVE}") from error
    except GatedRepoError as error:
        raise FileError(
            f"the model {name!r} is gated on the hub: ask for access on its page there, and log in (`hf auth login`)"
        ) from error
    except RepositoryNotFoundError as error:
        raise FileError(
            f"there is no folder {name!r}, and the hub has no model of that name (or a private one: `hf auth login`). {_GIVE}"
        ) from error
    except EntryNotFoundError:
        return name  # a repository without a model may hold a tokenizer
    except Exception as error:  # whatever the hub's client and its network libraries raise
        return _in_the_cache(name, error)
    return name


def _gguf_on_the_hub(name: str) -> str:
    """The path of a GGUF file in the hub's cache, fetched where it is not there yet."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    owner, repository, file = name.split("/", 2)
    found = _on_the_hub(f"{owner}/{repository}")
    if Path(found).is_dir():  # the hub cannot be reached
        if (Path(found) / file).is_file():
            return str(Path(found) / file)
        raise FileError(f"{name!r}: no such file, and the hub cannot be reached. {_GIVE}")
    try:
        return hf_hub_download(found, file)
    except EntryNotFoundError as error:
        raise FileError(
            f"there is no file {file!r} in {found!r} on the hub. Its page there lists the files."
        ) from error
    except Exception as error:  # whatever the hub's client and its network libraries raise
        raise FileError(
            f"cannot fetch {name!r} from the hub ({error}). Run the same again where the network works: it goes on."
        ) from error


def _in_the_cache(name: str, cause: Exception) -> str:
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import ENDPOINT

    try:
        return snapshot_download(name, local_files_only=True)
    except Exception as error:  # as above
        said = getattr(cause, "response", None)  # it was reached, and has no answer to give now
        status = None if said is None else f"{said.status_code} {getattr(said, 'reason_phrase', '')}".strip()
        reason = status or str(cause).strip().partition("\n")[0][:200] or type(cause).__name__
        what = "cannot be reached" if status is None else "answers with an error"
        raise FileError(f"{name!r}: no such folder, and the hub {what} ({ENDPOINT}: {reason}). {_GIVE}") from error
