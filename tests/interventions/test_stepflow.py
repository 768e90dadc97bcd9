import itertools
import math
import random
from dataclasses import dataclass
from typing import ClassVar

import hooked
import pytest
import torch
from conftest import save_tiny
from helpers import unchecked
from hooked import TL3
from reference import (
    apply_rule,
    bridged_row,
    logits_with_interventions,
    official_bridge,
    starve,
)
from torch.nn.functional import cross_entropy

import stepsal
from stepsal import InputError, Trace, UnsupportedModelError, step_saliency
from stepsal.interventions import (
    AttentionTemperature,
    NoiseMomentum,
    OddsEqualBridge,
    Pasta,
    RandomBridge,
    RandomMomentum,
    RandomPasta,
    RandomSpotLight,
    RandomTemperature,
    SpotLight,
    Starvation,
    StepMomentum,
)
from stepsal.interventions.base import INTERVENTIONS
from stepsal.interventions.bridge import bridge_pattern, make_groups
from stepsal.interventions.intervene import intervene
from stepsal.interventions.odds import scale_odds
from stepsal.interventions.random_bridge import random_groups
from stepsal.interventions.stepflow import stepflow
from stepsal.interventions.text_state import CODES, Follower
from stepsal.models import host_of, support
from stepsal.models.bridge import BridgeHost
from stepsal.traces.segment import Segmenter

QUESTION = [{"role": "user", "content": "Facts: m = k + 25. k = 37.\nStart at k. What is m?"}]
STRONG = {"tau_max": 0.7}
PARTS = {
    "bridge": OddsEqualBridge("all", **STRONG),
    "bridge of steps": OddsEqualBridge("all", scope="step", **STRONG),
    "bridge, BOS out, clamped": OddsEqualBridge("all", bos_in_bridge=False, feasible="clamp", **STRONG),
    "momentum": StepMomentum("all", alpha=1.5),
    "momentum of a window": StepMomentum("all", alpha=1.5, window=4),
    "random bridge": RandomBridge("all", seed=3, **STRONG),
    "random momentum": RandomMomentum("all", alpha=1.5, seed=3),
    "noise": NoiseMomentum("all", alpha=1.5, seed=3),
    "starvation": Starvation("thinking", "all", odds=0.1),
    "starved openings": Starvation("openings", "all"),
    "PASTA": Pasta("all", coefficient=0.1, span="last_steps", bos_in_span=False),
    "SpotLight": SpotLight("all", psi=0.7),
    "attention temperature": AttentionTemperature("all", tau=3),
    "random PASTA": RandomPasta("all", coefficient=0.1, span="thinking", seed=3),
    "random SpotLight": RandomSpotLight("all", psi=0.7, bos_in_span=False, seed=3),
    "random temperature": RandomTemperature("all", tau=3, seed=3),
    "official bridge": OddsEqualBridge("all", feasible="official", **STRONG),
    "both": stepflow(oeb_layers="all", smi_layers="all", tau_max=0.7, alpha=1.5),
}
each_part = pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS.keys())


@pytest.fixture(autouse=True)
def no_gradients(request):
    with torch.set_grad_enabled("gradient" in request.node.name or "saliency" in request.node.name):
        yield


@pytest.fixture(scope="module")
def traces():
    """Three traces of different lengths and numbers of steps; the last is cut in its thinking."""
    texts = (
        "First k = 37.\n\nThen m = k + 25 = 37 + 25 = 62.\n\nSo it is 62.\n</think>\n\nFrom the steps.\n\nSo \\boxed{62}",
        "Add.\n\nIt is 62.\n</think>62",
        "First k = 37.\n\nThen m\n\nis k + 25, I think\n\nand",
    )
    return [Trace.from_text(stepsal.load_tokenizer(), QUESTION, text) for text in texts]


def in_chunks(model, tokens, size, mask=None):
    """Logits by a hand-written loop over a cache."""
    if TL3:
        return hooked.in_chunks(model, tokens, size, mask)
    cache, logits = host_of(model).new_cache(), []
    for start in range(0, tokens.shape[1], size):
        stop = min(start + size, tokens.shape[1])
        options = {} if mask is None else {"attention_mask": mask[:, :stop]}
        out, _ = model(tokens[:, start:stop], return_type="logits_and_cache", past_key_values=cache, **options)
        logits.append(out)
    return torch.cat(logits, 1)


def padded(traces, left=True):
    width = max(len(trace.tokens) for trace in traces)
    tokens, mask = torch.full((2, len(traces), width), 0)
    for row, trace in enumerate(traces):
        place = slice(width - len(trace.tokens), width) if left else slice(0, len(trace.tokens))
        tokens[row, place], mask[row, place] = trace.tokens, 1
    return tokens, mask


def patterns(model, tokens, parts, **options):
    """Attention patterns of all layers as they are used, and head outputs."""
    seen = {}

    def keep(tensor, hook):
        seen[hook.name] = tensor.detach().clone()

    host = host_of(model)
    hooks = [at(layer, keep) for layer in range(3) for at in (host.at_pattern, host.at_head_outputs)]
    with intervene(model, parts), model.hooks(fwd_hooks=hooks):
        model(tokens, **options)
    found = list(seen.values())
    return found[::2], found[1::2]


def random_rows(seed=0, sharp=3.0):
    """Patterns, `batch head query key` of sizes 2, 3, 5, 11, with random groups of the visible keys."""
    generator = torch.Generator().manual_seed(seed)
    causal = torch.ones(5, 11, dtype=torch.bool).tril(6)
    scores = sharp * torch.randn(2, 3, 5, 11, generator=generator)
    pattern = scores.masked_fill(~causal, -torch.inf).softmax(-1)
    group = torch.randint(0, 3, (2, 5, 11), generator=generator)
    return pattern, (group == 0) & causal, (group == 1) & causal


def build(kind, **options):
    """A part without the test run's type checks."""
    part = object.__new__(kind)
    unchecked(kind.__init__)(part, **options)
    return part


# --- the bridge, as a function of tensors ----------------------------------------------------------------------------
@pytest.mark.parametrize("feasible", ["share", "clamp"])
@pytest.mark.parametrize("tau_max", [0.05, 0.4, 0.99])
def test_the_bridge_equals_the_rule_written_as_loops(feasible, tau_max):
    pattern, bridge, current = random_rows()
    found = bridge_pattern(pattern, make_groups(bridge, current), tau_max, feasible)
    assert found.active.any()
    for b, h, q in itertools.product(range(2), range(3), range(5)):
        names = ["B" if bridge[b, q, k] else "S" if current[b, q, k] else "O" for k in range(11)]
        expected = bridged_row(pattern[b, h, q], names, tau_max, feasible)
        torch.testing.assert_close(found.pattern[b, h, q], expected, rtol=2e-5, atol=2e-6)
        assert torch.equal(expected, pattern[b, h, q]) != bool(found.active[b, h, q])


