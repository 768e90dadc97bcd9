import json

import pytest
import torch
from conftest import save_tiny
from hypothesis import given
from hypothesis import strategies as st

import stepsal.generation.generate
from stepsal import (
    InputError,
    NumericalError,
    Trace,
    generate,
    intervene,
    load_model,
    read_traces,
    stepflow,
    write_traces,
)
from stepsal.generation.sampling import draw_tokens
from stepsal.reasoner import make_problems
from stepsal.traces.prompt import prompt_text

PROBLEMS = make_problems("validation", 5, length=2) + make_problems("validation", 2, length=4)


@pytest.fixture(scope="module")
def traces(reasoner):
    return generate(reasoner, [p.messages for p in PROBLEMS], max_new_tokens=150, batch_size=3, progress=False)


def test_answers_come_in_the_order_of_the_prompts(traces):
    assert [p.question in trace.prompt for p, trace in zip(PROBLEMS, traces, strict=True)] == [True] * len(PROBLEMS)


def test_the_batch_size_does_not_change_the_answers(reasoner, traces):
    alone = generate(reasoner, [p.messages for p in PROBLEMS], max_new_tokens=150, batch_size=1, progress=False)
    for one, other in zip(alone, traces, strict=True):
        assert torch.equal(one.tokens, other.tokens)


def test_every_token_is_the_most_likely_one(reasoner, traces):
    trace = traces[0]
    with torch.no_grad():
        logits = reasoner(trace.tokens[None])[0]
    start = trace.prompt_tokens
    assert torch.equal(logits[start - 1 : -1].argmax(-1), trace.tokens[start:])


def test_an_answer_ends_once_or_says_that_it_was_cut(reasoner, traces):
    end = reasoner.tokenizer.eos_token_id
    for trace in traces:
        assert (trace.tokens == end).sum() == (0 if trace.meta["truncated"] else 1)
    (cut,) = generate(reasoner, [PROBLEMS[0].messages], max_new_tokens=3, progress=False)
    assert cut.meta["truncated"]
    assert len(cut.tokens) == cut.prompt_tokens + 3


def test_a_prompt_that_begins_with_padding_is_refused(reasoner):
    """A trace of it would leave that token out, and the model would have read it."""
    tokenizer = reasoner.tokenizer
    assert tokenizer.pad_token_id not in (None, tokenizer.bos_token_id)
    prompts = ["2+2?", f"{tokenizer.pad_token}2+2?"]
    with pytest.raises(InputError, match=r"prompt 1 begins with .*, the tokenizer's padding token"):
        generate(reasoner, prompts, max_new_tokens=2, progress=False)


def test_no_room_in_the_context_is_said_before_any_work(reasoner):
    with pytest.raises(InputError, match=r"do not fit the model's context of 1024: use max_new_tokens=\d+ at most"):
        generate(reasoner, [PROBLEMS[0].messages], max_new_tokens=1000, progress=False)


@pytest.mark.parametrize("options", [{"max_new_tokens": 0}, {"batch_size": 0}])
def test_numbers_that_make_no_sense_are_refused(reasoner, options):
    with pytest.raises(InputError, match="must be at least 1"):
        generate(reasoner, [PROBLEMS[0].messages], progress=False, **options)


def test_a_tokenizer_without_an_end_is_refused(tmp_path):
    model = load_model(save_tiny("qwen2", tmp_path))
    model.tokenizer.eos_token = None
    model.original_model.generation_config.eos_token_id = None
    with pytest.raises(InputError, match="no end-of-sequence token"):
        generate(model, ["2+2?"], max_new_tokens=3, progress=False)


def test_no_prompts_give_no_traces(reasoner):
    assert generate(reasoner, [], progress=False) == []


# --- sampling --------------------------------------------------------------------------------------------------------
SAMPLED = {"max_new_tokens": 60, "temperature": 3.0, "samples": 3, "seed": 5, "progress": False}


@pytest.fixture(scope="module")
def sampled(reasoner):
    return generate(reasoner, [p.messages for p in PROBLEMS[:3]], batch_size=4, **SAMPLED)


