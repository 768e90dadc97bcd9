"""What the README says works: its Python runs, its commands and files exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readmes_python_runs_as_pasted(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(compile(block, "README.md", "exec"), {})
    assert (tmp_path / "step_map.png").stat().st_size > 5000
    assert "shallow lock-in" in capsys.readouterr().out


@pytest.mark.parametrize("page", [README, *[p.read_text(encoding="utf-8") for p in (ROOT / "docs").glob("*.md")]])
def test_local_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page):
        assert (ROOT / target).exists() or (ROOT / "docs" / target).exists(), target


def test_every_make_target_the_readme_names_exists():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"make (\w+)", README))
    assert named
    assert named <= targets