@pytest.mark.parametrize("feasible", ["share", "clamp"])
def test_a_bridged_row_keeps_its_total_and_all_of_the_rest_and_reaches_its_target(feasible):
    for seed in range(20):
        pattern, bridge, current = random_rows(seed)
        pattern = pattern * 0.83  # the rest went to an attention sink
        groups = make_groups(bridge, current)
        result, active, before, told = bridge_pattern(pattern, groups, 0.6, feasible)
        torch.testing.assert_close(result.sum(-1), pattern.sum(-1), rtol=1e-6, atol=1e-6)
        rest = ~(bridge | current)[:, None].expand_as(pattern)
        assert torch.equal(result[rest], pattern[rest])
        mass = (result * bridge[:, None]).sum(-1)
        reach = (pattern * (bridge | current)[:, None]).sum(-1)
        cap = reach * groups.share if feasible == "share" else reach - 1e-6
        target = torch.minimum(groups.share.clamp(max=0.6), cap)
        torch.testing.assert_close(mass[active], target[active], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(mass, torch.where(active, told, before), rtol=1e-5, atol=1e-6)
        assert (mass >= before - 1e-6).all()
        assert torch.equal(result[~active], pattern[~active])


def test_no_random_row_with_the_same_group_masses_is_closer_to_the_original():
    pattern, bridge, current = random_rows(4)
    result, active, *_ = bridge_pattern(pattern, make_groups(bridge, current), 0.6)
    b, h, q = active.nonzero()[0].tolist()
    seen = pattern[b, h, q] > 0
    original, bridged = pattern[b, h, q][seen].double(), result[b, h, q][seen].double()
    groups = [bridge[b, q][seen], current[b, q][seen], ~(bridge | current)[b, q][seen]]
    others = torch.rand(1000, len(original), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    others[::2] = bridged * (1 + 0.1 * (others[::2] - 0.5))  # half of them nearby
    for group in groups:
        others[:, group] *= bridged[group].sum() / others[:, group].sum(-1, keepdim=True)
    divergence = (others * (others / original).log()).sum(-1)
    assert ((bridged * (bridged / original).log()).sum() < divergence).all()


def test_multiplying_the_pattern_by_group_is_adding_a_constant_to_the_logits_by_group():
    pattern, bridge, current = random_rows(2)
    result, active, *_ = bridge_pattern(pattern, make_groups(bridge, current), 0.6)
    for b, h, q in active.nonzero().tolist():
        shift = (result[b, h, q] / pattern[b, h, q]).log()
        for group in (bridge[b, q], current[b, q]):
            assert shift[group].max() - shift[group].min() < 1e-5


@pytest.mark.parametrize("sharp", [3.0, 12.0])
def test_the_official_rule_is_reproduced_to_the_letter(sharp):
    """Also where a group holds much less than what the official code adds to every mass (`sharp=12`)."""
    tiny = 0
    for seed in range(20):
        pattern, bridge, current = random_rows(seed, sharp)
        logits = pattern.double().log()
        pattern = logits.softmax(-1)
        for tau_max in (0.15, 0.6):
            found = bridge_pattern(pattern, make_groups(bridge, current), tau_max, "official")
            for b, h, q in itertools.product(range(2), range(3), range(5)):
                groups = bridge[b, q], current[b, q]
                if not all(group.any() for group in groups):
                    assert torch.equal(found.pattern[b, h, q], pattern[b, h, q])
                    continue
                expected = official_bridge(logits[b, h, q], *groups, tau_max, smoothing=1e-6)
                torch.testing.assert_close(found.pattern[b, h, q], expected, rtol=1e-5, atol=1e-7)  # shares are float32
                if found.active[b, h, q]:
                    torch.testing.assert_close(
                        float(found.target[b, h, q]), float(expected[groups[0]].sum()), rtol=2e-6, atol=0
                    )
                    tiny += bool(found.before[b, h, q] < 1e-6)
    assert tiny or sharp == 3.0


def test_next_to_nothing_is_lifted_in_part_by_the_official_rule_and_wholly_by_the_clamp():
    pattern = torch.tensor([1e-9, 0.0, 1.0], dtype=torch.float64)[None, None, None]
    groups = make_groups(torch.tensor([[[True, True, False]]]), torch.tensor([[[False, False, True]]]))
    clamp, official = (bridge_pattern(pattern, groups, 0.6, rule).pattern[0, 0, 0] for rule in ("clamp", "official"))
    assert clamp.tolist() == pytest.approx([0.6, 0, 0.4])
    assert official[0] == pytest.approx(0.6 * 1e-3 / 0.4, rel=0.01)  # 1e-9 of 1e-6, and the row is normalised again
    assert (clamp - official).abs().max() > 0.5


def test_clamping_equals_the_official_rule_without_what_it_adds_to_every_mass():
    clamped = 0
    for seed in range(10):
        pattern, bridge, current = random_rows(seed)
        pattern = pattern.double()
        logits = pattern.log()
        found = bridge_pattern(pattern, make_groups(bridge, current), 0.4, "clamp")
        for b, h, q in itertools.product(range(2), range(3), range(5)):
            groups = bridge[b, q], current[b, q]
            if all(group.any() for group in groups):
                expected = official_bridge(logits[b, h, q], *groups, 0.4, smoothing=0)
                torch.testing.assert_close(found.pattern[b, h, q], expected, rtol=2e-5, atol=1e-9)  # counts are float32
                smoothed = official_bridge(logits[b, h, q], *groups, 0.4, smoothing=1e-6)
                slack = 1e-6 / min(float(found.before[b, h, q]), 1e-3) + 1e-5
                torch.testing.assert_close(found.pattern[b, h, q], smoothed, rtol=slack, atol=2e-6)
                clamped += bool(found.active[b, h, q] and found.target[b, h, q] < found.before[b, h, q] + 0.4 - 1e-3)
    assert clamped


def test_the_official_rule_can_wipe_out_the_current_segment_and_the_default_cannot():
    logits = torch.tensor([0.01, 0.01, 0.04, 0.04, 0.9]).double().log()
    bridge, current = torch.tensor([1, 1, 0, 0, 0]).bool(), torch.tensor([0, 0, 1, 1, 0]).bool()
    groups, pattern = make_groups(bridge[None, None], current[None, None]), logits.exp()[None, None, None]
    assert official_bridge(logits, bridge, current, 0.15, smoothing=1e-6)[current].sum() <= 1e-5
    assert bridge_pattern(pattern, groups, 0.15, "clamp").pattern[0, 0, 0][current].sum() <= 1e-5
    kept = bridge_pattern(pattern, groups, 0.15).pattern[0, 0, 0]
    assert kept[current].sum() > 0.02
    assert kept[bridge].sum() == pytest.approx(0.1 * math.sqrt(0.5))


def test_rows_without_a_group_or_without_mass_on_one_are_untouched():
    pattern = torch.tensor([0.0, 0.3, 0.7, 0.0])[None, None, None].expand(1, 1, 3, 4)
    bridge = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]).bool()[None]
    current = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 1], [1, 1, 1, 1]]).bool()[None]
    found = bridge_pattern(pattern, make_groups(bridge, current), 0.9)
    assert torch.equal(found.pattern, pattern)
    assert not found.active.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_bridge_keeps_the_precision_it_is_given(dtype):
    pattern, bridge, current = random_rows()
    found = bridge_pattern(pattern.to(dtype), make_groups(bridge, current), 0.6)
    assert found.pattern.dtype == dtype
    exact = bridge_pattern(pattern, make_groups(bridge, current), 0.6)
    torch.testing.assert_close(found.pattern.float(), exact.pattern, rtol=0.02, atol=0.004)