def test_samples_of_a_prompt_stand_together_and_differ(sampled):
    assert [trace.id for trace in sampled] == [f"trace-{i}-{j}" for i in range(3) for j in range(3)]
    assert len({trace.text for trace in sampled}) == 9
    assert len({trace.prompt for trace in sampled}) == 3


@pytest.mark.parametrize("batch_size", [1, 9])
def test_sampled_answers_depend_neither_on_the_batch_size_nor_on_the_other_prompts(reasoner, sampled, batch_size):
    whole = generate(reasoner, [p.messages for p in PROBLEMS[:3]], batch_size=batch_size, **SAMPLED)
    alone = generate(reasoner, [PROBLEMS[2].messages], batch_size=batch_size, **SAMPLED)
    for one, other in zip([*whole, *alone], [*sampled, *sampled[6:]], strict=True):
        assert torch.equal(one.tokens, other.tokens)


def test_more_samples_begin_with_the_fewer_and_a_repeated_prompt_goes_on_with_them(reasoner, sampled):
    options = SAMPLED | {"samples": 1}
    repeated = generate(reasoner, [PROBLEMS[0].messages] * 3, batch_size=2, **options)
    assert [trace.text for trace in repeated] == [trace.text for trace in sampled[:3]]


def test_another_seed_gives_other_samples(reasoner, sampled):
    other = generate(reasoner, [p.messages for p in PROBLEMS[:3]], batch_size=4, **SAMPLED | {"seed": 6})
    assert not {trace.text for trace in other} & {trace.text for trace in sampled}


def test_a_low_temperature_or_top_p_is_greedy(reasoner, traces):
    for options in ({"temperature": 1e-4}, {"temperature": 1.0, "top_p": 1e-6}):
        cold = generate(reasoner, [p.messages for p in PROBLEMS], max_new_tokens=150, progress=False, **options)
        assert [trace.text for trace in cold] == [trace.text for trace in traces]


def test_tokens_are_drawn_as_often_as_they_are_likely():
    probabilities = torch.tensor([0.1, 0.4, 0.2, 0.3])
    grid = (torch.arange(10_000) + 0.5) / 10_000  # every quantile once: shares are exact but for the grid
    drawn = draw_tokens(probabilities.log().expand(len(grid), 4), 1.0, 1.0, grid)
    assert torch.allclose(drawn.bincount() / len(grid), probabilities, atol=2e-4)
    cooler = draw_tokens(probabilities.log().expand(len(grid), 4), 0.5, 1.0, grid)
    assert torch.allclose(cooler.bincount() / len(grid), probabilities**2 / (probabilities**2).sum(), atol=2e-4)


def test_top_p_keeps_the_smallest_set_that_reaches_it_with_its_proportions():
    probabilities = torch.tensor([0.1, 0.4, 0.2, 0.3])
    grid = (torch.arange(10_000) + 0.5) / 10_000
    drawn = draw_tokens(probabilities.log().expand(len(grid), 4), 1.0, 0.6, grid)
    assert torch.allclose(drawn.bincount(minlength=4) / len(grid), torch.tensor([0, 4 / 7, 0, 3 / 7]), atol=2e-4)


@given(
    st.lists(st.floats(-50, 50), min_size=1, max_size=6),
    st.floats(0.01, 10),
    st.floats(0.001, 1),
    st.floats(0, 1, exclude_max=True),
)
def test_a_drawn_token_is_always_one_of_the_smallest_set(logits, temperature, top_p, number):
    probabilities = torch.softmax(torch.tensor(logits) / temperature, 0)
    (token,) = draw_tokens(torch.tensor([logits]), temperature, top_p, torch.tensor([number])).tolist()
    more_likely = probabilities[probabilities > probabilities[token]].sum()
    assert more_likely < top_p + 1e-5


def test_the_models_own_generation_settings_are_not_used(tmp_path, reasoner, traces):
    model = load_model()
    settings = model.original_model.generation_config
    settings.repetition_penalty, settings.temperature, settings.do_sample, settings.no_repeat_ngram_size = (
        5.0,
        0.6,
        True,
        2,
    )
    (trace,) = generate(model, [PROBLEMS[0].messages], max_new_tokens=150, progress=False)
    assert trace.text == traces[0].text
    assert settings is model.original_model.generation_config


