import pytest
import torch
from conftest import save_tiny

from stepsal import InputError, generate, load_model
from stepsal.reasoner import make_problems

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
    with pytest.raises(InputError, match="no end-of-sequence token"):
        generate(model, ["2+2?"], max_new_tokens=3, progress=False)


def test_no_prompts_give_no_traces(reasoner):
    assert generate(reasoner, [], progress=False) == []