def test_the_gradient_of_the_bridge_is_that_of_its_formula():
    pattern, bridge, current = random_rows(sharp=0.5)
    groups = make_groups(bridge, current)
    pattern = pattern.double().requires_grad_(True)
    assert torch.autograd.gradcheck(lambda p: bridge_pattern(p, groups, 0.5).pattern, pattern, atol=1e-5)


def test_random_groups_have_the_sizes_of_the_true_ones_and_only_earlier_keys():
    _, bridge, current = random_rows()
    current |= torch.eye(5, 11, dtype=torch.bool).roll(6, 1) & ~bridge
    bridge &= ~torch.eye(5, 11, dtype=torch.bool).roll(6, 1)
    current |= torch.eye(5, 11, dtype=torch.bool).roll(6, 1)
    priority = torch.rand(2, 11, generator=torch.Generator().manual_seed(1))
    picked, rest = random_groups(bridge, current, priority)
    assert torch.equal(picked.sum(-1), bridge.sum(-1))
    assert torch.equal(rest.sum(-1), current.sum(-1))
    assert torch.equal(picked | rest, bridge | current)
    assert not (picked & rest).any()
    assert not picked[:, range(5), range(6, 11)].any()
    assert not torch.equal(picked, bridge)


# --- in a model: equal to loops over a trace -------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("part", "loops"),
    [
        (OddsEqualBridge("all", tau_max=0.7), ((0, 1, 2), range(4), {})),
        (
            OddsEqualBridge([0, 2], heads=[1, 3], scope="step", tau_max=0.95),
            ((0, 2), (1, 3), {"scope": "step", "tau_max": 0.95}),
        ),
        (OddsEqualBridge(-1, feasible="clamp", tau_max=0.7), ((2,), range(4), {"feasible": "clamp"})),
        (OddsEqualBridge("all", bos_in_bridge=False, tau_max=0.7), ((0, 1, 2), range(4), {"bos": False})),
    ],
)
def test_a_bridged_model_equals_loops_over_the_rows(tiny, traces, part, loops):
    layers, heads, options = loops
    options = {"scope": "segment", "feasible": "share", "tau_max": 0.7, "bos": True} | options
    for trace in traces:
        expected = logits_with_interventions(tiny, trace, bridges=[(layers, heads, options)])
        with intervene(tiny, part):
            torch.testing.assert_close(tiny(trace.tokens[None])[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("part", "loops"),
    [
        (StepMomentum("all", alpha=1.5), ((0, 1, 2), range(4), {})),
        (StepMomentum("deep", heads={2: [-1]}, alpha=1.5, window=4), ((2,), (3,), {"window": 4})),
        (StepMomentum([0, 1], alpha=-1.5, window=1), ((0, 1), range(4), {"window": 1, "alpha": -1.5})),
        (StepMomentum("all", alpha=1.5, into="thinking"), ((0, 1, 2), range(4), {"into": ("thinking",)})),
        (StepMomentum("all", alpha=1.5, into=["summary"]), ((0, 1, 2), range(4), {"into": ("summary",)})),
    ],
)
def test_momentum_equals_loops_over_the_steps(tiny, traces, part, loops):
    layers, heads, options = loops
    options = {"window": None, "alpha": 1.5, "into": ("thinking", "summary")} | options
    for trace in traces[:2]:
        expected = logits_with_interventions(tiny, trace, momenta=[(layers, heads, options)])
        with intervene(tiny, part):
            torch.testing.assert_close(tiny(trace.tokens[None])[0], expected, rtol=1e-5, atol=1e-5)


# --- in a model: however it is run -----------------------------------------------------------------------------------
@each_part
def test_a_whole_pass_equals_tokens_one_by_one_and_chunks_over_a_cache(tiny, traces, parts):
    tokens = traces[0].tokens[None]
    plain = tiny(tokens)
    with intervene(tiny, parts):
        whole = tiny(tokens)
        for size in (1, 7, 16):
            torch.testing.assert_close(in_chunks(tiny, tokens, size), whole, rtol=0, atol=1e-5)
    assert (whole - plain).abs().max() > 0.01


@each_part
def test_rows_of_a_padded_batch_equal_single_runs(tiny, traces, parts):
    with intervene(tiny, parts):
        alone = [tiny(trace.tokens[None])[0] for trace in traces]
        (tokens, mask), (right_tokens, right_mask) = padded(traces), padded(traces, left=False)
        runs = [
            (tiny(tokens, attention_mask=mask), mask),
            (in_chunks(tiny, tokens, 3, mask), mask),
            (in_chunks(tiny, right_tokens, 11, right_mask), right_mask),
        ]
    for logits, real in runs:
        for row, expected in enumerate(alone):
            torch.testing.assert_close(logits[row][real[row].bool()], expected, rtol=0, atol=1e-5)


@pytest.fixture
def watch():
    """An intervention that changes nothing, and the segments and steps of all tokens that it saw in each pass."""
    seen = []

    @dataclass(frozen=True)
    class Watch(stepsal.Intervention):
        name: ClassVar[str] = "watch"
        label: ClassVar[str] = "watch"
        layers: int = 0
        heads: None = None

        def edit_pattern(self, pattern, at):
            seen.append((at.text.segments.clone(), at.text.steps.clone()))

    yield Watch(), seen
    INTERVENTIONS.pop("watch", None)


@pytest.mark.filterwarnings("ignore:Watch")
@each_part
def test_undecided_text_counts_alike_whole_and_token_by_token(qwen2, parts, watch):
    """`[TH` may become `[THINK]`, and becomes the first paragraph of the thinking."""
    tokenizer = qwen2.tokenizer
    prompt = tokenizer.encode("Facts: k = 37.")
    tokens = torch.tensor([prompt + tokenizer.encode("[THIS] is it.\n\nSo k = 37.\n\nYes.</think>\n\n37.\n\nSo 37.")])
    states = []
    watching, seen = watch
    both = (*(parts if isinstance(parts, tuple) else (parts,)), watching)
    with intervene(qwen2, both, format="think") as live:
        live.question_tokens = [len(prompt)]
        whole = qwen2(tokens)
        states.append(seen[-1])
        for size in (1, 5):
            assert (in_chunks(qwen2, tokens, size) - whole).abs().max() <= 1e-5
            states.append(seen[-1])
    trace = Trace.from_tokens(tokenizer, tokens[0], format="think", prompt_tokens=len(prompt))
    assert trace.steps[1].start == len(prompt)
    for segments, steps in states:
        assert steps[0].tolist() == trace.step_of.tolist()
        assert segments[0].tolist() == codes_of(trace)


@pytest.mark.filterwarnings("ignore:Watch")
def test_padding_without_a_mask_belongs_to_no_step(qwen2, traces, watch):
    end, pad = qwen2.tokenizer.eos_token_id, qwen2.tokenizer.pad_token_id
    tokens = torch.cat([padded(traces)[0], torch.tensor([[end, pad], [end, end], [end, pad]])], 1)
    with intervene(qwen2, watch[0]):
        qwen2(tokens)
    ((_, steps),) = watch[1]
    for row, trace in zip(steps.tolist(), traces, strict=True):
        before = len(row) - 2 - len(trace.tokens)
        assert row[:before] == [-1] * before
        assert row[before:-2] == trace.step_of.tolist()
        assert row[-2] == row[-3]
        assert row[-1] == -1


@pytest.fixture(scope="module")
def interrupted(traces):
    """A trace with padding in the middle of its question, its thinking and its summary."""
    tokenizer, trace = stepsal.load_tokenizer(), traces[0]
    ids, pad = trace.tokens.tolist(), tokenizer.pad_token_id
    for at in sorted((3, trace.steps[1].start + 2, trace.steps[2].start, len(ids) - 4), reverse=True):
        ids[at:at] = [pad, pad]
    found = Trace.from_tokens(tokenizer, ids)
    assert found.tokens.tolist() == ids
    assert [step.segment for step in found.steps] == [step.segment for step in trace.steps]
    return found


@pytest.mark.bridge  # without a mask, TransformerLens 3.9 takes each token that has the id of padding for padding
@pytest.mark.filterwarnings("ignore:Watch")
@each_part
def test_padding_inside_a_text_is_text_whole_and_token_by_token(qwen2, interrupted, parts, watch):
    watching, seen = watch
    tokens = interrupted.tokens[None]
    with intervene(qwen2, (*(parts if isinstance(parts, tuple) else (parts,)), watching)):
        whole = qwen2(tokens)
        states = [seen[-1]]
        for size in (1, 5):
            assert (in_chunks(qwen2, tokens, size) - whole).abs().max() <= 1e-5
            states.append(seen[-1])
    for segments, steps in states:
        assert steps[0].tolist() == interrupted.step_of.tolist()
        assert segments[0].tolist() == codes_of(interrupted)


def test_padding_inside_a_text_is_in_the_groups_of_the_bridge_and_in_the_mean_of_the_momentum(qwen2, interrupted):
    options = {"scope": "segment", "feasible": "share", "tau_max": 0.7, "bos": True}
    expected = logits_with_interventions(
        qwen2,
        interrupted,
        bridges=[(range(3), range(4), options)],
        momenta=[(range(3), range(4), {"alpha": 1.5, "window": None, "into": ("thinking", "summary")})],
    )
    with intervene(qwen2, PARTS["both"]):
        torch.testing.assert_close(qwen2(interrupted.tokens[None])[0], expected, rtol=1e-5, atol=1e-5)


def codes_of(trace):
    return [CODES[trace.steps[step].segment] for step in trace.step_of.tolist()]


FILLS = {
    "padding alone": (0, 2, 1),
    "as the end": (2, 2, 1),
    "as the beginning": (1, 2, 1),
    "all one": (2, 2, 2),
    "none": (None, 2, 1),
}


@pytest.mark.parametrize(("pad", "end", "bos"), FILLS.values(), ids=FILLS.keys())
@pytest.mark.parametrize("seed", range(20))
def test_what_is_padding_while_decoding_is_padding_in_a_trace(pad, end, bos, seed):
    """Random runs of padding, ends and text: each token of the trace has its segment and step, whatever the chunks are."""
    tokenizer = stepsal.load_tokenizer()
    tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id = pad, end, bos
    pad = end if pad is None else pad
    draw = random.Random(seed)
    text = tokenizer.encode("2+2?<think>Add.\n\nIt is 4.\n\nYes.</think>\n\nIt\n\nis 4.")
    for at in sorted((draw.randrange(len(text)) for _ in range(4)), reverse=True):
        text[at:at] = draw.choices((pad, end, bos), k=draw.randint(1, 4))
    ids = [pad] * draw.randint(0, 3) + text + draw.choice([[], [end], [end, pad, pad], [end, end, pad, end]])
    trace = Trace.from_tokens(tokenizer, ids)
    before = trace.meta.get("padding", {"before": 0})["before"]
    after = len(ids) - before - len(trace.tokens)
    if after and end not in (ids[len(ids) - after - 1], ids[-after]):
        after = 0  # padding after a text that is cut off: while decoding, more may come
    for size in (1, 3, len(ids)):
        follower, end_of_pass = Follower(tokenizer, "auto", "auto", frozenset({end}), frozenset({pad})), 0
        while end_of_pass < len(ids):
            start, end_of_pass = end_of_pass, min(end_of_pass + size, len(ids))
            visible = torch.ones(1, end_of_pass - start, end_of_pass, dtype=torch.bool).tril(start)
            state = follower.advance(torch.tensor([ids[start:end_of_pass]]), visible, False)
        stop = before + len(trace.tokens)
        assert state.steps[0].tolist()[before:stop] == trace.step_of.tolist()
        assert state.segments[0].tolist()[before:stop] == codes_of(trace)
        assert set(state.steps[0].tolist()[:before] + state.steps[0].tolist()[len(ids) - after :]) <= {-1}


@pytest.mark.bridge
@pytest.mark.parametrize("parts", [PARTS["both"], PARTS["random momentum"]], ids=["both", "random momentum"])
def test_generation_in_a_batch_is_the_argmax_of_whole_passes(tiny, traces, parts):
    prompts = [
        Trace(trace.tokens[: len(trace.tokens) - cut], (), "") for trace, cut in zip(traces, (9, 30, 2), strict=True)
    ]
    tokens, mask = padded(prompts)
    with intervene(tiny, parts):
        output = host_of(tiny).decode(tokens, mask, 12, host_of(tiny).stop_tokens())
        bridge_output = tiny.generate(
            prompts[0].tokens[None], max_new_tokens=5, do_sample=False, verbose=False, return_type="tokens"
        )
        for row, prompt in enumerate(prompts):
            ids = output[row][tokens.shape[1] - len(prompt.tokens) :]
            if (ids[len(prompt.tokens) :] == tiny.tokenizer.eos_token_id).any():
                ids = ids[
                    : len(prompt.tokens) + ids[len(prompt.tokens) :].tolist().index(tiny.tokenizer.eos_token_id) + 1
                ]
            top = tiny(ids[None])[0].topk(2)
            for at in range(len(prompt.tokens) - 1, len(ids) - 1):
                assert ids[at + 1] == top.indices[at, 0] or top.values[at, 0] - top.values[at, 1] < 1e-4
    width = tokens.shape[1] - len(prompts[0].tokens)
    assert torch.equal(bridge_output[0].cpu(), output[0, width : width + len(bridge_output[0])])


def test_sliding_windows_see_the_keys_in_the_window_only(tmp_path, traces):
    changes = {"use_sliding_window": True, "sliding_window": 13, "max_window_layers": 1}
    model = stepsal.load_model(save_tiny("qwen2", tmp_path, **changes))
    host = host_of(model)
    assert [host.attention_kind(layer) for layer in range(3)] == ["full_attention", *["sliding_attention"] * 2]
    trace = traces[0]
    options = {"scope": "segment", "feasible": "share", "tau_max": 0.7, "bos": True}
    expected = logits_with_interventions(model, trace, bridges=[((1, 2), range(4), options)], window=13)
    with intervene(model, OddsEqualBridge([1, 2], tau_max=0.7)):
        torch.testing.assert_close(model(trace.tokens[None])[0], expected, rtol=1e-5, atol=1e-5)
    for parts in (PARTS["both"], PARTS["random bridge"]):
        with intervene(model, parts):
            short = trace.tokens[None, :-15]
            # The cache of its decoding keeps the window only.
            output = host.decode(short, torch.ones_like(short), 12, host.stop_tokens())
            assert torch.equal(model(output)[0, short.shape[1] - 1 : -1].argmax(-1), output[0, short.shape[1] :])


def test_a_new_sequence_starts_again(qwen2, traces):
    with intervene(qwen2, PARTS["both"]):
        first = in_chunks(qwen2, traces[0].tokens[None], 5)
        in_chunks(qwen2, traces[2].tokens[None], 9)
        assert torch.equal(in_chunks(qwen2, traces[0].tokens[None], 5), first)


def test_every_token_is_segmented_once_however_long_the_text(qwen2, traces, monkeypatch):
    pushed, push = [], Segmenter.push
    monkeypatch.setattr(Segmenter, "push", lambda self, token: pushed.append(token) or push(self, token))
    with intervene(qwen2, PARTS["both"]):
        in_chunks(qwen2, traces[0].tokens[None], 1)
    assert pushed == traces[0].tokens.tolist()


# --- what is not chosen stays as it is, to the bit -------------------------------------------------------------------
@pytest.mark.parametrize(
    "parts", [OddsEqualBridge("all", tau_max=0), StepMomentum("all", alpha=0), stepflow(tau_max=0, alpha=0), ()]
)
def test_strength_zero_is_the_identity(tiny, traces, parts):
    tokens, mask = padded(traces)
    plain, cached = tiny(tokens, attention_mask=mask), in_chunks(tiny, tokens, 5, mask)
    with intervene(tiny, parts):
        assert torch.equal(tiny(tokens, attention_mask=mask), plain)
        assert torch.equal(in_chunks(tiny, tokens, 5, mask), cached)


def test_other_layers_heads_and_rows_of_the_pattern_are_untouched(tiny, traces):
    trace = traces[0]
    plain, _ = patterns(tiny, trace.tokens[None], ())
    found, _ = patterns(tiny, trace.tokens[None], OddsEqualBridge([1, 2], heads={1: [0, 2]}, tau_max=0.7))
    assert torch.equal(found[0], plain[0])
    assert torch.equal(found[1][:, [1, 3]], plain[1][:, [1, 3]])
    assert not torch.equal(found[1][:, [0, 2]], plain[1][:, [0, 2]])
    assert not torch.equal(found[2], plain[2])
    question = trace.steps[0].stop
    for layer in range(3):
        assert torch.equal(found[layer][:, :, :question], plain[layer][:, :, :question])


def test_other_layers_heads_and_rows_of_the_head_output_are_untouched(tiny, traces):
    trace = traces[0]
    _, plain = patterns(tiny, trace.tokens[None], ())
    _, found = patterns(tiny, trace.tokens[None], StepMomentum(1, heads=[3], alpha=1.5))
    changed = (found[1] != plain[1]).any(-1)[0]  # pos head
    starts = [step.start for before, step in itertools.pairwise(trace.steps) if before.segment == "thinking"]
    assert changed.nonzero().tolist() == [[start, 3] for start in starts]
    assert torch.equal(found[0], plain[0])
    assert torch.equal(found[2][:, : starts[0]], plain[2][:, : starts[0]])


def test_batch_items_without_an_opening_marker_are_untouched(tiny, traces):
    tokens, mask = padded(traces[:2])
    tokens[1, -len(traces[1].tokens) :] = tokens[1, -1]
    plain = tiny(tokens, attention_mask=mask)
    with intervene(tiny, PARTS["both"]):
        found = tiny(tokens, attention_mask=mask)
    assert torch.equal(found[1], plain[1])
    assert not torch.equal(found[0], plain[0])


@each_part
def test_leaving_the_context_by_the_end_or_by_an_exception_restores_the_logits(tiny, traces, parts):
    tokens = traces[1].tokens[None]
    plain = tiny(tokens)
    with intervene(tiny, parts):
        assert not torch.equal(tiny(tokens), plain)
    assert torch.equal(tiny(tokens), plain)
    with pytest.raises(RuntimeError, match="mine"), intervene(tiny, parts):
        tiny(tokens)
        raise RuntimeError("mine")
    assert torch.equal(tiny(tokens), plain)
    assert not any(point.fwd_hooks for point in tiny.hook_dict.values())


def test_a_bf16_model_stays_in_its_precision(tmp_path, traces):
    model = stepsal.load_model(save_tiny("llama", tmp_path), dtype="bfloat16")
    found = patterns(model, traces[0].tokens[None], PARTS["both"])
    assert {tensor.dtype for kind in found for tensor in kind} == {torch.bfloat16}


# --- order -----------------------------------------------------------------------------------------------------------
def test_two_bridges_act_in_the_order_given_and_two_momenta_add_in_any(qwen2, traces):
    trace = traces[0]
    segment, step = OddsEqualBridge(0, tau_max=0.6), OddsEqualBridge(0, tau_max=0.7, scope="step")
    shared = {"feasible": "share", "bos": True}
    loops = {
        segment: ((0,), range(4), {"scope": "segment", "tau_max": 0.6} | shared),
        step: ((0,), range(4), {"scope": "step", "tau_max": 0.7} | shared),
    }
    results = []
    for order in itertools.permutations((segment, step)):
        with intervene(qwen2, order):
            results.append(qwen2(trace.tokens[None])[0])
        expected = logits_with_interventions(qwen2, trace, bridges=[loops[part] for part in order])
        torch.testing.assert_close(results[-1], expected, rtol=1e-5, atol=1e-5)
    assert (results[0] - results[1]).abs().max() > 1e-4
    outputs = [
        patterns(qwen2, trace.tokens[None], [StepMomentum(0, alpha=alpha) for alpha in order])[1][0]
        for order in ((0.5, 1.0), (1.0, 0.5), (1.5,))
    ]
    torch.testing.assert_close(outputs[0], outputs[1])
    torch.testing.assert_close(outputs[0], outputs[2])


def test_a_bridge_and_a_momentum_commute(tiny, traces):
    tokens = traces[0].tokens[None]
    results = []
    for order in (PARTS["both"], PARTS["both"][::-1]):
        with intervene(tiny, order):
            results.append(tiny(tokens))
    assert torch.equal(*results)


def test_hooks_from_outside_act_before_the_parts_and_hooks_from_inside_after(qwen2, traces):
    tokens = traces[0].tokens[None]
    start, seen = traces[0].steps[0].stop, {}

    def starve(pattern, hook):  # the question gets about a hundredth of its attention
        scale = torch.ones(tokens.shape[1])
        scale[:start] = 0.01
        starved = pattern * scale
        seen["before"] = starved / starved.sum(-1, keepdim=True)
        return seen["before"]

    def look(pattern, hook):
        seen["after"] = pattern.clone()

    host = host_of(qwen2)
    with qwen2.hooks(fwd_hooks=[host.at_pattern(0, starve)]), intervene(qwen2, OddsEqualBridge(0)):
        with qwen2.hooks(fwd_hooks=[host.at_pattern(0, look)]):
            qwen2(tokens)
        row = seen["after"][0, :, start + 3]
        assert not torch.equal(seen["after"], seen["before"])
        assert (row[:, :start].sum(-1) >= 0.1).all()  # the bridge repaired what the outer hook did
    with (
        intervene(qwen2, PARTS["bridge"]),
        qwen2.hooks(fwd_hooks=[host.at_pattern(0, starve), host.at_pattern(0, look)]),
    ):
        qwen2(tokens)
        assert torch.equal(seen["after"], seen["before"])  # the inner hook has the last word


# --- under saliency --------------------------------------------------------------------------------------------------
def influence_under(model, trace, parts):
    """Attention times gradient of each token's own loss, by separate backward passes through the intervened patterns."""
    kept = {}

    def leaf(tensor, hook):
        return tensor.detach().requires_grad_(True)

    def keep(tensor, hook):
        kept[hook.layer()] = tensor

    hooks = [host_of(model).at_pattern(layer, keep) for layer in range(3)]
    with intervene(model, parts), model.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", leaf), *hooks]):
        logits = model(trace.tokens[None])[0]
    used = [kept[layer] for layer in range(3)]
    influence = torch.zeros(3, 4, len(trace.tokens), len(trace.tokens))
    for t in range(len(trace.tokens) - 1):
        loss = cross_entropy(logits[t], trace.tokens[t + 1])
        gradients = torch.autograd.grad(loss, used, retain_graph=True)
        for layer, gradient in enumerate(gradients):
            influence[layer, :, t] = apply_rule(used[layer].detach()[0], gradient[0], "abs")[:, t]
    return influence


@pytest.mark.parametrize("parts", [PARTS[name] for name in ("bridge", "random bridge", "random momentum", "both")])
def test_saliency_in_chunks_reads_the_pattern_as_it_is_used(qwen2, traces, parts):
    trace = traces[0]
    with torch.no_grad():
        used, _ = patterns(qwen2, trace.tokens[None], parts)
    with intervene(qwen2, parts):
        attention = stepsal.token_influence(qwen2, trace, rule="attention")
        whole = step_saliency(qwen2, trace, chunk=len(trace.tokens))
        for chunk in (7, 16):
            found = step_saliency(qwen2, trace, chunk=chunk)
            torch.testing.assert_close(found.mass, whole.mass, rtol=1e-5, atol=1e-5 * float(whole.mass.max()))
    torch.testing.assert_close(attention[:, :, :-1], torch.cat(used)[:, :, :-1], rtol=1e-5, atol=1e-6)


@each_part
def test_saliency_of_an_intervened_model_is_that_of_separate_passes(qwen2, traces, parts):
    trace = traces[1]
    expected = influence_under(qwen2, trace, parts)
    with intervene(qwen2, parts):
        found = stepsal.token_influence(qwen2, trace)
        sequence = step_saliency(qwen2, trace, objective="sequence")
    error = (found - expected).abs().flatten(1).amax(1) / expected.flatten(1).amax(1)
    assert error.max() <= 1e-5
    assert torch.isfinite(sequence.mass).all()


# --- controls --------------------------------------------------------------------------------------------------------
def test_controls_act_as_often_and_as_strongly_on_other_things(qwen2, traces):
    trace = traces[0]
    reports, logits = {}, {}
    for name in ("bridge", "random bridge", "momentum", "random momentum", "noise"):
        with intervene(qwen2, PARTS[name]) as live:
            logits[name] = qwen2(trace.tokens[None])
        reports[name] = live.report()[lambda rows: rows.layer == 0]
    assert reports["bridge"].opportunities.equals(reports["random bridge"].opportunities)
    for name in ("random momentum", "noise"):
        assert reports[name].activations.equals(reports["momentum"].activations)
    torch.testing.assert_close(
        torch.tensor(reports["noise"].mean_injected_norm.values),
        torch.tensor(reports["momentum"].mean_injected_norm.values),
    )
    assert all((one - other).abs().max() > 0.01 for one, other in itertools.combinations(logits.values(), 2))


@pytest.mark.parametrize("control", [RandomBridge, RandomMomentum, NoiseMomentum])
def test_a_control_depends_on_its_seed_alone(qwen2, traces, control):
    strength = {"tau_max": 0.7} if control is RandomBridge else {"alpha": 1.5}
    results = []
    for seed in (1, 1, 2):
        with intervene(qwen2, control("all", seed=seed, **strength)):
            results.append(qwen2(traces[0].tokens[None]))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


# --- the report ------------------------------------------------------------------------------------------------------
def test_the_report_counts_what_was_done(tiny, traces):
    trace = traces[0]
    parts = stepflow(oeb_layers=1, oeb_heads=[0, 2], smi_layers=2, tau_max=0.5)
    used, _ = patterns(tiny, trace.tokens[None], parts)
    plain, _ = patterns(tiny, trace.tokens[None], ())
    with intervene(tiny, parts) as live:
        tiny(trace.tokens[None])
        once = live.report()
        in_chunks(tiny, trace.tokens[None], 1)
    report = live.report()
    assert report[["layer", "head"]].values.tolist() == [[1, 0], [1, 2], [2, 0], [2, 1], [2, 2], [2, 3]]
    assert report.part.tolist() == ["OddsEqualBridge"] * 2 + ["StepMomentum"] * 4
    assert (report.opportunities == 2 * once.opportunities).all()
    assert (report.activations == 2 * once.activations).all()
    answer = len(trace.tokens) - trace.steps[0].stop
    assert once.opportunities.tolist() == [answer] * 2 + [5] * 4  # 3 thinking and 2 summary steps
    assert once.activations.tolist()[2:] == [3] * 4  # the first thinking and the second summary step have no giver
    for row, head in enumerate((0, 2)):
        changed = (used[1] != plain[1]).any(-1)[0, head]
        assert once.activations[row] == int(changed.sum())
        before, after = (
            torch.cat(
                [p[0, head, step.start : step.stop, first:last].sum(-1) for step, first, last in bridges_of(trace)]
            ).mean()
            for p in (plain[1], used[1])
        )
        assert once.mean_bridge_before[row] == pytest.approx(float(before), rel=1e-4)
        assert once.mean_bridge_after[row] == pytest.approx(float(after), rel=1e-4)
    assert (once.mean_injected_norm[2:] > 0).all()
    assert once.mean_injected_norm[:2].isna().all()
    assert once.mean_bridge_before[2:].isna().all()


def bridges_of(trace):
    """Each answering step with the span of its bridge group."""
    question, thinking = trace.steps[0].stop, trace.segment("thinking")
    for step in trace.steps[1:]:
        yield (step, 0, question) if step.segment == "thinking" else (step, thinking[0].start, thinking[-1].stop)


def test_the_report_counts_the_rows_that_were_lifted_from_next_to_nothing(qwen2, traces):
    """Sums of many passes, of one token each, too."""
    trace = traces[0]
    starve = Starvation("thinking", [1], odds=1e-5)  # so that some masses are tiny
    plain, _ = patterns(qwen2, trace.tokens[None], starve)
    for part, spans in (
        (OddsEqualBridge([1], tau_max=0.5), list(bridges_of(trace))),
        (SpotLight([1], psi=0.5), [(step, 0, trace.steps[0].stop) for step in trace.steps[1:]]),
    ):
        with intervene(qwen2, [starve, part]) as live:
            in_chunks(qwen2, trace.tokens[None], 1)
        report = live.report().groupby("part").get_group(type(part).__name__)
        masses = torch.cat([plain[1][0, :, s.start : s.stop, first:last].sum(-1) for s, first, last in spans], 1)
        used, _ = patterns(qwen2, trace.tokens[None], [starve, part])
        lifted = (used[1] != plain[1]).any(-1)[0, :, trace.steps[0].stop :]
        assert report.lifted_from_tiny.tolist() == (lifted & (masses < 1e-4)).sum(1).tolist()
        assert report.lifted_from_tiny.sum() > 0


def test_finished_rows_of_a_batch_are_not_counted(qwen2, traces):
    trace, end = traces[1], qwen2.tokenizer.eos_token_id
    ended = torch.cat([trace.tokens, torch.tensor([end])])[None]
    with intervene(qwen2, OddsEqualBridge("all", tau_max=0.7)) as live:
        in_chunks(qwen2, ended, 1)
        expected = live.report()
    for filler in (end, qwen2.tokenizer.pad_token_id):
        filled = torch.cat([ended, torch.full((1, 7), filler)], 1)
        with intervene(qwen2, OddsEqualBridge("all", tau_max=0.7)) as live:
            in_chunks(qwen2, filled, 1)
        assert live.report().equals(expected)


def test_parts_of_one_kind_have_their_own_rows(qwen2, traces):
    with intervene(qwen2, [StepMomentum(2), StepMomentum(1), NoiseMomentum(2)]) as live:
        qwen2(traces[0].tokens[None])
    assert live.report().part.unique().tolist() == ["StepMomentum", "StepMomentum 2", "NoiseMomentum"]


@pytest.mark.parametrize(
    ("part", "tokens", "reason"),
    [
        (OddsEqualBridge(), None, "this model made no forward pass inside the context"),
        (OddsEqualBridge(), "no marker at all", "no text showed the marker that opens the thinking"),
        (StepMomentum(), "2+2?<think>It is 4.", "no step of thinking or summary followed a thinking step"),
        (OddsEqualBridge(tau_max=1e-9), "2+2?<think>It is 4.", "no row had both groups and less bridge mass"),
    ],
)
def test_a_part_that_never_fired_is_warned_about_once(qwen2, part, tokens, reason):
    def run():
        with intervene(qwen2, [part]):
            for _ in range(3 if tokens else 0):
                qwen2(torch.tensor([qwen2.tokenizer.encode(tokens)]))

    with pytest.warns(UserWarning, match="never fired") as caught:
        run()
    assert len(caught) == 1
    assert f"{part} never fired: {reason}" in str(caught[0].message)


# --- bad input -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (OddsEqualBridge, {"tau_max": 1.0}, "tau_max=1.0 must be a number in \\[0, 1\\)"),
        (OddsEqualBridge, {"tau_max": -0.1}, "tau_max=-0.1"),
        (OddsEqualBridge, {"tau_max": math.nan}, "tau_max=nan"),
        (OddsEqualBridge, {"scope": "token"}, "unknown scope 'token': expected 'segment' or 'step'"),
        (OddsEqualBridge, {"feasible": "cap"}, "unknown feasible 'cap': expected 'share' or 'clamp' or 'official'"),
        (OddsEqualBridge, {"layers": "top"}, "unknown layers 'top'"),
        (OddsEqualBridge, {"heads": "all"}, "heads='all': expected None"),
        (OddsEqualBridge, {"bos_in_bridge": 1}, "bos_in_bridge=1 must be True or False"),
        (StepMomentum, {"alpha": math.inf}, "alpha=inf must be a finite number"),
        (StepMomentum, {"alpha": "big"}, "alpha='big' must be a finite number"),
        (StepMomentum, {"window": 0}, "window=0 must be None"),
        (StepMomentum, {"window": 2.0}, "window=2.0 must be None"),
        (StepMomentum, {"into": ("question",)}, "unknown into 'question': expected 'thinking' or 'summary'"),
        (StepMomentum, {"into": ()}, "must name 'thinking', 'summary' or both"),
        (RandomBridge, {"seed": -1}, "seed=-1 must be a whole number"),
        (NoiseMomentum, {"alpha": math.nan}, "alpha=nan must be a finite number"),
    ],
)
def test_parameters_that_mean_nothing_are_refused(kind, options, message):
    with pytest.raises(InputError, match=message):
        build(kind, **options)


