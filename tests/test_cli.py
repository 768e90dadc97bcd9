import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import save_tiny

import stepsal.plugins
import stepsal.saliency.recipe
from stepsal import NumericalError, StepMap, UnsupportedModelError, __version__, step_saliency, write_traces
from stepsal.cli import COMMANDS as MODULES
from stepsal.cli import _parser, main, options
from stepsal.cli.process import prepare_process
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
        (["--format", "mine"], "--format mine is not known"),
        (
            ["--rule", "attention", "--score", "logit"],
            "--rule attention differentiates nothing: leave out --score logit",
        ),
        (["--threads", "0"], "0 must be at least 1"),
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


@pytest.mark.usefixtures("alone")
def test_a_failure_while_working_is_another_status(run, monkeypatch):
    def fail(*given, **options):
        raise NumericalError("not finite in layer 1")

    monkeypatch.setattr(stepsal.saliency.recipe, "step_saliency", fail)
    status, printed, message = run()
    assert (status, printed) == (1, "")
    assert message.endswith("\nstepsal: trace 'one': not finite in layer 1\n")


def test_a_model_that_is_not_supported_is_bad_input(run, monkeypatch):
    def refuse(model):
        raise UnsupportedModelError("its hook never fires")

    monkeypatch.setattr(stepsal.saliency.worker, "check_supported", refuse)
    assert run() == (2, "", "stepsal: its hook never fires\n")


@pytest.mark.usefixtures("alone")
def test_the_same_command_goes_on_after_an_interrupt(run, tmp_path, monkeypatch):
    compute, done = stepsal.saliency.recipe.step_saliency, []

    def interrupted(model, trace, **options):
        if trace.id == "two" and not done:
            done.append(trace.id)
            raise KeyboardInterrupt
        return compute(model, trace, **options)

    monkeypatch.setattr(stepsal.saliency.recipe, "step_saliency", interrupted)
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
    *("paired", "figure", "report", "export"),
)


@pytest.mark.parametrize("command", ["", "traces", *COMMANDS])
def test_help_is_printed(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), "--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: stepsal {command}".rstrip())
    assert ("--plugin MODULE" in printed) == (command in COMMANDS)


def parser_of(command):
    """The parser of a command, `traces convert` included."""
    parser = _parser(command.split()[0])
    for name in command.split():
        (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
        parser = commands.choices[name]
    return parser


def test_help_waits_for_no_heavy_package():
    heavy = ("torch", "numpy", "pandas", "matplotlib", "transformers", "transformer_lens", "pydantic")
    code = f"""
import sys
from stepsal.cli import main
try:
    main(["--help"])
except SystemExit:
    print([name for name in {heavy} if name in sys.modules], file=sys.stderr)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stderr == "[]\n"
    assert all(f"\n    {name}" in ended.stdout for name in MODULES)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_says_what_it_does_and_what_its_default_is(command):
    for action in parser_of(command)._actions:
        assert action.help, action
        switch = isinstance(action, argparse._StoreTrueAction | argparse._HelpAction)
        if action.option_strings and not action.required and not switch and action.dest != "out":
            assert "default: " in action.help, action
        if action.default not in (None, False, argparse.SUPPRESS) and action.default != []:
            assert "(default)s" in action.help, action
        for choice in action.choices or ():
            assert f"{choice}: " in action.help, action


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_example_that_it_can_read(command):
    parser = parser_of(command)
    title, example = parser.epilog.split("\n")
    assert title == "example:"
    for line in example.split("&&"):
        words = shlex.split(line)
        assert words[: 1 + len(command.split())] == ["stepsal", *command.split()]
        parser.parse_args(words[1 + len(command.split()) :])


@pytest.mark.parametrize("command", COMMANDS)
def test_the_model_and_the_output_have_short_names_and_bundled_is_a_model(command):
    for action in parser_of(command)._actions:
        if action.dest in ("model", "out", "quiet"):
            assert action.option_strings == [f"-{action.dest[0]}", f"--{action.dest}"]
        if action.dest == "model":
            assert "'bundled', a hub id" in action.help


def test_the_bundled_model_is_taken_by_its_name_and_quiet_shows_nothing_but_the_result(run, tmp_path):
    status, printed, message = run("--layers", "0", "-q", model="bundled")
    assert (status, message) == (0, "")
    assert printed.startswith("2 step maps in")


def test_tables_are_aligned_for_people_and_in_markdown_on_demand(run, tmp_path, capsys, monkeypatch):
    assert run("-q")[0] == 0
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["diagnose", str(tmp_path / "out"), "-q"]) == 0
    plain = capsys.readouterr().out
    assert "|" not in plain
    assert re.search(r"^shallow lock-in  all \(2\) +0 ", plain, re.MULTILINE)
    assert max(map(len, plain.split(str(tmp_path))[0].splitlines())) <= 80
    assert main(["diagnose", str(tmp_path / "out"), "-q", "--markdown"]) == 0
    assert "| shallow lock-in | all (2) | 0 |" in capsys.readouterr().out


def test_a_comparison_without_wrong_traces_says_which_commands_make_some(run, tmp_path, traces_file, capsys):
    assert run("-q", "--layers", "0")[0] == 0
    grades = [json.dumps({"id": name, "correct": True}) for name in ("one", "two")]
    traces_file.write_text("\n".join(grades) + "\n")
    capsys.readouterr()
    assert main(["compare", str(tmp_path / "out"), "--traces", str(traces_file), "-q"]) == 2
    message = capsys.readouterr().err
    assert "2 right and 0 wrong traces: a comparison needs two of each" in message
    assert "`stepsal generate`" in message


def test_torch_gets_the_threads_that_are_asked_for_and_no_fewer_than_the_container_allows(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for threads, allowed, expected in ((None, 8, 3), (None, 2, 2), (5, 2, 5)):
        torch.set_num_threads(3)
        monkeypatch.setattr("stepsal.models.cores.usable_cores", lambda allowed=allowed: allowed)
        prepare_process(threads)
        assert torch.get_num_threads() == expected
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    torch.set_num_threads(3)
    prepare_process()
    assert torch.get_num_threads() == 3


def test_the_shell_completes_commands_and_options(tmp_path):
    pytest.importorskip("argcomplete")
    code = "from stepsal.cli import main; main()"
    for line, expected in (("stepsal sali", "saliency"), ("stepsal compare --resa", "--resamples")):
        out = tmp_path / "completions"
        asked = {
            "_ARGCOMPLETE": "1",
            "COMP_LINE": line,
            "COMP_POINT": str(len(line)),
            "_ARGCOMPLETE_STDOUT_FILENAME": str(out),
        }
        subprocess.run([sys.executable, "-c", code], env=os.environ | asked, check=False, timeout=60)
        assert out.read_text().split() == [expected]


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


@pytest.mark.parametrize(("size", "said"), [(0, "0.0 kB"), (47_123, "47.1 kB"), (100_000, "0.1 MB"), (2**21, "2.1 MB")])
def test_the_size_of_a_small_file_is_not_said_to_be_zero(tmp_path, size, said):
    (tmp_path / "page").write_bytes(bytes(size))
    assert options.file_size(tmp_path / "page") == said
