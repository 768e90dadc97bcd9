import json
import re
import sys
from pathlib import Path

import pytest
import torch
from conftest import save_tiny

import stepsal.plugins
import stepsal.saliency.folder
from stepsal import NumericalError, StepMap, UnsupportedModelError, __version__, step_saliency, write_traces
from stepsal.cli import main
from stepsal.formats import FORMATS

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny("llama", tmp_path_factory.mktemp("llama-for-the-command"))


@pytest.fixture(autouse=True)
def settings_that_the_command_changes():
    from transformers.utils import logging

    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    logging.enable_progress_bar()


@pytest.fixture
def traces_file(trace, tmp_path):
    from dataclasses import replace

    write_traces(tmp_path / "traces.jsonl", [replace(trace, id="one"), replace(trace, id="two")])
    return tmp_path / "traces.jsonl"


@pytest.fixture
def run(model_folder, traces_file, tmp_path, capsys):
    """Run `stepsal saliency`; gives the exit status, stdout and stderr."""

    def run(*more, traces=traces_file, model=model_folder, out=tmp_path / "out"):
        capsys.readouterr()
        try:
            status = main(["saliency", str(traces), "--model", str(model), "--out", str(out), *more])
        except SystemExit as error:  # argparse's own
            status = error.code
        return status, *capsys.readouterr()

    return run


def test_traces_become_step_maps(run, tmp_path, model_folder, trace):
    status, printed, _ = run("--layers", "0,2", "--chunk", "11")
    assert status == 0
    assert printed == f"2 step maps in {tmp_path}/out/maps (stepsal.StepMap.load)\n"
    expected = step_saliency(stepsal.load_model(model_folder), trace, layers=[0, 2])
    for name in ("one", "two"):
        stepmap = StepMap.load(tmp_path / "out" / "maps" / f"{name}.safetensors")
        assert stepmap.layers == (0, 2)
        assert stepmap.meta["chunk"] == 11
        assert stepmap.steps == trace.steps
        torch.testing.assert_close(stepmap.mass, expected.mass, rtol=1e-5, atol=1e-9)


def test_options_reach_the_maps(run, tmp_path):
    assert (
        run("--rule", "attention", "--layers", "deep", "--steps", "line", "--device", "cpu", "--dtype", "float32")[0]
        == 0
    )
    stepmap = StepMap.load(tmp_path / "out" / "maps" / "one.safetensors")
    assert stepmap.meta["rule"] == "attention"
    assert stepmap.layers == (2,)
    assert run("--objective", "sequence", out=tmp_path / "whole")[0] == 0
    assert StepMap.load(tmp_path / "whole" / "maps" / "two.safetensors").meta["objective"] == "sequence"


def test_other_settings_into_the_same_folder_are_bad_usage(run):
    assert run("--layers", "0")[0] == 0
    status, _, message = run("--layers", "1")
    assert status == 2
    assert "made with other settings (layers [0] -> [1])" in message


def test_a_broken_line_is_bad_input_and_named_before_any_weights_are_loaded(run, traces_file, tmp_path, monkeypatch):
    def never(*given, **options):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("stepsal.models.loading.load_model", never)
    first, second = traces_file.read_text().splitlines()
    traces_file.write_text(f"{first}\n\n{second[:50]}\n")
    status, printed, message = run()
    assert status == 2
    assert printed == ""
    assert message.startswith(f"stepsal: {traces_file}, line 3: not a whole JSON object")
    assert not (tmp_path / "out").exists()


def test_the_other_lines_are_read_where_broken_ones_may_be_skipped(run, traces_file, tmp_path):
    first, second = traces_file.read_text().splitlines()
    traces_file.write_text(f"{first[:50]}\n{second}\n")
    with pytest.warns(UserWarning, match="1 line left out. line 1: not a whole JSON object"):
        status, printed, _ = run("--skip-broken")
    assert status == 0
    assert printed.startswith("1 step map in")
    assert [path.stem for path in (tmp_path / "out" / "maps").iterdir()] == ["two"]


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_a_file_without_a_trace_is_bad_input(run, traces_file, content):
    traces_file.write_text(content)
    status, _, message = run()
    assert status == 2
    assert f"{traces_file} holds no trace" in message


