"""What stepsal promises of a model, as checks that any model can be put through.

`make support` runs this file, which puts every family through every check and writes the table of docs/support.md.

A check takes a `Subject` and raises `AssertionError` where the promise does not hold. `tests/models/test_conformance.py` puts
every family of `tests/families.py` through all of them; `docs/support.md` has the table.
"""

import itertools
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import hooked
import torch
from families import FAMILIES, REFUSED, WINDOW, Family, save_family
from helpers import relative_error
from reference import (
    apply_rule,
    direct_knockout_by_loops,
    groups_of_row,
    influence_by_separate_passes,
    logits_with_interventions,
    pool_by_loops,
    pooled_knockout,
    total_knockout_by_loops,
)
from torch.nn.functional import cross_entropy

import stepsal
from stepsal import InputError, Trace, UnsupportedModelError
from stepsal.causality.subsets import answer_without
from stepsal.interventions import OddsEqualBridge, StepMomentum
from stepsal.interventions.intervene import intervene
from stepsal.interventions.stepflow import stepflow
from stepsal.models import host_of
from stepsal.models.support import check_supported, reads_in_chunks
from stepsal.saliency.influence import saliency_together

QUESTION = [{"role": "user", "content": "Facts: m = k + 25. k = 37.\nStart at k. What is m?"}]
TEXTS = (
    "First k = 37.\n\nThen m = k + 25 = 37 + 25 = 62.\n\nSo it is 62.\n</think>\n\nFrom the steps.\n\nSo \\boxed{62}",
    "Add.\n\nIt is 62.\n</think>62",
    "First k = 37.\n\nThen m\n\nis k + 25, I think\n\nand",
)
BOTH = stepflow(oeb_layers="all", smi_layers="all", tau_max=0.7, alpha=1.5)
OPTIONS = {"scope": "segment", "feasible": "share", "tau_max": 0.7, "bos": True}


@dataclass(frozen=True)
class Subject:
    """A model and three traces of different lengths and numbers of steps; the last is cut in its thinking."""

    model: Any
    traces: list[Trace]

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that have attention: three in the models of `families.py`, more in real ones."""
        return host_of(self.model).attention_layers

    @property
    def windows(self) -> dict[int, int | None]:
        """How many keys each layer's queries see; None is all."""
        kinds = {layer: host_of(self.model).attention_kind(layer) for layer in self.layers}
        return {layer: WINDOW if kind == "sliding_attention" else None for layer, kind in kinds.items()}


def make_subject(family: Family, folder: Path) -> Subject:
    traces = [Trace.from_text(stepsal.load_tokenizer(), QUESTION, text) for text in TEXTS]
    return Subject(stepsal.load_model(save_family(family, folder), host=hooked.HOST), traces)


# --- saliency --------------------------------------------------------------------------------------------------------
def influence_equals_a_backward_pass_for_each_token(subject: Subject) -> None:
    trace = subject.traces[1]
    signed = influence_by_separate_passes(subject.model, trace.tokens, "signed")
    for rule, expected in (("abs", signed.abs()), ("signed", signed)):
        assert relative_error(stepsal.token_influence(subject.model, trace, rule=rule), expected) <= 1e-5
    assert relative_error(stepsal.step_saliency(subject.model, trace).mass, pool_by_loops(signed.abs(), trace)) <= 1e-5


def every_chunk_size_gives_the_same_map(subject: Subject) -> None:
    """Where only one token at a time is exact, every other chunk size is refused, but for attention, which has no gradient."""
    trace, rule = subject.traces[0], "abs"
    check_supported(subject.model)
    if not reads_in_chunks(subject.model):
        rule = "attention"
        assert stepsal.step_saliency(subject.model, trace).meta["chunk"] == 1
        for chunk in (2, len(trace.tokens)):
            try:
                stepsal.step_saliency(subject.model, trace, chunk=chunk)
            except InputError:
                continue
            raise AssertionError(f"chunk={chunk} is let through")
    whole = stepsal.step_saliency(subject.model, trace, rule=rule, chunk=len(trace.tokens))
    for chunk in (1, 7, 16):
        found = stepsal.step_saliency(subject.model, trace, rule=rule, chunk=chunk)
        assert relative_error(found.mass, whole.mass) <= 2e-6