def test_an_override_that_neither_part_has_is_refused():
    with pytest.raises(InputError, match="no option 'layers': expected some of oeb_layers, oeb_heads, tau_max"):
        stepflow(layers=[0])


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (OddsEqualBridge(3), "layer 3 does not exist: the model has layers 0 to 2"),
        (OddsEqualBridge([0, 0]), "none twice"),
        (OddsEqualBridge(0, heads=[4]), "head 4 does not exist: each layer has heads 0 to 3"),
        (OddsEqualBridge(0, heads=[1, -3]), "must name at least one head and none twice"),
        (OddsEqualBridge(0, heads=[]), "must name at least one head"),
        (StepMomentum(2, heads={1: [0]}), "names layer 1, but the chosen layers are \\[2\\]"),
        (StepMomentum(2, heads={5: [0]}), "layer 5 does not exist"),
    ],
)
def test_places_that_the_model_does_not_have_are_refused(qwen2, part, message):
    with pytest.raises(InputError, match=message), intervene(qwen2, part):
        pytest.fail("entered")


def test_something_else_than_a_part_is_refused(qwen2):
    with pytest.raises(InputError, match="'oeb' is no intervention"):
        next(unchecked(intervene)(qwen2, [stepflow()[0], "oeb"]))


def test_parts_are_values(qwen2):
    one, other = (OddsEqualBridge([0, 1], heads={1: [2, 3]}) for _ in range(2))
    assert one == other
    assert len({one, other, stepflow()[0], OddsEqualBridge()}) == 2
    assert eval(repr(one)) == one
    assert one.heads_by_layer(3, 4) == {0: (0, 1, 2, 3), 1: (2, 3)}
    assert stepflow() == (OddsEqualBridge(), StepMomentum())
    assert stepflow(smi_heads=[1], scope="step") == (OddsEqualBridge(scope="step"), StepMomentum(heads=[1]))