def test_a_trace_that_the_model_cannot_take_is_bad_input(run, traces_file, tmp_path):
    long = {"id": "long", "prompt": "Facts: k = 37.", "response": "<think>First k = 37.</think>" + "7" * 600}
    with traces_file.open("a") as file:
        file.write(json.dumps(long) + "\n")
    status, _, message = run()
    assert status == 2
    assert "trace 'long': the trace has" in message
    assert "the model's context is 512" in message
    assert not (tmp_path / "out").exists()


def test_missing_traces_are_bad_input(run, tmp_path):
    status, _, message = run(traces=tmp_path / "nowhere.jsonl")
    assert status == 2
    assert f"cannot read traces from {tmp_path}/nowhere.jsonl: No such file or directory" in message


def test_a_folder_that_is_no_model_is_bad_input(run, tmp_path):
    for model in (tmp_path, tmp_path / "nowhere" / "at" / "all"):
        status, printed, message = run(model=model)
        assert status == 2
        assert printed == ""
        assert str(model) in message
        assert "Give a Hugging Face model directory" in message


def test_an_out_folder_that_cannot_be_written_is_bad_usage(run, traces_file):
    status, _, message = run(out=traces_file / "below")
    assert status == 2
    assert f"cannot write {traces_file}/below: {traces_file} is a file" in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--layers", "top"], "unknown layers 'top'"),
        (["--layers", "0,x"], "'0,x' is neither a band nor indices such as 0,3,7"),
        (["--layers", "9"], "layer 9 does not exist: the model has layers 0 to 2"),
        (["--chunk", "0"], "0 must be at least 1"),
        (["--chunk", "many"], "'many' is neither auto nor a whole number"),
        (["--chunk", "8", "--objective", "sequence"], "cannot run in chunks"),
        (["--rule", "l2"], "invalid choice: 'l2'"),
        (["--format", "mine"], "format='mine' is not known"),
        (["--device", "toaster"], "unknown device 'toaster'"),
        (["--dtype", "float33"], "unknown dtype 'float33'"),
        (["--frobnicate"], "unrecognized arguments: --frobnicate"),
    ],
)
def test_bad_options_are_bad_usage_before_the_model_is_loaded(run, tmp_path, options, message, monkeypatch):
    def never(*given, **options):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("stepsal.models.loading.load_model", never)
    status, printed, told = run(*options)
    assert status == 2
    assert printed == ""
    assert message in told
    assert not (tmp_path / "out").exists()


def test_a_failure_while_working_is_another_status(run, monkeypatch):
    def fail(*given, **options):
        raise NumericalError("not finite in layer 1")

    monkeypatch.setattr(stepsal.saliency.folder, "step_saliency", fail)
    status, printed, message = run()
    assert (status, printed) == (1, "")
    assert message.endswith("\nstepsal: not finite in layer 1\n")


def test_a_model_that_is_not_supported_is_bad_input(run, monkeypatch):
    def refuse(model):
        raise UnsupportedModelError("its hook never fires")

    monkeypatch.setattr(stepsal.saliency.folder, "check_supported", refuse)
    assert run() == (2, "", "stepsal: its hook never fires\n")


def test_the_same_command_goes_on_after_an_interrupt(run, tmp_path, monkeypatch):
    compute, done = stepsal.saliency.folder.step_saliency, []

    def interrupted(model, trace, **options):
        if trace.id == "two" and not done:
            done.append(trace.id)
            raise KeyboardInterrupt
        return compute(model, trace, **options)

    monkeypatch.setattr(stepsal.saliency.folder, "step_saliency", interrupted)
    status, _, message = run()
    assert status == 1
    assert message.endswith("stepsal: interrupted; what is finished is kept, and the same command goes on from there\n")
    first = tmp_path / "out" / "maps" / "one.safetensors"
    written = first.stat().st_mtime_ns
    assert not first.with_stem("two").exists()
    assert run()[0] == 0
    assert first.with_stem("two").exists()
    assert first.stat().st_mtime_ns == written