def test_any_of_the_models_end_tokens_ends_an_answer(reasoner, traces):
    model = load_model()
    ends_early = int(traces[0].tokens[traces[0].prompt_tokens + 6])
    model.original_model.generation_config.eos_token_id = [model.tokenizer.eos_token_id, ends_early]
    trace, _ = generate(model, [PROBLEMS[0].messages, PROBLEMS[1].messages], max_new_tokens=150, progress=False)
    assert int(trace.tokens[-1]) == ends_early
    assert not trace.meta["truncated"]
    assert len(trace.tokens) <= trace.prompt_tokens + 7


def test_too_little_memory_means_fewer_at_a_time_and_says_so(reasoner, traces, monkeypatch):
    monkeypatch.setattr(stepsal.generation.generate, "free_bytes", lambda device: 4_000_000)
    prompts = [p.messages for p in PROBLEMS]
    with pytest.warns(
        UserWarning, match=r"batch_size=7 would need about .* GiB are free: decoding \d sequence"
    ) as caught:
        few = generate(reasoner, prompts, max_new_tokens=150, batch_size=7, progress=False)
    assert len([each for each in caught if "would need" in str(each.message)]) == 1
    assert [trace.text for trace in few] == [trace.text for trace in traces]
    assert 0 < min(trace.meta.get("batch_size", 7) for trace in few) < 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 2}, "at temperature=0 would all be alike"),
        ({"temperature": -1.0}, "temperature=-1.0 must be 0"),
        ({"temperature": 0.5, "top_p": 0.0}, "top_p=0.0 must be above 0"),
        ({"temperature": 0.5, "seed": -1}, "seed=-1"),
        ({"samples": 0}, "must be at least 1"),
    ],
)
def test_decoding_that_means_nothing_is_refused(reasoner, options, message):
    with pytest.raises(InputError, match=message):
        generate(reasoner, [PROBLEMS[0].messages], progress=False, **options)


# --- interventions ---------------------------------------------------------------------------------------------------
STRONG = stepflow(tau_max=0.9, alpha=3.0, oeb_layers="all", smi_layers="all")


def test_interventions_act_as_inside_intervene_in_every_batch(reasoner):
    prompts = [p.messages for p in PROBLEMS]
    given_here = generate(reasoner, prompts, interventions=STRONG, max_new_tokens=80, batch_size=2, progress=False)
    with intervene(reasoner, STRONG):
        around = generate(reasoner, prompts, max_new_tokens=80, batch_size=7, progress=False)
    plain = generate(reasoner, prompts, max_new_tokens=80, batch_size=7, progress=False)
    assert [trace.text for trace in given_here] == [trace.text for trace in around]
    assert [trace.text for trace in given_here] != [trace.text for trace in plain]
    (again,) = generate(reasoner, prompts[:1], max_new_tokens=80, progress=False)
    assert again.text == plain[0].text


def test_an_intervened_answer_is_the_argmax_of_an_intervened_pass_over_it(reasoner):
    (trace,) = generate(reasoner, [PROBLEMS[6].messages], interventions=STRONG, max_new_tokens=80, progress=False)
    with torch.no_grad(), intervene(reasoner, STRONG):
        logits = reasoner(trace.tokens[None])[0]
    assert torch.equal(logits[trace.prompt_tokens - 1 : -1].argmax(-1), trace.tokens[trace.prompt_tokens :])


def test_markers_that_a_question_mentions_are_text_to_the_intervention_too(reasoner):
    prompt = [{"role": "user", "content": "Facts: <think> k = 37. m </think> = k + 25.\nStart at k. What is m?"}]
    (trace,) = generate(reasoner, [prompt], interventions=STRONG, max_new_tokens=40, progress=False)
    assert trace.steps[0].stop >= trace.prompt_tokens - 1
    with torch.no_grad(), intervene(reasoner, STRONG) as live:
        live.question_tokens = [trace.steps[0].stop]
        logits = reasoner(trace.tokens[None])[0]
    assert torch.equal(logits[trace.prompt_tokens - 1 : -1].argmax(-1), trace.tokens[trace.prompt_tokens :])
    with pytest.raises(InputError, match="has 1 entries, but a batch of 2 begins"), intervene(reasoner, STRONG) as live:
        live.question_tokens = [3]
        reasoner(trace.tokens[None].expand(2, -1))