@pytest.mark.bridge
def test_a_text_that_was_not_followed_from_its_start_is_refused(qwen2, traces):
    cache, tokens = host_of(qwen2).new_cache(), traces[0].tokens[None]
    qwen2(tokens[:, :20], return_type="logits_and_cache", past_key_values=cache)
    with (
        pytest.raises(InputError, match="attends to 20 token\\(s\\) in the cache, but 0 token"),
        intervene(qwen2, stepflow()),
    ):
        qwen2(tokens[:, 20:], return_type="logits_and_cache", past_key_values=cache)
    cache = host_of(qwen2).new_cache()
    with (
        pytest.raises(InputError, match="attends to 12 token\\(s\\) in the cache, but 20 token"),
        intervene(qwen2, stepflow()),
    ):
        qwen2(tokens[:, :20], return_type="logits_and_cache", past_key_values=cache)
        cache.crop(-8)
        qwen2(tokens[:, 12:], return_type="logits_and_cache", past_key_values=cache)


@pytest.mark.bridge
def test_a_model_that_the_host_does_not_know_is_refused_before_any_pass(qwen2, monkeypatch):
    monkeypatch.setattr(support, "_passed", set())
    monkeypatch.setattr(
        BridgeHost, "at_pattern", lambda host, layer, look: (f"blocks.{layer}.attn.hook_hidden_states", look)
    )
    with (
        pytest.raises(UnsupportedModelError, match="its hook blocks.0.attn.hook_hidden_states never fires"),
        intervene(qwen2, stepflow()),
    ):
        pytest.fail("entered")
    assert not any(point.fwd_hooks for point in qwen2.hook_dict.values())


