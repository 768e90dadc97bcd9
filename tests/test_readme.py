"""What the README and the other pages say is there: the README's Python runs, commands, files and names exist."""

import pkgutil
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
OTHERS = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "stepsal/reasoner/README.md")
PAGES = [*(ROOT / name for name in OTHERS), *ROOT.glob("docs/*.md")]


@pytest.fixture(params=PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def page(request):
    return request.param


@pytest.mark.parametrize("name", ["own_model", "per_head_ablation"])
def test_the_python_of_a_how_to_page_runs_as_pasted(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in re.findall(r"```python\n(.*?)```", (ROOT / f"docs/{name}.md").read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(block, f"{name}.md", "exec"), names)


def test_the_readmes_python_runs_as_pasted(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(compile(block, "README.md", "exec"), {})
    assert (tmp_path / "step_map.png").stat().st_size > 5000
    assert "shallow lock-in" in capsys.readouterr().out


def test_local_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_files_that_a_page_names_exist(page):
    """Paths from the root of the repository; `<name>` in a path stands for a name of the reader's."""
    folders = "stepsal|experiments|tests|figures|benchmarks|docs|notebooks"
    for path in re.findall(rf"(?<![\w/.-])(?:{folders})/[\w./-]*\w", page.read_text(encoding="utf-8")):
        assert (ROOT / path).exists(), path


def test_names_that_a_page_gives_can_be_imported(page):
    for name in re.findall(r"`@?(stepsal(?:\.\w+)+)", page.read_text(encoding="utf-8")):
        pkgutil.resolve_name(name)


def test_every_make_target_the_readme_names_exists():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"make (\w+)", README))
    assert named
    assert named <= targets
