"""The model `stepsal` of lm-evaluation-harness: what it answers is what stepsal and the harness's own model answer."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from hooked import TL3
from mini_tasks import write_tasks

import stepsal
from stepsal import FileError, InputError, generate, intervene, stepflow
from stepsal.generation.questions import task_questions
from stepsal.reasoner import make_problems

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install 'stepsal[eval]'")
pytestmark = pytest.mark.skipif(TL3, reason="the harness's own model is compared with a bridge")

from lm_eval import simple_evaluate  # noqa: E402
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.api.model import CachingLM  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from stepsal.harness.lm_eval_model import StepsalLM  # noqa: E402

FLOW = {"oeb": 0.3, "smi": 0.5, "oeb_layers": "all", "smi_layers": "all"}
STRONG = stepflow(tau_max=0.3, alpha=0.5)
SAME_AS_FLOW = tuple(type(each)(**{**vars(each), "layers": "all"}) for each in STRONG)
GREEDY = {"until": [], "max_gen_toks": 100, "do_sample": False}
SAMPLED = {"until": [], "max_gen_toks": 40, "do_sample": True, "temperature": 2.0}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    write_tasks(folder)
    return TaskManager(include_path=str(folder), include_defaults=False)


def requests(kind, arguments):
    return [Instance(kind, {}, args, index) for index, args in enumerate(arguments)]


def texts(reasoner, traces):
    """What follows the prompts, without special tokens."""
    return [
        reasoner.tokenizer.decode(each.tokens[each.prompt_tokens :].tolist(), skip_special_tokens=True)
        for each in traces
    ]


def prompts(reasoner, count=4):
    messages = [each.messages for each in make_problems("validation", count, 2)]
    return messages, [StepsalLM(reasoner).apply_chat_template(each) for each in messages]


# --- answers ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.parametrize(("arguments", "interventions"), [({}, ()), (FLOW, SAME_AS_FLOW)])
def test_a_task_gets_the_very_answers_of_generate(reasoner, tasks, batch_size, arguments, interventions):
    lm = StepsalLM(reasoner, batch_size=batch_size, **arguments)
    results = simple_evaluate(
        model=lm, tasks=["mini_generate"], task_manager=tasks, apply_chat_template=True, bootstrap_iters=0
    )
    questions = task_questions("validation", [2], 6)
    traces = generate(
        reasoner, [each.prompt for each in questions], interventions=interventions, max_new_tokens=150, progress=False
    )
    samples = results["samples"]["mini_generate"]
    assert [sample["resps"][0][0] for sample in samples] == texts(reasoner, traces)
    right = [f"boxed{{{each.answer}}}" in trace.response for each, trace in zip(questions, traces, strict=True)]
    assert [bool(sample["exact_match"]) for sample in samples] == right
    assert results["results"]["mini_generate"]["exact_match,boxed"] == sum(right) / len(right)
    about = results["config"]["stepsal"]
    assert about["interventions"] == json.loads(json.dumps([each.record for each in interventions]))
    assert about["computed"] == {"generated": 6, "scored": 0}
    assert (about["report"] is None) == (interventions == ())
    json.dumps(about, allow_nan=False)


def test_the_report_in_the_results_is_that_of_intervene(reasoner):
    _, texts_of_prompts = prompts(reasoner)
    lm = StepsalLM(reasoner, batch_size=4, **FLOW)
    for half in (texts_of_prompts[:2], texts_of_prompts[2:]):  # counts go on from call to call
        lm.generate_until(requests("generate_until", [(each, GREEDY) for each in half]), disable_tqdm=True)
    with intervene(reasoner, SAME_AS_FLOW) as live:
        for half in (texts_of_prompts[:2], texts_of_prompts[2:]):
            generate(reasoner, half, interventions=live, max_new_tokens=100, progress=False)
    report = lm.get_model_info()["stepsal"]["report"]
    expected = live.report()
    assert report["activations"] == expected["activations"].tolist()
    assert sum(report["activations"]) > 0
    assert report["mean_bridge_after"][0] == pytest.approx(expected["mean_bridge_after"][0])
    assert not any(point._forward_hooks for point in reasoner.hook_dict.values())


def test_sampled_answers_are_those_of_generate_and_repeats_differ(reasoner):
    _, (first, second, *_) = prompts(reasoner)
    asked = requests("generate_until", [(first, SAMPLED), (second, SAMPLED), (first, SAMPLED)])
    found = StepsalLM(reasoner, batch_size=3, seed=5).generate_until(asked, disable_tqdm=True)
    options = {"max_new_tokens": 40, "temperature": 2.0, "seed": 5, "progress": False}
    assert found == texts(reasoner, generate(reasoner, [first, second, first], **options))
    assert found[0] != found[2]


def test_thinking_and_what_follows_a_stop_text_are_cut(reasoner):
    _, (first, *_) = prompts(reasoner)
    ask = lambda until, **options: StepsalLM(reasoner, **options).generate_until(  # noqa: E731
        requests("generate_until", [(first, GREEDY | {"until": until})]), disable_tqdm=True
    )[0]
    whole = ask([])
    thinking, summary = whole.split("</think>")
    assert ask([], think_end_token="</think>") == summary.lstrip()
    end = reasoner.tokenizer.encode("</think>", add_special_tokens=False)
    if len(end) == 1:
        assert ask([], think_end_token=end[0]) == summary.lstrip()
    assert ask(["\n\n"]) == thinking.split("\n\n")[0]
    assert ask(["\n\n"], think_end_token="</think>") == summary.lstrip().split("\n\n")[0]


def test_a_marker_of_special_tokens_ends_the_thinking_too(reasoner):
    """As Harmony's does: it is not there any more in the text that the harness grades."""
    tokenizer = reasoner.tokenizer
    lm = StepsalLM(reasoner, think_end_token=f"{tokenizer.bos_token}final")
    tokens = tokenizer.encode(f"2+2?<think>It is 4.{tokenizer.bos_token}final So 4.", add_special_tokens=False)
    trace = stepsal.Trace.from_tokens(tokenizer, tokens, prompt_tokens=4)
    assert lm._answer(trace, lm._read(GREEDY)) == "So 4."


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 5}, "top_k=5, which stepsal does not have"),
        ({"do_sample": True}, "do_sample=True without a temperature"),
        ({"do_sample": None, "temperature": 0.5}, "temperature=0.5 without do_sample"),
    ],
)
def test_a_decoding_that_stepsal_does_not_have_is_refused(reasoner, options, message):
    given = {name: value for name, value in (GREEDY | options).items() if value is not None}
    with pytest.raises(InputError, match=message):
        StepsalLM(reasoner).generate_until(requests("generate_until", [("2+2?", given)]))