@pytest.mark.bridge
def test_embeddings_in_place_of_tokens_are_refused(qwen2):
    embeddings = torch.randn(1, 5, 40)
    with pytest.raises(UnsupportedModelError, match="the token ids did not come by"), intervene(qwen2, stepflow()):
        qwen2(None, inputs_embeds=embeddings)


@pytest.mark.bridge
def test_a_model_without_a_tokenizer_is_refused(qwen2, monkeypatch):
    monkeypatch.setattr(qwen2, "_tokenizer", None, raising=False)
    monkeypatch.setattr(type(qwen2), "tokenizer", None, raising=False)
    with pytest.raises(InputError, match="the model has no tokenizer"), intervene(qwen2, stepflow()):
        pytest.fail("entered")


# --- the positive control --------------------------------------------------------------------------------------------
ROWS = ["steps", "thinking", "summary", "openings"]


@pytest.mark.parametrize("rows", ROWS)
def test_a_starved_model_equals_loops_over_the_rows(tiny, traces, rows):
    part = Starvation(rows, layers=[0, 2], heads={0: [1]}, odds=0.2)
    for trace in traces[:2]:  # the third has no summary
        before, after = (patterns(tiny, trace.tokens[None], parts)[0][0][0] for parts in ((), part))
        expected = starve(before, trace.steps, rows, 0.2)
        assert torch.allclose(after[1], expected[1], atol=1e-6)
        assert torch.equal(after[[0, 2, 3]], before[[0, 2, 3]])
        assert (expected[1] != before[1]).any()
    with torch.no_grad(), intervene(tiny, part) as live:
        tiny(traces[0].tokens[None])
    report = live.report()
    assert (report["mean_bridge_after"] < report["mean_bridge_before"]).all()
    assert report["layer"].tolist() == [0, 2, 2, 2, 2]