def traces_that_share_a_pass_have_the_maps_that_each_has_alone(subject: Subject) -> None:
    check_supported(subject.model)
    if not reads_in_chunks(subject.model):
        return
    traces = [*subject.traces, subject.traces[0]]
    assert len({len(trace.tokens) for trace in traces}) > 1
    for score in ("loss", "margin"):
        together = saliency_together(subject.model, traces, score=score)
        for trace, found in zip(traces, together, strict=True):
            alone = stepsal.step_saliency(subject.model, trace, score=score)
            assert relative_error(found.mass, alone.mass) <= 2e-6
            assert found.steps == alone.steps


def influence_is_exact_under_intervention(subject: Subject) -> None:
    trace, kept = subject.traces[1], {}

    def leaf(tensor, hook):
        return tensor.detach().requires_grad_(True)

    def keep(tensor, hook):
        kept[hook.layer()] = tensor

    host, layers = host_of(subject.model), subject.layers
    with host.frozen(), intervene(subject.model, BOTH):
        embedding = "hook_embed" if hooked.TL3 else "embed.hook_out"
        hooks = [(embedding, leaf), *(host.at_pattern(layer, keep) for layer in layers)]
        with subject.model.hooks(fwd_hooks=hooks):
            logits = subject.model(trace.tokens[None])[0]
        used = [kept[layer] for layer in layers]
        expected = torch.zeros(len(used), used[0].shape[1], len(trace.tokens), len(trace.tokens))
        for t in range(len(trace.tokens) - 1):
            loss = cross_entropy(logits[t], trace.tokens[t + 1])
            gradients = torch.autograd.grad(loss, used, retain_graph=True)
            for layer, (pattern, gradient) in enumerate(zip(used, gradients, strict=True)):
                expected[layer, :, t] = apply_rule(pattern.detach()[0], gradient[0], "abs")[:, t]
        found = stepsal.token_influence(subject.model, trace)
    assert relative_error(found, expected) <= 1e-5


