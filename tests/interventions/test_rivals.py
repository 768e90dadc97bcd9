"""PASTA, SpotLight, attention temperature and their controls: equal to the published equations, written as loops.

That they act alike in a whole pass, in chunks, token by token, in padded batches and under saliency is tested with all other
interventions in `test_stepflow.py`.
"""

import itertools
import json
import math

import pytest
import torch
from helpers import unchecked
from reference import emphasised_keys, emphasised_model, pasta_row, spotlight_row, tempered_row

import stepsal
from stepsal import InputError, Trace, intervene
from stepsal.ablation.results import Results
from stepsal.ablation.tables import ablation
from stepsal.cli import main
from stepsal.interventions import (
    AttentionTemperature,
    Pasta,
    RandomPasta,
    RandomSpotLight,
    RandomTemperature,
    SpotLight,
)
from stepsal.interventions.attention_temperature import entropy, temper
from stepsal.interventions.spans import SPANS
from stepsal.models import host_of

QUESTION = [{"role": "user", "content": "Facts: m = k + 25. k = 37.\nStart at k. What is m?"}]
THINKING = "First k = 37.\n\nThen m = k + 25.\n\nThat is 37 + 25.\n\nIt is 62.\n\nSo it is 62.\n</think>\n\n"
RIVALS = {
    "PASTA": (
        lambda **options: Pasta("all", coefficient=0.05, **options),
        lambda row, keys: pasta_row(row, keys, 0.05),
    ),
    "SpotLight": (
        lambda **options: SpotLight("all", psi=0.4, **options),
        lambda row, keys: spotlight_row(row, keys, 0.4),
    ),
}
each_rival = pytest.mark.parametrize(("make", "rule"), RIVALS.values(), ids=RIVALS.keys())
CONTROLS = {RandomPasta: Pasta, RandomSpotLight: SpotLight, RandomTemperature: AttentionTemperature}


@pytest.fixture(scope="module")
def trace():
    """Five thinking steps, so that the last three are not all of them, and two summary steps."""
    return Trace.from_text(stepsal.load_tokenizer(), QUESTION, THINKING + "From the steps.\n\nSo \\boxed{62}")


def used_patterns(model, trace, interventions):
    """The attention patterns of one sequence as the model uses them, a tensor `head query key` for each layer."""
    seen, host = {}, host_of(model)

    def keep(layer):
        return lambda pattern, hook: seen.update({layer: pattern.detach()[0].clone()})

    hooks = [host.at_pattern(layer, keep(layer)) for layer in range(host.shape.layers)]
    with torch.no_grad(), intervene(model, interventions) as live, host.hooks(hooks):
        model(trace.tokens[None])
    return [seen[layer] for layer in sorted(seen)], live.report()


def random_pattern(seed=0, sharp=3.0):
    """Rows over 11 causal keys, `batch head query key` of sizes 2, 3, 5, 11."""
    generator = torch.Generator().manual_seed(seed)
    causal = torch.ones(5, 11, dtype=torch.bool).tril(6)
    return (sharp * torch.randn(2, 3, 5, 11, generator=generator)).masked_fill(~causal, -torch.inf).softmax(-1)


# --- the equations ---------------------------------------------------------------------------------------------------
@each_rival
@pytest.mark.parametrize("span", SPANS)
def test_a_model_under_a_rival_equals_its_published_equation_row_by_row(tiny, trace, make, rule, span):
    (before, *_), _ = used_patterns(tiny, trace, ())
    (after, *_), report = used_patterns(tiny, trace, make(span=span))
    torch.testing.assert_close(after, emphasised_model(before, trace, rule, span), rtol=2e-5, atol=1e-6)
    keys = [emphasised_keys(query, trace.steps, trace.step_of.tolist(), span) for query in range(len(trace.tokens))]
    rows = [query for query, its in enumerate(keys) if its]
    masses = [
        torch.stack([pattern[:, query, keys[query]].sum(-1) for query in rows]).mean(0) for pattern in (before, after)
    ]
    first = report[report.layer == 0]
    assert first.opportunities.tolist() == [len(rows)] * 4
    for mass, column in zip(masses, (first.mean_span_before, first.mean_span_after), strict=True):
        assert column.tolist() == pytest.approx(mass.tolist(), rel=1e-4)