def test_a_starved_row_keeps_its_total_and_its_other_keys_their_proportions():
    pattern = torch.softmax(3 * torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(1)), -1)
    starved = torch.rand(2, 1, 5, 7, generator=torch.Generator().manual_seed(2)) < 0.4
    result = scale_odds(pattern, starved, 0.1).pattern
    assert torch.allclose(result.sum(-1), pattern.sum(-1), atol=1e-6)
    logits = (result / pattern).log()
    for outside in (True, False):
        there = torch.where(starved == outside, logits, torch.nan)
        assert torch.nan_to_num(there - there.nanmean(-1, keepdim=True)).abs().max() < 1e-5
    assert torch.equal(scale_odds(pattern, starved, 1.0).pattern, pattern)
    everything = torch.ones_like(starved)
    assert torch.equal(scale_odds(pattern, everything, 0.0).pattern, pattern)


@pytest.mark.parametrize("rows", ROWS)
def test_starvation_in_a_whole_pass_equals_tokens_one_by_one(tiny, traces, rows):
    trace = traces[0]
    with torch.no_grad(), intervene(tiny, Starvation(rows, "all")):
        whole = tiny(trace.tokens[None])
        assert torch.allclose(in_chunks(tiny, trace.tokens[None], 1), whole, atol=1e-5)


def test_the_bridge_gives_back_what_starvation_took(qwen2, traces):
    both = (Starvation("thinking", [0], odds=0.01), OddsEqualBridge([0], tau_max=0.2))
    tokens = traces[0].tokens[None]
    question, thinking = traces[0].steps[0].stop, traces[0].segment("thinking")
    rows = slice(question, thinking[-1].stop)
    intact, starved, mended = (
        patterns(qwen2, tokens, parts)[0][0][0, :, rows, :question].sum(-1) for parts in ((), both[:1], both)
    )
    assert (starved < intact).float().mean() > 0.9
    assert mended.min() >= min(0.2, float(intact.min())) - 1e-5
    assert (mended > starved).float().mean() > 0.9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": "question", "layers": 0}, "unknown rows 'question'"),
        ({"rows": "thinking", "layers": 0, "odds": 1.5}, "odds=1.5 must be a number in"),
        ({"rows": "thinking", "layers": 0, "odds": float("nan")}, "odds=nan"),
        ({"rows": "thinking", "layers": "low"}, "unknown layers 'low'"),
    ],
)
def test_a_starvation_that_means_nothing_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        Starvation(**options)
