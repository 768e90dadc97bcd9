"""Every public function says at once, and with the fix, that it was given something else than it takes."""

import inspect

import pytest
import torch

import stepsal
from stepsal import InputError, Trace, diagnose, load_tokenizer, plot, step_saliency, stepflow, token_influence
from stepsal.models.host import BUNDLED


@pytest.fixture(scope="module")
def things(reasoner, tmp_path_factory):
    """What is mistaken for something else."""
    from transformers import AutoModelForCausalLM

    trace = Trace.from_text(reasoner.tokenizer, "Facts: k = 37.<think>", "First k = 37.</think>So 37.")
    stepmap = step_saliency(reasoner, trace, layers=[0])
    return {
        "model": reasoner,
        "raw": AutoModelForCausalLM.from_pretrained(BUNDLED),
        "trace": trace,
        "stepmap": stepmap,
        "diagnosis": diagnose(stepmap),
        "tokenizer": reasoner.tokenizer,
        "folder": tmp_path_factory.mktemp("calls"),
    }


HOOKS, LOAD, ONE_TRACE, ONE_MAP = "without the hooks", r"stepsal.load_model\('org/name'\)", "one Trace", "one StepMap"
CALLS = {
    # a raw Hugging Face model, and a model's name
    "step_saliency raw": (lambda t: stepsal.step_saliency(t["raw"], t["trace"]), HOOKS),
    "token_influence raw": (lambda t: stepsal.token_influence(t["raw"], t["trace"]), HOOKS),
    "generate raw": (lambda t: stepsal.generate(t["raw"], ["2+2?"]), HOOKS),
    "intervene raw": (lambda t: stepsal.intervene(t["raw"], stepflow()).__enter__(), HOOKS),
    "save_step_maps raw": (lambda t: stepsal.save_step_maps(t["raw"], [t["trace"]], t["folder"]), HOOKS),
    "step_saliency name": (lambda t: stepsal.step_saliency("org/name", t["trace"]), LOAD),
    "token_influence name": (lambda t: stepsal.token_influence("org/name", t["trace"]), LOAD),
    "generate name": (lambda t: stepsal.generate("org/name", ["2+2?"]), LOAD),
    "intervene name": (lambda t: stepsal.intervene("org/name", stepflow()).__enter__(), LOAD),
    "save_step_maps name": (lambda t: stepsal.save_step_maps("org/name", [t["trace"]], t["folder"]), LOAD),
    "step_saliency swapped": (lambda t: stepsal.step_saliency(t["trace"], t["model"]), "is a Trace: expected a model"),
    "step_saliency none": (lambda t: stepsal.step_saliency(None, t["trace"]), "model=None is None"),
    "load_model model": (lambda t: stepsal.load_model(t["raw"]), "no name of a model"),
    "load_tokenizer tokenizer": (lambda t: stepsal.load_tokenizer(t["tokenizer"]), "no name of a model"),
    "load_model empty": (lambda t: stepsal.load_model(" "), "no name of a model"),
    # a list for a trace, and a trace for a list
    "step_saliency list": (
        lambda t: stepsal.step_saliency(t["model"], [t["trace"]]),
        f"a list of Trace: expected {ONE_TRACE}",
    ),
    "step_saliency text": (lambda t: stepsal.step_saliency(t["model"], "2+2?"), ONE_TRACE),
    "token_influence list": (lambda t: stepsal.token_influence(t["model"], [t["trace"]]), ONE_TRACE),
    "save_step_maps trace": (
        lambda t: stepsal.save_step_maps(t["model"], t["trace"], t["folder"]),
        r"make a list, \[trace\]",
    ),
    "save_step_maps file": (
        lambda t: stepsal.save_step_maps(t["model"], "t.jsonl", t["folder"]),
        "stepsal.read_traces",
    ),
    "write_traces trace": (lambda t: stepsal.write_traces(t["folder"] / "a", t["trace"]), r"make a list, \[trace\]"),
    "write_traces swapped": (lambda t: stepsal.write_traces([t["trace"]], t["folder"] / "a"), "expected the path"),
    "write_traces texts": (
        lambda t: stepsal.write_traces(t["folder"] / "a", ["2+2?"]),
        r"traces\[0\]='2\+2\?' is a str",
    ),
    "step_knockout raw": (lambda t: stepsal.step_knockout(t["raw"], t["trace"]), HOOKS),
    "step_knockout list": (
        lambda t: stepsal.step_knockout(t["model"], [t["trace"]]),
        f"a list of Trace: expected {ONE_TRACE}",
    ),
    "save_knockouts raw": (lambda t: stepsal.save_knockouts(t["raw"], [t["trace"]], t["folder"]), HOOKS),
    "save_knockouts trace": (
        lambda t: stepsal.save_knockouts(t["model"], t["trace"], t["folder"]),
        r"make a list, \[trace\]",
    ),
    "read_thought_anchors name": (
        lambda t: stepsal.read_thought_anchors(t["folder"], "org/name"),
        "is a name, and no tokenizer",
    ),
    "faithfulness map": (lambda t: stepsal.faithfulness(t["stepmap"], []), r"make a list, \[stepmap\]"),
    "faithfulness maps": (lambda t: stepsal.faithfulness([], [t["stepmap"]]), "expected a list of knockouts"),
    # a path for a map, and one map for several
    "diagnose path": (lambda t: stepsal.diagnose("a.safetensors"), r"stepsal.StepMap.load\(path\)"),
    "diagnose list": (lambda t: stepsal.diagnose([t["stepmap"]]), ONE_MAP),
    "diagnose reference": (
        lambda t: stepsal.diagnose(t["stepmap"], reference=t["stepmap"]),
        r"make a list, \[stepmap\]",
    ),
    "lock_in path": (lambda t: stepsal.lock_in("a.safetensors"), ONE_MAP),
    "thinking_to_summary list": (lambda t: stepsal.thinking_to_summary([t["stepmap"]]), ONE_MAP),
    "compare maps": (
        lambda t: stepsal.compare(t["stepmap"], t["stepmap"]),
        r"Give two lists, compare\(correct, error\)",
    ),
    "compare one map": (lambda t: stepsal.compare(t["stepmap"]), "Give two lists"),
    "compare paths": (lambda t: stepsal.compare(["a.safetensors"], ["b.safetensors"]), r"correct\[0\]='a.safetensors'"),
    "compare folder": (lambda t: stepsal.compare("maps", "maps"), "Give two lists"),
    "compare resamples": (
        lambda t: stepsal.compare([], [], resamples="many"),
        "resamples='many' must be a whole number",
    ),
    "choose_layers map": (lambda t: stepsal.choose_layers(t["stepmap"]), "stepsal.compare"),
    "choose_layers path": (lambda t: stepsal.choose_layers("comparison.json"), r"Comparison.load\(path\)"),
    "report map": (lambda t: stepsal.report(t["folder"] / "r.html", t["stepmap"]), r"make a list, \[stepmap\]"),
    "report swapped": (lambda t: stepsal.report([t["stepmap"]], "r.html"), "expected the path"),
    "report knockout": (
        lambda t: stepsal.report(t["folder"] / "r.html", [t["stepmap"]], knockouts=t["folder"]),
        "expected a list of knockouts",
    ),
    "report head": (lambda t: stepsal.report(t["folder"] / "r.html", [t["stepmap"]], heads=0), r"make a list, \[0\]"),
    "export_step_maps map": (lambda t: stepsal.export_step_maps(t["stepmap"], "a.parquet"), "expected the path"),
    "StepMap.load layer": (lambda t: stepsal.StepMap.load("a", layers=3), r"Of one layer make a list, \[0\]"),
    "StepMap.load map": (lambda t: stepsal.StepMap.load(t["stepmap"]), "expected the path"),
    "Comparison.load number": (lambda t: stepsal.Comparison.load(3), "expected the path"),
    "plot.step_map path": (lambda t: plot.step_map("a.safetensors"), ONE_MAP),
    "plot.step_map layer": (lambda t: plot.step_map(t["stepmap"], layer=2.5), "layer=2.5 is a float"),
    "plot.step_heads list": (lambda t: plot.step_heads([t["stepmap"]], 0), ONE_MAP),
    "plot.map_values list": (lambda t: plot.map_values([t["stepmap"]], 0, None, "share"), ONE_MAP),
    "plot.token_map map": (lambda t: plot.token_map(t["stepmap"], t["trace"].steps), "stepsal.token_influence"),
    "plot.token_map trace": (lambda t: plot.token_map(torch.rand(4, 4), t["trace"]), "trace.steps"),
    "plot.depth_profile map": (lambda t: plot.depth_profile(t["stepmap"]), r"stepsal.diagnose\(stepmap\)"),
    "plot.depth_profile groups": (lambda t: plot.depth_profile({"a": [t["stepmap"]]}), r"stepsal.diagnose\(stepmap\)"),
    "plot.heads map": (lambda t: plot.heads(t["stepmap"]), r"stepsal.diagnose\(stepmap\)"),
    "plot.comparison diagnosis": (lambda t: plot.comparison(t["diagnosis"]), "stepsal.compare"),
    "plot.faithfulness folder": (lambda t: plot.faithfulness("folder"), "Give `check.table`"),
    "plot.sweep folder": (lambda t: plot.sweep("folder"), "pandas.read_parquet"),
    "plot.sweep_heads": (lambda t: plot.sweep_heads("folder"), "head_panels"),
    "plot.head_limit": (lambda t: plot.head_limit("folder"), "head_panels"),
    "plot.sweep_strengths": (lambda t: plot.sweep_strengths("folder"), "strength_lines"),
    "plot.sweep_compute": (lambda t: plot.sweep_compute("folder", "folder"), "a table of costs"),
    "plot.sweep_lengths": (lambda t: plot.sweep_lengths("folder"), "a table of accuracies"),
    "plot.in_math": (lambda t: plot.in_math(3), "a text"),
    "plot.log_scale": (lambda t: plot.log_scale("map"), "maps of numbers"),
    "plot.answer_rows": (lambda t: plot.answer_rows("map", ["summary"]), "a map of numbers"),
    # a bare string for prompts
    "generate text": (
        lambda t: stepsal.generate(t["model"], "2+2?"),
        r"is one prompt: give a list of prompts, \[prompt\]",
    ),
    "generate chat": (lambda t: stepsal.generate(t["model"], [{"role": "user", "content": "2+2?"}]), "is one prompt"),
    "generate none": (lambda t: stepsal.generate(t["model"], None), "a list of prompts"),
    "generate numbers": (lambda t: stepsal.generate(t["model"], [3]), r"prompts\[0\]=3 is an int: expected a prompt"),
    # a tokenizer's name for a tokenizer
    "Trace.from_text name": (lambda t: Trace.from_text("gpt2", "2+2?", "4"), r"stepsal.load_tokenizer\('gpt2'\)"),
    "Trace.from_tokens name": (lambda t: Trace.from_tokens("gpt2", [1, 2]), r"stepsal.load_tokenizer\('gpt2'\)"),
    "Trace.from_tokens model": (lambda t: Trace.from_tokens(t["raw"], [1, 2]), "model.tokenizer"),
    "read_traces name": (lambda t: stepsal.read_traces("a.jsonl", "gpt2"), r"stepsal.load_tokenizer\('gpt2'\)"),
    "read_traces paths": (lambda t: stepsal.read_traces(["a.jsonl"], t["tokenizer"]), "expected the path"),
    "Trace.from_text meta": (lambda t: Trace.from_text(t["tokenizer"], "2+2?", "4", meta=["a"]), r"\{'name': value\}"),
    "Trace.from_tokens meta": (lambda t: Trace.from_tokens(t["tokenizer"], [20, 21], meta="a"), r"\{'name': value\}"),
    "Trace.from_text id": (lambda t: Trace.from_text(t["tokenizer"], "2+2?", "4", id=5), r"Give str\(id\)"),
    **{
        f"Trace.from_tokens prompt_tokens {given!r}": (
            lambda t, given=given: Trace.from_tokens(t["tokenizer"], [20, 21, 22], prompt_tokens=given),
            "prompt_tokens=.* must be a whole number, at least 1",
        )
        for given in ("1", 1.0, True, 0)
    },
    "Trace.from_text tokens": (lambda t: Trace.from_text(t["tokenizer"], "2+2?", [1, 2]), "Trace.from_tokens"),
    # the rest
    "sweep config": (lambda t: stepsal.sweep(3, out=t["folder"]), "a TOML file or a dictionary"),
    "sweep out": (lambda t: stepsal.sweep({}, out=3), "expected the path"),
    "sweep workers": (
        lambda t: stepsal.sweep({}, out=t["folder"] / "s", workers="two"),
        "workers='two' must be a whole",
    ),
    "paired_runs number": (lambda t: stepsal.paired_runs(3, "b.jsonl"), "baseline=3 is an int: expected a logged run"),
    "plot.benchmark": (lambda t: plot.benchmark("folder"), "a table of accuracies"),
    "grader": (lambda t: stepsal.grader(lambda question, summary: True), "over a function"),
}


@pytest.mark.parametrize("name", CALLS)
def test_something_else_than_a_function_takes_is_refused_with_the_fix(things, name):
    call, said = CALLS[name]
    before = sorted(things["folder"].iterdir())
    with pytest.raises(InputError, match=said) as error:
        call(things)
    assert len(str(error.value).splitlines()) == 1
    assert sorted(things["folder"].iterdir()) == before


def test_every_public_function_is_among_those_that_are_tried():
    tried = {name.split(" ")[0] for name in CALLS}
    elsewhere = {"metric", "paired", "stepflow", "plot.style"}  # they say what they take in their own words
    public = {name for name in stepsal.__all__ if inspect.isfunction(getattr(stepsal, name))}
    public |= {f"plot.{name}" for name in plot.__all__ if inspect.isfunction(getattr(plot, name))}
    assert public - elsewhere <= tried


def test_what_is_checked_keeps_its_name_its_text_and_its_parameters():
    for function in (step_saliency, token_influence, stepsal.generate, load_tokenizer):
        assert function.__doc__
        assert function.__module__.startswith("stepsal.")
        assert "call" not in function.__qualname__
    assert list(inspect.signature(stepsal.compare).parameters) == ["correct", "error", "resamples", "seed"]