@pytest.mark.parametrize("tau", [0.3, 0.9, 2, 7])
def test_a_tempered_model_equals_the_softmax_of_scores_divided_by_the_temperature(tiny, trace, tau):
    (before, *_), _ = used_patterns(tiny, trace, ())
    (after, *_), _ = used_patterns(tiny, trace, AttentionTemperature("all", tau=tau))
    question = trace.steps[0].stop
    assert torch.equal(after[:, :question], before[:, :question])
    for head, query in itertools.product(range(4), range(question, len(trace.tokens))):
        expected = tempered_row(before[head, query, : query + 1], tau)
        torch.testing.assert_close(after[head, query, : query + 1], expected, rtol=2e-4, atol=1e-6)
        assert not after[head, query, query + 1 :].any()


def test_a_span_holds_steps_that_are_over_and_the_last_three_of_the_thinking(trace):
    step_of = trace.step_of.tolist()
    thinking, summary = trace.segment("thinking"), trace.segment("summary")
    assert len(thinking) == 5
    assert emphasised_keys(trace.steps[0].stop - 1, trace.steps, step_of, "question") == []
    assert emphasised_keys(thinking[0].start, trace.steps, step_of, "thinking") == []
    assert emphasised_keys(thinking[2].stop - 1, trace.steps, step_of, "thinking")[-1] == thinking[1].stop - 1
    last = emphasised_keys(summary[1].start, trace.steps, step_of, "last_steps")
    assert (last[0], last[-1]) == (thinking[2].start, thinking[4].stop - 1)


# --- properties ------------------------------------------------------------------------------------------------------
EVERY = [Pasta(coefficient=0.2), SpotLight(psi=0.4), AttentionTemperature(tau=2), AttentionTemperature(tau=0.5)]
EVERY += [RandomPasta(coefficient=0.2, seed=1), RandomSpotLight(psi=0.4, seed=1), RandomTemperature(tau=2, seed=1)]
EVERY += [RandomTemperature(tau=0.5), RandomPasta(span="thinking", bos_in_span=False), Pasta(coefficient=0)]


@pytest.mark.parametrize("part", EVERY, ids=str)
def test_rows_sum_to_one_and_see_no_later_key_and_the_question_stays_as_it_is(tiny, trace, part):
    plain, _ = used_patterns(tiny, trace, ())
    used, report = used_patterns(tiny, trace, part)
    later = torch.ones(len(trace.tokens), len(trace.tokens), dtype=torch.bool).triu(1)
    question = trace.steps[0].stop
    for pattern in used:
        torch.testing.assert_close(pattern.sum(-1), torch.ones_like(pattern.sum(-1)), rtol=1e-5, atol=1e-6)
        assert not pattern[:, later].any()
        assert (pattern >= 0).all()
    assert torch.equal(used[0][:, :question], plain[0][:, :question])
    changed = (used[0] != plain[0]).any(-1).sum(-1)
    assert (changed > 0).all()
    assert (changed <= torch.tensor(report.activations[:4].tolist())).all()