def test_neutral_values_of_what_stepsal_does_not_have_are_accepted(reasoner):
    given = GREEDY | {"num_beams": 1, "top_k": 0, "max_gen_toks": 2}
    assert (
        len(StepsalLM(reasoner).generate_until(requests("generate_until", [("2+2?", given)]), disable_tqdm=True)) == 1
    )


# --- log-likelihoods -------------------------------------------------------------------------------------------------
def pairs(reasoner):
    _, texts_of_prompts = prompts(reasoner, 3)
    answers = [
        "First z = 42.\n\nThen 3.\n</think>\n\nSo \\boxed{1}",
        "First",
        "\n\nSo it is 5.\n</think>\n\n5 and more",
    ]
    return list(zip(texts_of_prompts, answers, strict=True))


def summed(model, tokens, start):
    """The plain sum of the log-probabilities of the tokens from `start` on."""
    with torch.no_grad():
        logits = model(torch.tensor([tokens]), return_type="logits").log_softmax(-1)[0]
    return sum(float(logits[at - 1, tokens[at]]) for at in range(start, len(tokens)))


@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.parametrize(("arguments", "interventions"), [({}, ()), (FLOW, SAME_AS_FLOW)])
def test_a_loglikelihood_is_the_sum_of_a_teacher_forced_pass(reasoner, batch_size, arguments, interventions):
    tokenizer = reasoner.tokenizer
    found = StepsalLM(reasoner, batch_size=batch_size, **arguments).loglikelihood(
        requests("loglikelihood", pairs(reasoner)), disable_tqdm=True
    )
    whole = [tokenizer.encode(prompt + answer, add_special_tokens=False) for prompt, answer in pairs(reasoner)]
    starts = [len(tokenizer.encode(prompt.rstrip(), add_special_tokens=False)) for prompt, _ in pairs(reasoner)]
    plain = [summed(reasoner, *each) for each in zip(whole, starts, strict=True)]
    with intervene(reasoner, interventions):
        expected = [summed(reasoner, *each) for each in zip(whole, starts, strict=True)]
    assert [score for score, _ in found] == pytest.approx(expected, abs=1e-3)
    assert (abs(found[0][0] - plain[0]) > 0.01) == bool(interventions)  # they did act


