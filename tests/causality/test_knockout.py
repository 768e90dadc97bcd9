"""Step knockout: exact against loops, in both modes; under interventions; its limit; its files."""

from functools import partial

import pytest
import torch
from helpers import unchecked
from reference import direct_knockout_by_loops, pooled_knockout, total_knockout_by_loops

import stepsal
from stepsal import InputError, Knockout, Trace
from stepsal.causality import runs
from stepsal.models import host_of
from stepsal.reasoner import make_problem


@pytest.fixture(scope="module")
def model():
    return stepsal.load_model()


@pytest.fixture(scope="module")
def trace(model):
    problem = make_problem("test", 0)
    return Trace.from_text(model.tokenizer, problem.messages, problem.response)


def expected_of(host, trace, by_loops, sources, **options):
    with torch.no_grad():
        base = host.forward(trace.tokens[None], [])[0]
        return {
            source: pooled_knockout(base, by_loops(host, trace, source, **options), trace, source) for source in sources
        }


@pytest.mark.parametrize(
    ("mode", "by_loops"), [("total", total_knockout_by_loops), ("direct", direct_knockout_by_loops)]
)
def test_a_knockout_equals_loops_over_sources_and_rows(model, trace, mode, by_loops):
    sources = [0, 1, 3]
    found = stepsal.step_knockout(model, trace, mode=mode, sources=sources)
    for source, (kl, loss) in expected_of(host_of(model), trace, by_loops, sources).items():
        torch.testing.assert_close(found.kl[:, source], kl, rtol=1e-4, atol=1e-5, equal_nan=True)
        torch.testing.assert_close(found.loss[:, source], loss, rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("mode", ["total", "direct"])
def test_neither_the_batch_nor_the_chunk_changes_a_knockout(model, trace, mode, monkeypatch):
    expected = stepsal.step_knockout(model, trace, mode=mode)
    monkeypatch.setattr(runs, "MAX_BATCH", 1)
    monkeypatch.setattr(runs, "CHUNK", 7)
    monkeypatch.setattr(runs, "WAIT", 1)
    found = stepsal.step_knockout(model, trace, mode=mode)
    for name in ("kl", "loss", "answer"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize(
    ("mode", "by_loops"), [("total", total_knockout_by_loops), ("direct", direct_knockout_by_loops)]
)
def test_a_knockout_under_interventions_is_that_of_the_changed_model(model, trace, mode, by_loops):
    parts = stepsal.stepflow(oeb_layers="all", smi_layers="all", tau_max=0.7, alpha=1.5)
    with stepsal.intervene(model, parts):
        found = stepsal.step_knockout(model, trace, mode=mode, sources=[1, 2])
        if mode == "total":
            expected = expected_of(host_of(model), trace, by_loops, [1, 2])
    if mode == "direct":
        around = partial(stepsal.intervene, model, parts)
        with torch.no_grad():
            with around():
                base = host_of(model).forward(trace.tokens[None], [])[0]
            others = {s: by_loops(host_of(model), trace, s, around=around) for s in (1, 2)}
        expected = {s: pooled_knockout(base, other, trace, s) for s, other in others.items()}
    for source, (kl, loss) in expected.items():
        torch.testing.assert_close(found.kl[:, source], kl, rtol=1e-3, atol=2e-5, equal_nan=True)
        torch.testing.assert_close(found.loss[:, source], loss, rtol=1e-3, atol=2e-5, equal_nan=True)
    assert not host_of(model).has_hooks()


def test_a_small_removal_is_what_the_gradient_says(trace):
    """Removing a part of the attention on a step, with renormalisation, changes each loss as the signed influence says."""
    model = stepsal.load_model(dtype="float64")
    host, source, part = host_of(model), 2, 1e-2  # patterns are rounded to float32
    removed = torch.zeros(2, len(trace.steps), dtype=torch.bool)
    removed[1, source] = True
    changes, targets = [], trace.tokens[1:, None]
    for sign in (1, -1):  # a negative part adds attention
        removal = runs.StepRemoval(host, "direct", trace.step_of, removed, True, sign * part)
        with torch.no_grad():
            chunks = runs.passes(host, trace.tokens[None, :-1], [(0, 1)], host.new_cache(), removal)
            logits = torch.cat([each for _, each in chunks], 1)
        losses = -logits.log_softmax(-1).gather(2, targets.expand(2, -1, -1))[..., 0]
        changes.append(losses[1] - losses[0])
    slope = (changes[0] - changes[1]) / (2 * part)
    signed = stepsal.token_influence(model, trace, rule="signed").double()
    pattern = stepsal.token_influence(model, trace, rule="attention").double()
    inside = torch.zeros(len(trace.tokens), dtype=torch.bool)
    inside[trace.steps[source].start : trace.steps[source].stop] = True
    taken, left = pattern[..., inside].sum(-1), pattern[..., ~inside].sum(-1)
    # log(1 - part) on the step's scores takes `part * left` of its attention and gives it to the rest, both in proportion.
    expected = taken * signed[..., ~inside].sum(-1) - left * signed[..., inside].sum(-1)
    later = trace.step_of[:-1] > source
    torch.testing.assert_close(slope[later], expected.sum((0, 1))[:-1][later], rtol=1e-3, atol=1e-3)
    assert not changes[0][~later].any()


def test_entries_that_were_not_computed_are_missing_and_not_zero(model, trace):
    found = stepsal.step_knockout(model, trace, sources=[2])
    n, known = len(trace.steps), torch.zeros(len(trace.steps), len(trace.steps), dtype=torch.bool)
    known[3:, 2] = True
    assert torch.equal(torch.isnan(found.kl), ~known)
    assert torch.equal(torch.isnan(found.loss), ~known)
    assert torch.isnan(found.answer).tolist() == [source != 2 for source in range(n)]
    assert (found.kl[known] >= -1e-6).all()


def test_the_answer_is_the_summed_loss_of_its_tokens(model, trace):
    summary = [step for step in trace.steps if step.segment == "summary"]
    span = (summary[0].start, summary[-1].stop)
    found = stepsal.step_knockout(model, trace, sources=[1])
    assert found.meta["answer"] == list(span)
    host = host_of(model)
    with torch.no_grad():
        runs = (host.forward(trace.tokens[None], [])[0], total_knockout_by_loops(host, trace, 1))
    targets = torch.arange(*span)
    base, other = (run.log_softmax(-1)[targets - 1, trace.tokens[targets]] for run in runs)
    torch.testing.assert_close(found.answer[1], (base - other).sum(), rtol=1e-4, atol=1e-5)
    one = stepsal.step_knockout(model, trace, sources=[1], answer=(span[0], span[0] + 1))
    torch.testing.assert_close(one.answer[1], (base - other)[0], rtol=1e-4, atol=1e-5)


def test_a_starved_step_has_nothing_left_to_be_knocked_out(model, trace):
    """Where no later token can read a step anyway, its knockout changes nothing."""
    host = host_of(model)
    removed = torch.zeros(1, len(trace.steps), dtype=torch.bool)
    removed[0, 2] = True
    removal = runs.StepRemoval(host, "total", trace.step_of, removed.expand(8, -1), True)
    removal.at(0, len(trace.tokens) - 1)

    def starve(scores, hook):
        queries, keys = scores.shape[-2:]
        forbidden = removal.forbidden[:1, :, keys - queries : keys, :keys]
        return scores.masked_fill(forbidden, torch.finfo(scores.dtype).min)

    with host.hooks([host.at_scores(layer, starve) for layer in range(8)]):
        found = stepsal.step_knockout(model, trace, sources=[2])
    assert found.kl[3:, 2].nan_to_num().abs().max() < 1e-6


def test_a_saved_knockout_is_read_back_whole(model, trace, tmp_path):
    found = stepsal.step_knockout(model, trace)
    found.save(tmp_path / "one.safetensors")
    read = Knockout.load(tmp_path / "one.safetensors")
    for name in ("kl", "loss", "answer"):
        assert torch.equal(getattr(read, name).nan_to_num(-1), getattr(found, name).nan_to_num(-1))
    assert (read.steps, read.meta) == (found.steps, found.meta)
    whole = (tmp_path / "one.safetensors").read_bytes()
    (tmp_path / "bad.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(stepsal.FileError, match="its checksum differs"):
        Knockout.load(tmp_path / "bad.safetensors")
    with pytest.raises(stepsal.FileError, match="is not a step map"):
        stepsal.StepMap.load(tmp_path / "one.safetensors")


def test_a_knockout_whose_tensors_share_their_memory_is_saved_like_any_other(model, trace, tmp_path):
    found = stepsal.step_knockout(model, trace, sources=[1])
    shared = Knockout(found.kl, found.kl, found.kl[-1], found.steps, found.meta)
    shared.save(tmp_path / "one.safetensors")
    read = Knockout.load(tmp_path / "one.safetensors")
    for name, expected in (("kl", found.kl), ("loss", found.kl), ("answer", found.kl[-1])):
        assert torch.equal(getattr(read, name).nan_to_num(-1), expected.nan_to_num(-1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "both"}, "unknown mode 'both': expected one of total, direct"),
        ({"sources": "thinking"}, "must be 'all' or the indices of steps"),
        ({"sources": [99]}, "expected indices of steps that have a later step"),
        ({"sources": [True]}, "expected indices of steps that have a later step"),
        ({"answer": (5, 5)}, r"answer \(5, 5\) must be token positions"),
        ({"answer": 5}, "answer=5 must be two token positions"),
    ],
)
def test_options_that_mean_nothing_are_refused(model, trace, options, message):
    with pytest.raises(InputError, match=message):
        unchecked(stepsal.step_knockout)(model, trace, **options)


def test_one_question_length_holds_for_every_row_of_a_knockout(model, trace):
    """A knockout runs in batches, however many rows its caller knows of."""
    parts = stepsal.stepflow(oeb_layers="all", smi_layers="all", tau_max=0.7, alpha=1.5)
    with stepsal.intervene(model, parts):
        expected = stepsal.step_knockout(model, trace, sources=[1, 2])
    with stepsal.intervene(model, parts) as live:
        live.question_tokens = trace.steps[0].stop
        found = stepsal.step_knockout(model, trace, sources=[1, 2])
        live.question_tokens = [trace.steps[0].stop]
        with pytest.raises(InputError, match="or one number for all of them"):
            stepsal.step_knockout(model, trace, sources=[1, 2])
    assert torch.equal(found.kl.nan_to_num(-1), expected.kl.nan_to_num(-1))


@pytest.mark.parametrize("mode", ["total", "direct"])
def test_in_half_precision_a_knockout_differs_by_that_precision_alone(model, trace, mode):
    exact = stepsal.step_knockout(model, trace, mode=mode, sources=[1, 3])
    half = stepsal.step_knockout(stepsal.load_model(dtype="bfloat16"), trace, mode=mode, sources=[1, 3])
    known = ~exact.kl.isnan()
    assert torch.equal(half.kl.isnan(), ~known)
    both = torch.stack([exact.kl[known], half.kl[known]])
    assert torch.corrcoef(both)[0, 1] > 0.99