@pytest.mark.parametrize(
    "part",
    [
        *(kind(coefficient=1) for kind in (Pasta, RandomPasta)),
        *(kind(psi=0) for kind in (SpotLight, RandomSpotLight)),
        *(kind(tau=1) for kind in (AttentionTemperature, RandomTemperature)),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("error")  # a part that is meant to do nothing is not warned about
def test_the_neutral_strength_is_the_identity_to_the_bit(tiny, trace, part):
    plain = tiny(trace.tokens[None])
    with intervene(tiny, part) as live:
        assert torch.equal(tiny(trace.tokens[None]), plain)
    assert live.report().activations.sum() == 0
    assert part.does_nothing


def test_a_smaller_coefficient_and_a_larger_target_give_the_span_more_in_every_row(qwen2, trace):
    question = trace.steps[0].stop
    for parts in (
        [SpotLight([0], psi=value) for value in (0, 0.4, 0.6, 0.9)],
        [Pasta([0], coefficient=value) for value in (1, 0.5, 0.1, 0.01, 0)],
    ):
        masses = [used_patterns(qwen2, trace, part)[0][0][:, question:, :question].sum(-1) for part in parts]
        for less, more in itertools.pairwise(masses):
            assert (more >= less - 1e-6).all()
            assert more.mean() > less.mean()
    torch.testing.assert_close(masses[-1], torch.ones_like(masses[-1]))  # a coefficient of 0 leaves the span alone


def test_spotlight_lifts_a_share_towards_its_target_and_never_beyond(qwen2, trace):
    question, psi = trace.steps[0].stop, 0.6
    before, after = (
        used_patterns(qwen2, trace, parts)[0][0][:, question:, :question].sum(-1)
        for parts in ((), SpotLight([0], psi=psi))
    )
    low = before < psi
    assert low.any()
    assert not low.all()
    torch.testing.assert_close(after[low], psi / (1 + psi - before[low]), rtol=1e-5, atol=1e-6)
    assert torch.equal(after[~low], before[~low])


def test_the_entropy_of_a_row_grows_with_the_temperature():
    pattern = random_pattern()
    values = [entropy(temper(pattern, tau)) for tau in (0.1, 0.5, 1.0, 2.0, 10.0)]
    assert all((more >= less - 1e-6).all() for less, more in itertools.pairwise(values))
    most = torch.arange(7, 12).double().log().expand(2, 3, 5)  # of rows that see 7 to 11 keys
    torch.testing.assert_close(entropy(temper(pattern.double(), 1e6)), most)


@pytest.mark.parametrize("tau", [0.01, 0.001])
def test_a_very_small_temperature_leaves_the_largest_key(tau):
    pattern = torch.tensor([0.001, 0.0012, 0.0])[None, None, None]
    assert temper(pattern, tau)[0, 0, 0, 1] == pytest.approx(0.0022, rel=1e-3)


def test_an_attention_sink_keeps_what_it_had():
    """A row that sums to less than 1 keeps its total, as the bridge does."""
    pattern = 0.7 * random_pattern()
    torch.testing.assert_close(temper(pattern, 2.0).sum(-1), pattern.sum(-1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("part", [Pasta(coefficient=0.1), SpotLight(psi=0.6), AttentionTemperature(tau=2)], ids=str)
def test_a_rival_keeps_the_precision_of_the_pattern(qwen2, trace, part, dtype):
    kept, host = [], host_of(qwen2)
    narrow = host.at_pattern(0, lambda pattern, hook: pattern.to(dtype))
    wide = host.at_pattern(0, lambda pattern, hook: kept.append(pattern) or pattern.float())
    with torch.no_grad(), host.hooks([narrow]), intervene(qwen2, part), host.hooks([wide]):
        qwen2(trace.tokens[None])
    assert kept[0].dtype == dtype
    torch.testing.assert_close(kept[0].sum(-1).float(), torch.ones(1, 4, len(trace.tokens)), rtol=0, atol=0.02)


@pytest.mark.parametrize("tau", [0.5, 2.0])
def test_the_gradient_of_a_temperature_is_that_of_its_formula_and_finite_where_keys_are_masked(tau):
    pattern = random_pattern(sharp=0.5).double()
    visible = pattern[:, :, -1:].requires_grad_(True)
    assert torch.autograd.gradcheck(lambda row: temper(row, tau), visible, atol=1e-5)
    masked = pattern.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(temper(masked, tau).square().sum(), masked)
    assert torch.isfinite(gradient).all()


# --- controls --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", CONTROLS, ids=lambda kind: kind.name)
def test_a_control_depends_on_its_seed_alone_and_does_something_else(qwen2, trace, kind):
    strength = (
        {"coefficient": 0.05} if kind is RandomPasta else {"psi": 0.7} if kind is RandomSpotLight else {"tau": 3.0}
    )
    logits = []
    for part in (*(kind(seed=seed, **strength) for seed in (1, 1, 2)), CONTROLS[kind](**strength)):
        with torch.no_grad(), intervene(qwen2, part):
            logits.append(qwen2(trace.tokens[None]))
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])
    assert (logits[0] - logits[3]).abs().max() > 0.01
    assert kind.control_of is CONTROLS[kind]


@pytest.mark.parametrize("span", SPANS)
def test_a_random_span_is_as_large_and_before_the_query_and_emphasised_alike(qwen2, trace, span):
    (used, *_), report = used_patterns(qwen2, trace, RandomPasta([0], coefficient=0, span=span, seed=5))
    step_of, read = trace.step_of.tolist(), used[0] > 0
    spans = {query: emphasised_keys(query, trace.steps, step_of, span) for query in range(len(step_of))}
    spans = {query: keys for query, keys in spans.items() if keys}
    others = 0
    for query, keys in spans.items():
        picked = read[query].nonzero().flatten().tolist()  # with a coefficient of 0 nothing else is left
        assert len(picked) == len(keys)
        assert max(picked) < query
        others += picked != keys
    assert others > len(spans) / 2  # the first row after the question has nothing else before it
    assert report.opportunities.tolist() == [len(spans)] * 4


def test_the_control_of_a_temperature_moves_as_much_attention_to_other_keys(qwen2, trace):
    for tau in (0.5, 3.0):
        plain, tempered, control = (
            used_patterns(qwen2, trace, parts)[0][0].double()
            for parts in ((), AttentionTemperature([0], tau=tau), RandomTemperature([0], tau=tau, seed=2))
        )
        gains = (tempered - plain).clamp(min=0)
        lowered = torch.minimum(tempered, plain)
        redirected = (control - lowered).clamp(min=0)
        torch.testing.assert_close(redirected.sort(-1).values, gains.sort(-1).values, rtol=0, atol=1e-6)
        assert not torch.allclose(redirected, gains, atol=1e-3)


# --- everywhere by the protocol alone ----------------------------------------------------------------------------------
@pytest.mark.bridge
def test_rivals_are_swept_and_stand_in_the_ablation_table_beside_their_controls(tmp_path):
    config = {
        "problems": {"count": 2},
        "decoding": {"max_new_tokens": 3},
        "grid": {
            "parts": [
                "pasta",
                "random-pasta",
                "spotlight",
                "random-spotlight",
                "attention-temperature",
                "smi+spotlight",
            ],
            "layers": [[2, 3]],
            "span": "last_steps",
            "psi": 0.3,
            "coefficient": 0.1,
            "tau": 2,
        },
    }
    rows = stepsal.sweep(config, out=tmp_path, workers=1, progress=False)
    assert rows["setting"].drop_duplicates().tolist()[1:4] == [
        "pasta layers 2-3, coefficient 0.1, span last_steps",
        "random-pasta layers 2-3, coefficient 0.1, span last_steps",
        "spotlight layers 2-3, psi 0.3, span last_steps",
    ]
    tables = ablation(Results(rows))
    text = "\n".join(table.markdown() for table in tables)
    assert "| PASTA, layers 2–3, PASTA's α 0.1, span last_steps |" in text
    assert "| attention temperature, layers 2–3, τ 2 |" in text
    assert "random SpotLight" in text
    assert main(["figure", "effects", str(tmp_path), "--out", str(tmp_path / "effects.png")]) == 0


@pytest.mark.bridge
def test_generate_takes_rivals_on_the_command_line_and_answers_as_a_whole_pass_would(tmp_path, reasoner):
    prompt = stepsal.reasoner.make_problem("test", 0).messages
    problems, out = tmp_path / "problems.jsonl", tmp_path / "traces.jsonl"
    problems.write_text(json.dumps({"id": "one", "messages": prompt}) + "\n")
    parts = (Pasta([2], coefficient=0.2), SpotLight([0, 1]), AttentionTemperature([3], tau=1.2))
    options = ["--pasta", "0.2", "--spotlight", "--attention-temperature", "1.2"]
    options += ["--layers", "pasta=2", "spotlight=0,1", "attention-temperature=3"]
    assert main(["generate", str(problems), "--out", str(out), "--max-new-tokens", "24", *options]) == 0
    (trace,) = stepsal.read_traces(out, reasoner.tokenizer)
    assert trace.meta["interventions"] == json.loads(json.dumps([part.record for part in parts]))
    with torch.no_grad(), intervene(reasoner, parts) as live:
        live.question_tokens = [trace.steps[0].stop]
        logits = reasoner(trace.tokens[None])[0]
    assert torch.equal(logits[-25:-1].argmax(-1), trace.tokens[-24:])


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (Pasta, {"coefficient": 1.5}, "coefficient=1.5 must be a number in \\[0, 1\\]"),
        (Pasta, {"coefficient": math.nan}, "coefficient=nan"),
        (Pasta, {"span": "answer"}, "unknown span 'answer': expected 'question' or 'thinking' or 'last_steps'"),
        (SpotLight, {"psi": 1.0}, "psi=1.0 must be a number in \\[0, 1\\)"),
        (SpotLight, {"psi": True}, "psi=True"),
        (SpotLight, {"bos_in_span": 1}, "bos_in_span=1 must be True or False"),
        (AttentionTemperature, {"tau": 0}, "tau=0 must be a finite number above 0"),
        (AttentionTemperature, {"tau": math.inf}, "tau=inf"),
        (RandomPasta, {"seed": -1}, "seed=-1 must be a whole number"),
        (RandomTemperature, {"seed": 0.5}, "seed=0.5 must be a whole number"),
    ],
)
def test_parameters_that_mean_nothing_are_refused(kind, options, message):
    part = object.__new__(kind)
    with pytest.raises(InputError, match=message):
        unchecked(kind.__init__)(part, **options)