def test_a_continuation_is_greedy_where_generate_writes_it(reasoner):
    _, (first, *_) = prompts(reasoner)
    (trace,) = generate(reasoner, [first], max_new_tokens=12, progress=False)
    written = texts(reasoner, [trace])[0]
    lm = StepsalLM(reasoner)
    (greedy, other) = lm.loglikelihood(
        requests("loglikelihood", [(first + written[:5], written[5:]), (first, "Nothing")]), disable_tqdm=True
    )
    assert greedy[1]
    assert not other[1]
    assert greedy[0] > other[0]


@pytest.mark.parametrize("batch_size", [1, 8])
def test_without_interventions_it_says_what_the_harness_s_own_model_says(reasoner, tasks, batch_size):
    """The harness's `hf` on the same weights: the standard that its users compare with."""
    own = HFLM(
        pretrained=reasoner.original_model, tokenizer=reasoner.tokenizer, batch_size=batch_size, add_bos_token=False
    )
    ours = StepsalLM(reasoner, batch_size=batch_size)
    several = requests("loglikelihood", [*pairs(reasoner), ("", "First z = 4."), ("2+2?", " 4")])
    for one, two in zip(
        ours.loglikelihood(several, disable_tqdm=True), own.loglikelihood(several, disable_tqdm=True), strict=True
    ):
        assert one[0] == pytest.approx(two[0], abs=1e-3)
        assert one[1] == two[1]
    long_text = " ".join(f"z = {number}." for number in range(400))  # longer than the context: several windows
    texts_to_roll = requests("loglikelihood_rolling", [("First z = 42.\n\nThen 3.",), (long_text,)])
    assert len(reasoner.tokenizer.encode(long_text)) > 2 * ours.max_length
    for one, two in zip(
        ours.loglikelihood_rolling(texts_to_roll, disable_tqdm=True),
        own.loglikelihood_rolling(texts_to_roll, disable_tqdm=True),
        strict=True,
    ):
        assert one == pytest.approx(two, rel=1e-5)
    _, texts_of_prompts = prompts(reasoner, 3)
    asked = requests("generate_until", [(each, GREEDY | {"until": ["\n\nSo"]}) for each in texts_of_prompts])
    assert ours.generate_until(asked, disable_tqdm=True) == own.generate_until(asked, disable_tqdm=True)
    for prompt in texts_of_prompts:
        assert ours.tok_encode(prompt) == own.tok_encode(prompt)


def test_every_kind_of_task_runs(reasoner, tasks):
    results = simple_evaluate(
        model=StepsalLM(reasoner, batch_size=8),
        tasks=["mini_choice", "mini_rolling"],
        task_manager=tasks,
        apply_chat_template=True,
        bootstrap_iters=0,
    )
    assert results["results"]["mini_choice"]["acc,none"] >= 0.5
    assert results["results"]["mini_rolling"]["byte_perplexity,none"] > 1
    assert results["config"]["stepsal"]["computed"] == {"generated": 0, "scored": 6 * 3 + 6}


def test_a_request_that_does_not_fit_is_refused(reasoner):
    with pytest.raises(InputError, match=r"1 of continuation: each needs at least one, and .* room for 1024"):
        StepsalLM(reasoner).loglikelihood(requests("loglikelihood", [("a = 1. " * 400, "2")]), disable_tqdm=True)


# --- arguments -------------------------------------------------------------------------------------------------------
def test_arguments_come_as_the_harness_writes_them(tmp_path):
    path = tmp_path / "settings.toml"
    path.write_text('[flow]\ninterventions = [{name = "oeb"}]\n')
    lm = StepsalLM.create_from_arg_string(
        f"pretrained=bundled,settings={path},setting=flow,seed=3,format=<a>+</a>",
        {"batch_size": "4", "device": "cpu", "max_batch_size": None},
    )
    assert (lm.batch_size, lm.seed, lm.format) == (4, 3, ("<a>", "</a>"))
    assert lm.interventions == (stepsal.OddsEqualBridge(),)
    given = {"pretrained": "bundled", "smi": 0.1, "smi_layers": [6, 7]}
    assert StepsalLM.create_from_arg_obj(given).interventions == (stepsal.StepMomentum(layers=(6, 7), alpha=0.1),)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": "auto"}, "batch_size='auto' must be a whole number"),
        ({"settings": "a.toml"}, "settings='a.toml' and setting=None go together"),
        ({"settings": "a.toml", "setting": "b", "oeb": True}, "without interventions beside them"),
        ({"oebb": True}, "Did you mean 'oeb'"),
    ],
)
def test_arguments_that_contradict_each_other_are_refused(reasoner, arguments, message):
    with pytest.raises(InputError, match=message):
        StepsalLM(reasoner, **arguments)


