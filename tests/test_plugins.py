"""Plug-ins: modules of a user's own, named or installed, make what they define known."""

import sys
from importlib.metadata import EntryPoint

import pytest
from helpers import unchecked

from stepsal import InputError, plugins
from stepsal.diagnosis.metrics import METRICS
from stepsal.plugins import load_plugins, loaded_plugins
from stepsal.traces.formats import FORMATS

SOURCE = """
import stepsal
from stepsal.formats import FORMATS, Format

FORMATS["mine"] = Format("mine", (("<mine>", "</mine>"),))
times = globals().get("times", 0) + 1


@stepsal.metric(label="mass")
def total_mass(stepmap):
    return stepmap.mass.sum((2, 3))
"""


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """A process that has loaded no plug-in, in an empty directory that is not yet on the path."""
    metrics, formats, modules, path = dict(METRICS), dict(FORMATS), set(sys.modules), list(sys.path)
    monkeypatch.setattr(plugins, "_loaded", {})
    monkeypatch.chdir(tmp_path)
    yield
    for known, before in ((METRICS, metrics), (FORMATS, formats)):
        known.clear()
        known.update(before)
    for name in set(sys.modules) - modules:
        del sys.modules[name]
    sys.path[:] = path


def install(monkeypatch, *values: str):
    points = [EntryPoint(value.partition(":")[0].upper(), value, plugins.GROUP) for value in values]
    monkeypatch.setattr(plugins, "entry_points", lambda group: points if group == "stepsal.plugins" else [])


def test_a_module_in_the_current_directory_is_loaded_by_its_name(tmp_path):
    (tmp_path / "mine_1.py").write_text(SOURCE)
    load_plugins(["mine_1"])
    assert METRICS["total_mass"].label == "mass"
    assert "mine" in FORMATS
    assert loaded_plugins() == ("mine_1",)


def test_a_module_of_a_package_is_loaded_by_its_dotted_name(tmp_path):
    (tmp_path / "package_1").mkdir()
    (tmp_path / "package_1" / "metrics.py").write_text(SOURCE)
    load_plugins(["package_1.metrics"])
    assert loaded_plugins() == ("package_1.metrics",)
    assert "total_mass" in METRICS


def test_an_installed_package_says_so_by_an_entry_point(monkeypatch, tmp_path):
    (tmp_path / "mine_2.py").write_text(SOURCE)
    (tmp_path / "mine_3.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    install(monkeypatch, "mine_2", "mine_3:__name__")
    load_plugins()
    assert loaded_plugins() == ("mine_2", "mine_3")
    assert "total_mass" in METRICS


def test_a_plugin_is_loaded_once_however_often_it_is_named(monkeypatch, tmp_path):
    (tmp_path / "mine_4.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    install(monkeypatch, "mine_4", "mine_4")
    load_plugins(["mine_4", "mine_4"])
    load_plugins(["mine_4"])
    assert loaded_plugins() == ("mine_4",)
    assert sys.modules["mine_4"].times == 1


def test_what_is_loaded_can_be_loaded_elsewhere_by_the_same_names(monkeypatch, tmp_path):
    (tmp_path / "mine_5.py").write_text(SOURCE)
    (tmp_path / "mine_6.py").write_text("")
    load_plugins(["mine_6", "mine_5"])
    names = loaded_plugins()
    monkeypatch.setattr(plugins, "_loaded", {})
    load_plugins(names)
    assert loaded_plugins() == names == ("mine_6", "mine_5")


def test_the_current_directory_hides_no_module_that_is_imported_later(tmp_path):
    (tmp_path / "mine_7.py").write_text("import sibling_7")
    (tmp_path / "sibling_7.py").write_text("")
    (tmp_path / "later_7.py").write_text("")
    path = list(sys.path)
    load_plugins(["mine_7"])
    assert sys.path == [*path, str(tmp_path)]
    import later_7  # noqa: F401, what a plug-in imports when it is used


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        (
            "nowhere_8",
            None,
            "plugin 'nowhere_8' cannot be imported: ModuleNotFoundError: No module named",
        ),
        (
            "nowhere_8.metrics",
            None,
            "No module named 'nowhere_8'. Install it, or run the command in the directory that",
        ),
        ("mine_8.py", "", "Give the module's name, 'mine_8', and not its file's"),
        (
            "mine_8",
            "import nothing_8",
            "No module named 'nothing_8'. Mend the module, until `python -c 'import mine_8'` runs",
        ),
        ("mine_8", "x = 1 +", "plugin 'mine_8' cannot be imported: SyntaxError: invalid syntax"),
        ("mine_8", "raise RuntimeError('so')", "RuntimeError: so. Mend the module"),
        (
            "mine_8",
            "import stepsal\n@stepsal.metric(label='x')\ndef lock_in(stepmap): ...",
            "InputError: there is a metric 'lock_in' already",
        ),
        ("", None, "plugin '' cannot be imported: ValueError"),
        (".mine_8", None, "plugin '.mine_8' cannot be imported: TypeError"),
    ],
)
def test_a_plugin_that_cannot_be_imported_is_named_with_the_cause_and_the_fix(tmp_path, name, source, message):
    if source is not None:
        (tmp_path / "mine_8.py").write_text(source)
    with pytest.raises(InputError) as caught:
        load_plugins([name])
    assert message in str(caught.value)
    assert caught.value.__cause__ is not None
    assert loaded_plugins() == ()
    assert "nowhere" not in sys.path


def test_a_broken_plugin_of_an_installed_package_is_named_by_its_entry_point(monkeypatch):
    install(monkeypatch, "nowhere_9:thing")
    with pytest.raises(
        InputError, match="'nowhere_9' cannot .* It is the entry point 'NOWHERE_9' of an installed package"
    ):
        load_plugins()


def test_a_plugin_that_was_mended_loads(tmp_path):
    (tmp_path / "mine_10.py").write_text(SOURCE + "\nraise RuntimeError")
    with pytest.raises(InputError, match="RuntimeError"):
        load_plugins(["mine_10"])
    (tmp_path / "mine_10.py").write_text(SOURCE)
    load_plugins(["mine_10"])
    assert METRICS["total_mass"].label == "mass"


def test_one_name_that_is_no_list_is_refused():
    with pytest.raises(
        InputError, match=r"modules='mine' is one text: give a list of modules' names, such as \['mine'\]"
    ):
        unchecked(load_plugins)("mine")