COMMANDS = (
    *("demo", "generate", "traces convert", "saliency", "knockout", "diagnose", "compare", "faithfulness", "sweep"),
    *("figure", "report"),
)


@pytest.mark.parametrize("command", ["", "traces", *COMMANDS])
def test_help_is_printed(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), "--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: stepsal {command}".rstrip())
    assert ("--plugin MODULE" in printed) == (command in COMMANDS)


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """The name of a module that registers a format, which is forgotten again after the test."""
    monkeypatch.setattr(stepsal.plugins, "_loaded", {})  # so that no later test tells its workers of this one
    name = "a_plugin_for_the_command"
    source = (
        "from stepsal.formats import FORMATS, Format\nFORMATS['mine'] = Format('mine', (('<think>', '</think>'),))\n"
    )
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    FORMATS.pop("mine", None)
    sys.modules.pop(name, None)


def test_what_a_plugin_registers_is_known_to_the_options(run, plugin):
    assert run("--format", "mine")[0] == 2
    assert run("--format", "mine", "--plugin", plugin)[0] == 0


def test_a_plugin_that_cannot_be_imported_is_bad_usage(run, tmp_path):
    status, printed, message = run("--plugin", "no_such_module_anywhere")
    assert (status, printed) == (2, "")
    assert "no_such_module_anywhere" in message
    assert not (tmp_path / "out").exists()


def test_an_unknown_figure_is_bad_usage_and_the_known_ones_are_named(tmp_path, capsys):
    assert main(["figure", "portrait", str(tmp_path), "--out", str(tmp_path / "a.png")]) == 2
    message = capsys.readouterr().err
    assert "unknown figure 'portrait'" in message
    assert "tokens" in message
    assert "difficulty" in message


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"stepsal {__version__}\n"


def test_a_missing_command_or_argument_is_bad_usage(capsys):
    for arguments in ([], ["saliency"], ["demo"], ["demo", "--out", "x", "--problems", "0"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
        assert capsys.readouterr().err.startswith("usage: stepsal")


@pytest.mark.parametrize(
    ("command", "where", "says"),
    [
        (["demo", "--out", "d"], "stepsal.demo.run_demo", "goes on from there"),
        (["sweep", "c.toml", "--out", "d"], "stepsal.sweeps.run.run_sweep", "goes on from there"),
        (["sweep", "c.toml", "--dry-run"], "stepsal.sweeps.run.estimate", "a dry run writes nothing"),
        (
            ["compare", "d"],
            "stepsal.saliency.folder.open_step_maps",
            "comparison.json is as it was before, and .* starts anew",
        ),
        (
            ["diagnose", "d"],
            "stepsal.saliency.folder.open_step_maps",
            "diagnosis.jsonl is as it was before, and .* starts anew",
        ),
        (
            ["faithfulness", "d"],
            "stepsal.causality.folder.load_knockouts",
            "faithfulness.csv is as it was before, and .* starts anew",
        ),
        (["report", "d"], "stepsal.saliency.folder.open_step_maps", "the page is as it was before, and .* starts anew"),
        (["figure", "maps", "d", "--out", "f"], "stepsal.figures.save.save_figure", "every file is whole, old or new"),
    ],
)
def test_an_interrupt_says_what_is_true_of_the_command(command, where, says, monkeypatch, capsys):
    def interrupted(*given, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(where, interrupted)
    assert main(command) == 1
    assert re.fullmatch(rf"stepsal: interrupted; .*{says}.*\n", capsys.readouterr().err)


def test_a_path_that_may_not_be_used_is_named_whatever_the_system_calls_it(monkeypatch, capsys):
    def forbidden(*given, **options):
        raise PermissionError(13, "Permission denied", "secret/maps")

    monkeypatch.setattr("stepsal.saliency.folder.open_step_maps", forbidden)
    assert main(["compare", "secret"]) == 2
    assert capsys.readouterr().err == "stepsal: cannot use secret/maps: Permission denied\n"