def test_an_intervention_that_did_nothing_is_warned_of(reasoner):
    lm = StepsalLM(reasoner, oeb=0.2, format="plain")
    lm.loglikelihood(requests("loglikelihood", [("2+2?", " 4")]), disable_tqdm=True)
    with pytest.warns(UserWarning, match="never fired"):
        lm.get_model_info()


def test_the_entry_point_is_the_model():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    (value,) = project["project"]["entry-points"]["lm_eval.models"].values()
    assert EntryPoint("stepsal", value, "lm_eval.models").load() is StepsalLM


# --- the cache -------------------------------------------------------------------------------------------------------
def cached(lm, path):
    return CachingLM(lm, str(path))


def test_sampled_answers_are_cached_each_by_its_number(reasoner, tmp_path, monkeypatch):
    _, (first, second, *_) = prompts(reasoner)
    asked = requests("generate_until", [(first, SAMPLED), (first, SAMPLED), (second, SAMPLED)])
    undisturbed = StepsalLM(reasoner).generate_until(asked, disable_tqdm=True)
    cached(StepsalLM(reasoner), tmp_path / "a.db").generate_until(asked[:2])
    again = StepsalLM(reasoner)
    assert cached(again, tmp_path / "a.db").generate_until(asked) == undisturbed
    assert again.get_model_info()["stepsal"]["computed"]["generated"] == 1


def test_a_cache_of_another_setting_is_refused(reasoner, tmp_path):
    asked = requests("generate_until", [("2+2?", GREEDY | {"max_gen_toks": 2})])
    cached(StepsalLM(reasoner), tmp_path / "a.db").generate_until(asked)
    cached(StepsalLM(reasoner, batch_size=4), tmp_path / "a.db").generate_until(asked)
    with pytest.raises(FileError, match=r"a.db holds answers of another run \(interventions differ\)"):
        cached(StepsalLM(reasoner, oeb=0.2), tmp_path / "a.db")
    with pytest.raises(FileError, match=r"\(seed differ\)"):
        cached(StepsalLM(reasoner, seed=1), tmp_path / "a.db")


@pytest.mark.slow
def test_a_killed_run_goes_on_from_the_cache(tmp_path):
    write_tasks(tmp_path, count=8)
    command = [sys.executable, "-m", "stepsal.harness", "run", "--model", "stepsal", "--tasks", "mini_generate"]
    command += [
        "--model_args",
        "pretrained=bundled,oeb=0.15,smi=0.06",
        "--include_path",
        str(tmp_path),
        "--log_samples",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def run(name, *options):
        return [*command, "--apply_chat_template", "--output_path", str(tmp_path / name), *options]

    def samples(name):
        (path,) = (tmp_path / name).rglob("samples_*.jsonl")
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [(each["doc_id"], each["resps"], each["exact_match"]) for each in lines]

    cache = tmp_path / "cache_rank0.db"
    process = subprocess.Popen(
        run("killed", "--use_cache", str(tmp_path / "cache")), env=environment, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(600):
            if process.poll() is not None or entries(cache) >= 4:
                break
            time.sleep(0.1)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    kept = entries(cache)
    assert 4 <= kept < 9, kept  # the settings and some answers
    assert not list((tmp_path / "killed").rglob("*.jsonl"))
    subprocess.run(
        run("resumed", "--use_cache", str(tmp_path / "cache")), env=environment, check=True, capture_output=True
    )
    subprocess.run(run("undisturbed"), env=environment, check=True, capture_output=True)
    assert samples("resumed") == samples("undisturbed")
    (path,) = (tmp_path / "resumed").rglob("results_*.json")
    about = json.loads(path.read_text())["config"]["stepsal"]
    assert about["computed"]["generated"] == 8 - (kept - 1)
    assert len(about["report"]["activations"]) == 4 * 4


def entries(database):
    """How many entries the harness's cache has."""
    if not database.exists():
        return 0
    try:
        with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
            return connection.execute("SELECT COUNT(*) FROM unnamed").fetchone()[0]
    except sqlite3.Error:  # it is being made
        return 0