def value_attention_is_what_each_pair_adds(subject: Subject) -> None:
    """Of some pairs: a pass in which that head of that query puts out A v of that key alone, and everything else puts out zero.

    Where head outputs are gated, the rule is refused.
    """
    trace, model, host = subject.traces[1], subject.model, host_of(subject.model)
    if any(host.at_output_gate(layer, lambda gate, hook: None) for layer in subject.layers):
        try:
            stepsal.token_influence(model, trace, rule="value_attention")
        except UnsupportedModelError:
            return
        raise AssertionError("value_attention is not refused, and head outputs are gated")
    found = stepsal.token_influence(model, trace, rule="value_attention")
    attention = stepsal.token_influence(model, trace, rule="attention")
    last = len(trace.tokens) - 2
    for index, (head, query, key) in itertools.product((0, 2), ((0, last, 1), (3, last, last), (2, 5, 0))):
        layer, seen = subject.layers[index], {}

        def keep_value(value, hook, seen=seen, head=head, key=key):
            seen["value"] = value[0, key, head * value.shape[2] // host.shape.heads]

        def put_out(outputs, hook, seen=seen, at=(0, query, head), weight=attention[index, head, query, key]):
            alone = torch.zeros_like(outputs)
            if seen["wanted"]:
                alone[at] = weight * seen["value"]
            return alone

        def keep_added(module, inputs, added, seen=seen, query=query):
            seen["added", seen["wanted"]] = added[0, query].clone()

        hooks = [host.at_values(layer, keep_value), host.at_head_outputs(layer, put_out)]
        attention_of_layer = model.blocks[layer].attn  # a bridge has a module for the output's projection
        handle = getattr(attention_of_layer, "o", attention_of_layer).register_forward_hook(keep_added)
        for wanted in (True, False):
            seen["wanted"] = wanted
            with torch.no_grad():
                host.forward(trace.tokens[None], hooks)
        handle.remove()
        expected = (seen["added", True] - seen["added", False]).norm()
        torch.testing.assert_close(found[index, head, query, key], expected, rtol=1e-4, atol=1e-6)


# --- knockout --------------------------------------------------------------------------------------------------------
def _knockouts_equal(subject: Subject, mode: str, by_loops: Callable[..., torch.Tensor], sources: list[int]) -> None:
    trace, host = subject.traces[1], host_of(subject.model)
    found = stepsal.step_knockout(subject.model, trace, mode=mode, sources=sources)
    with torch.no_grad():
        base = host.forward(trace.tokens[None], [])[0]
        for source in sources:
            kl, loss = pooled_knockout(base, by_loops(host, trace, source), trace, source)
            for values, expected in ((found.kl, kl), (found.loss, loss)):
                torch.testing.assert_close(values[:, source], expected, rtol=1e-3, atol=2e-5, equal_nan=True)


def a_knockout_equals_a_pass_for_each_source(subject: Subject) -> None:
    _knockouts_equal(subject, "total", total_knockout_by_loops, [0, 1, 2])


def a_direct_knockout_equals_a_pass_for_each_query(subject: Subject) -> None:
    check_supported(subject.model)
    if not reads_in_chunks(subject.model):
        trace = subject.traces[1]
        one_step = torch.arange(len(trace.steps))[None] == 1
        for run_it in (
            partial(stepsal.step_knockout, subject.model, trace, mode="direct", sources=[1]),
            partial(answer_without, subject.model, trace, one_step, mode="direct"),
        ):
            try:
                run_it()
            except UnsupportedModelError:
                continue
            raise AssertionError("direct is not refused, and tokens meet elsewhere than in attention")
        return
    _knockouts_equal(subject, "direct", direct_knockout_by_loops, [0, 1])


# --- interventions ---------------------------------------------------------------------------------------------------
def patterns(model: Any, tokens: torch.Tensor, parts: Any) -> dict[tuple[str, int], torch.Tensor]:
    """Attention patterns of all layers as they are used, and head outputs."""
    seen: dict[tuple[str, int], torch.Tensor] = {}

    def keep(name, layer):
        def look(tensor, hook):
            seen[name, layer] = tensor.detach().clone()

        return look

    hooks, host = [], host_of(model)
    for layer in host.attention_layers:
        hooks.append(host.at_pattern(layer, keep("pattern", layer)))
        hooks.append(host.at_head_outputs(layer, keep("output", layer)))
    with torch.no_grad(), intervene(model, parts), model.hooks(fwd_hooks=hooks):
        model(tokens)
    return seen


def run(model: Any, tokens: torch.Tensor, parts: Any, **options: Any) -> torch.Tensor:
    with torch.no_grad(), intervene(model, parts):
        return model(tokens, **options)


def in_chunks(
    model: Any, tokens: torch.Tensor, size: int, cache: Any, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Logits by a hand-written loop over a cache."""
    if hooked.TL3:
        return hooked.in_chunks(model, tokens, size, mask)
    logits = []
    for start in range(0, tokens.shape[1], size):
        stop = min(start + size, tokens.shape[1])
        options = {} if mask is None else {"attention_mask": mask[:, :stop]}
        out, _ = model(tokens[:, start:stop], return_type="logits_and_cache", past_key_values=cache, **options)
        logits.append(out)
    return torch.cat(logits, 1)


def padded(traces: list[Trace], cut: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Left-padded tokens, the last `cut` of each left out, and their attention mask."""
    rows = [trace.tokens[: len(trace.tokens) - cut] for trace in traces]
    tokens, mask = torch.full((2, len(rows), max(map(len, rows))), 0)
    for row, real in enumerate(rows):
        tokens[row, -len(real) :], mask[row, -len(real) :] = real, 1
    return tokens, mask


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Within 1e-5 of logits that are of the order of 1 to 10."""
    size = max(1.0, float(expected.abs().max()) / 10)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * size)


def the_bridge_equals_loops_over_the_rows(subject: Subject) -> None:
    for trace in subject.traces[:2]:
        expected = logits_with_interventions(
            subject.model, trace, bridges=[(subject.layers, (1, 3), OPTIONS)], window=subject.windows
        )
        found = run(subject.model, trace.tokens[None], OddsEqualBridge("all", heads=[1, 3], tau_max=0.7))[0]
        close(found, expected)


def the_bridge_keeps_totals_and_the_rest_of_each_row(subject: Subject) -> None:
    trace, (lower, layer) = subject.traces[0], subject.layers[:2]
    before = patterns(subject.model, trace.tokens[None], ())
    after = patterns(subject.model, trace.tokens[None], OddsEqualBridge(layer, heads=[0, 2], tau_max=0.7))
    old, new = before["pattern", layer][0], after["pattern", layer][0]
    torch.testing.assert_close(new.sum(-1), old.sum(-1), rtol=1e-6, atol=1e-6)
    assert torch.equal(new[[1, 3]], old[[1, 3]])
    assert not torch.equal(new[[0, 2]], old[[0, 2]])
    step_of = trace.step_of.tolist()
    for query, head in itertools.product(range(len(step_of)), (0, 2)):
        groups = groups_of_row(query, trace.steps, step_of, "segment", True, subject.windows[layer])
        mass = {name: old[head, query, [k for k, group in enumerate(groups) if group == name]] for name in "BS"}
        rest = torch.tensor([group not in ("B", "S") for group in [*groups]])
        assert torch.equal(new[head, query][: len(groups)][rest], old[head, query][: len(groups)][rest])
        if not mass["B"].sum() > 0 or not mass["S"].sum() > 0:
            assert torch.equal(new[head, query], old[head, query])
            continue
        share = (len(mass["B"]) / (len(mass["B"]) + len(mass["S"]))) ** 0.5
        target = min(share, 0.7, share * float(mass["B"].sum() + mass["S"].sum()))
        bridge = float(new[head, query, [k for k, group in enumerate(groups) if group == "B"]].sum())
        assert bridge >= target * (1 - 1e-5)
    assert torch.equal(after["pattern", lower], before["pattern", lower])


def momentum_equals_loops_over_the_steps(subject: Subject) -> None:
    first, _, last = subject.layers[:3]
    for window in (None, 4):
        options = {"window": window, "alpha": 1.5, "into": ("thinking", "summary")}
        for trace in subject.traces[:2]:
            expected = logits_with_interventions(subject.model, trace, momenta=[((first, last), (1, 2), options)])
            part = StepMomentum([first, last], heads=[1, 2], alpha=1.5, window=window)
            close(run(subject.model, trace.tokens[None], part)[0], expected)


def momentum_touches_the_first_tokens_of_chosen_heads_alone(subject: Subject) -> None:
    trace, (lower, layer, higher) = subject.traces[0], subject.layers[:3]
    before = patterns(subject.model, trace.tokens[None], ())
    after = patterns(subject.model, trace.tokens[None], StepMomentum(layer, heads=[3], alpha=1.5))
    changed = (after["output", layer] != before["output", layer]).any(-1)[0]  # pos head
    starts = [step.start for earlier, step in itertools.pairwise(trace.steps) if earlier.segment == "thinking"]
    assert changed.nonzero().tolist() == [[start, 3] for start in starts]
    assert torch.equal(after["output", lower], before["output", lower])
    assert torch.equal(after["output", higher][:, : starts[0]], before["output", higher][:, : starts[0]])


def strength_zero_is_the_identity(subject: Subject) -> None:
    tokens, mask = padded(subject.traces)
    plain = run(subject.model, tokens, (), attention_mask=mask)
    assert torch.equal(run(subject.model, tokens, stepflow(tau_max=0, alpha=0), attention_mask=mask), plain)


def an_exception_leaves_nothing_behind(subject: Subject) -> None:
    tokens = subject.traces[0].tokens[None]
    plain = run(subject.model, tokens, ())
    try:
        with intervene(subject.model, BOTH), torch.no_grad():
            assert not torch.equal(subject.model(tokens), plain)
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    with torch.no_grad():
        assert torch.equal(subject.model(tokens), plain)


# --- however it is run -----------------------------------------------------------------------------------------------
def cached_decoding_equals_a_whole_pass(subject: Subject) -> None:
    from transformers import DynamicCache

    model, tokens = subject.model, subject.traces[0].tokens[None]
    with torch.no_grad(), intervene(model, BOTH):
        whole = model(tokens)
        close(in_chunks(model, tokens, 7, host_of(model).new_cache()), whole)
        windows_alone = None if hooked.TL3 else DynamicCache(config=model.original_model.config)
        close(in_chunks(model, tokens, 1, windows_alone), whole)


def a_padded_batch_equals_single_runs(subject: Subject) -> None:
    tokens, mask = padded(subject.traces)
    with torch.no_grad(), intervene(subject.model, BOTH):
        alone = [subject.model(trace.tokens[None])[0] for trace in subject.traces]
        whole = subject.model(tokens, attention_mask=mask)
        cached = in_chunks(subject.model, tokens, 9, host_of(subject.model).new_cache(), mask)
    for row, expected in enumerate(alone):
        close(whole[row][mask[row].bool()], expected)
        close(cached[row][mask[row].bool()], expected)


def generated_tokens_are_the_likeliest_of_a_whole_pass(subject: Subject) -> None:
    model, host, cut = subject.model, host_of(subject.model), 9
    tokens, mask = padded(subject.traces, cut)
    with torch.no_grad(), intervene(model, BOTH):
        output = host.decode(tokens, mask, 12, host.stop_tokens())
        for row, trace in enumerate(subject.traces):
            prompt = len(trace.tokens) - cut
            ids = output[row][tokens.shape[1] - prompt :]
            ends = [at for at in range(prompt, len(ids)) if int(ids[at]) in host.stop_tokens()]
            ids = ids[: ends[0] + 1] if ends else ids
            top = model(ids[None])[0].topk(2)
            for at in range(prompt - 1, len(ids) - 1):
                assert ids[at + 1] == top.indices[at, 0] or top.values[at, 0] - top.values[at, 1] < 1e-3


CHECKS: dict[str, tuple[Callable[[Subject], None], ...]] = {
    "influence": (
        influence_equals_a_backward_pass_for_each_token,
        influence_is_exact_under_intervention,
        value_attention_is_what_each_pair_adds,
    ),
    "knockout": (a_knockout_equals_a_pass_for_each_source, a_direct_knockout_equals_a_pass_for_each_query),
    "chunks": (every_chunk_size_gives_the_same_map, traces_that_share_a_pass_have_the_maps_that_each_has_alone),
    "bridge": (the_bridge_equals_loops_over_the_rows, the_bridge_keeps_totals_and_the_rest_of_each_row),
    "momentum": (momentum_equals_loops_over_the_steps, momentum_touches_the_first_tokens_of_chosen_heads_alone),
    "identity": (strength_zero_is_the_identity, an_exception_leaves_nothing_behind),
    "decoding": (cached_decoding_equals_a_whole_pass,),
    "batches": (a_padded_batch_equals_single_runs,),
    "generation": (generated_tokens_are_the_likeliest_of_a_whole_pass,),
}


# --- the table -------------------------------------------------------------------------------------------------------
PAGE = Path(__file__).parent.parent / "docs" / "support.md"
START, STOP = "<!-- the table: written by `make support` -->", "<!-- end of the table -->"


def refusal(family: Family, folder: Path) -> str:
    """Why the model is refused; "" where it is not."""
    try:
        check_supported(stepsal.load_model(save_family(family, folder)))
    except UnsupportedModelError as error:
        return str(error).split(" is not supported: ")[1]
    return ""


def render(outcomes: dict[str, dict[str, bool]], reasons: dict[str, str]) -> str:
    """The table: what held of each family, and why the others are refused."""
    mark = {True: "✓", False: "**no**"}
    lines = [
        f"| family | models | special | {' | '.join(CHECKS)} |",
        f"|---|---|---|{':-:|' * len(CHECKS)}",
        *(
            f"| {each.name} | {each.models} | {each.special} | {' | '.join(mark[outcomes[each.name][c]] for c in CHECKS)} |"
            for each in FAMILIES
        ),
        "",
        "| refused | models | special | what `UnsupportedModelError` says |",
        "|---|---|---|---|",
        *(
            f"| {each.name} | {each.models} | {each.special} | {reasons[each.name].replace('|', '/')} |"
            for each in REFUSED
        ),
    ]
    return "\n".join(lines)


def main() -> int:
    outcomes: dict[str, dict[str, bool]] = {}
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            subject = make_subject(family, Path(folder))
            outcomes[family.name] = {}
            for name, checks in CHECKS.items():
                held = []
                for check in checks:
                    try:
                        check(subject)
                        held.append(True)
                    except Exception as error:
                        print(f"{family.name}: {check.__name__}: {error}", file=sys.stderr)
                        held.append(False)
                outcomes[family.name][name] = all(held)
        print(family.name, *(name for name, held in outcomes[family.name].items() if held))
    reasons = {}
    for family in REFUSED:
        with tempfile.TemporaryDirectory() as folder:
            reasons[family.name] = refusal(family, Path(folder)) or "nothing: it is let through"
    before, rest = PAGE.read_text(encoding="utf-8").split(START)
    PAGE.write_text(f"{before}{START}\n{render(outcomes, reasons)}\n{STOP}{rest.split(STOP)[1]}", encoding="utf-8")
    return 0 if all(all(held.values()) for held in outcomes.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