def test_a_trace_says_what_acted_on_it_in_a_file_too(reasoner, tmp_path):
    (trace,) = generate(reasoner, [PROBLEMS[0].messages], interventions=STRONG, max_new_tokens=20, progress=False)
    first, second = trace.meta["interventions"]
    assert (first["part"], first["tau_max"], second["part"], second["alpha"]) == (
        "OddsEqualBridge",
        0.9,
        "StepMomentum",
        3.0,
    )
    write_traces(tmp_path / "a.jsonl", [trace])
    (back,) = read_traces(tmp_path / "a.jsonl", reasoner.tokenizer)
    assert isinstance(back, Trace)
    assert back.meta == json.loads(json.dumps(trace.meta))


def test_inside_intervene_its_report_and_the_same_answers_are_to_be_had(reasoner):
    prompt = [{"role": "user", "content": "Facts: <think> k = 37. m </think> = k + 25.\nStart at k. What is m?"}]
    options = {"max_new_tokens": 40, "progress": False}
    (given,) = generate(reasoner, [prompt], interventions=STRONG, **options)
    with intervene(reasoner, STRONG) as live:
        (inside,) = generate(reasoner, [prompt], interventions=live, **options)
        with pytest.raises(InputError, match="differ from those of `intervene`"):
            generate(reasoner, [prompt], interventions=live, format="plain", **options)
    assert inside.text == given.text
    assert inside.meta == given.meta
    assert live.report()["activations"].sum() > 0


def test_an_answer_that_closes_what_nothing_opened_is_kept_and_said(reasoner, tmp_path):
    prompt = prompt_text(reasoner.tokenizer, PROBLEMS[0].messages).removesuffix("<think>\n")
    with pytest.warns(UserWarning, match="nothing opens the thinking"):
        (trace,) = generate(reasoner, [prompt], max_new_tokens=120, progress=False)
    assert trace.meta["unopened_thinking"]
    assert not trace.segment("thinking")
    write_traces(tmp_path / "a.jsonl", [trace])
    (back,) = read_traces(tmp_path / "a.jsonl", reasoner.tokenizer)
    assert torch.equal(back.tokens, trace.tokens)
    with pytest.raises(InputError, match="nothing opens the thinking"):  # what somebody else made is still questioned
        Trace.from_tokens(reasoner.tokenizer, trace.tokens, prompt_tokens=trace.prompt_tokens)


def test_tokens_that_the_tokenizer_does_not_have_are_never_chosen(tmp_path):
    tokenizer_size = 350
    model = load_model(save_tiny("qwen2", tmp_path, vocab_size=tokenizer_size + 50, tie_word_embeddings=False))
    assert len(model.tokenizer) == tokenizer_size
    with torch.no_grad():
        model.original_model.lm_head.weight[tokenizer_size:] *= 30  # what is not in the tokenizer is the most likely
    for options in ({}, {"temperature": 5.0}):
        traces = generate(model, ["Facts: k = 37."] * 2, max_new_tokens=20, progress=False, **options)
        assert max(int(trace.tokens.max()) for trace in traces) < tokenizer_size


def test_one_prompt_in_the_place_of_a_list_is_refused(reasoner):
    for prompt in ("2+2?", PROBLEMS[0].messages):
        with pytest.raises(InputError, match=r"is one prompt: give a list of prompts, \[prompt\]"):
            generate(reasoner, prompt, progress=False)


def test_logits_that_are_not_finite_are_named():
    with pytest.raises(NumericalError, match="not finite"):
        draw_tokens(torch.tensor([[0.0, float("nan")]]), 1.0, 1.0, torch.tensor([0.5]))
    assert draw_tokens(torch.tensor([[0.0, 3.0]]), 1e-6, 1.0, torch.tensor([0.99])).tolist() == [1]
