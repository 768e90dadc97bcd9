"""Put interventions into a model: forward hooks that follow the text and act on attention patterns and head outputs.

In: a model and parts (`stepsal.interventions.stepflow`). Out: the same model, acting differently inside the context, and a report.

1. A hook in front of the embedding keeps the token ids of the forward pass.
2. The attention scores of the lowest chosen layer say how many keys there are and what is padding: `stepsal.interventions.text_state` then
   knows the segment and step of every token. The scores of one bridged layer of each kind of attention say which keys each
   query can see: causal, no padding, inside the window.
3. Bridges edit the pattern; momentum reads the values and edits the head outputs (`stepsal.interventions.momentum`).
4. After the highest chosen layer: forget what belongs to this pass.

Order. Hooks that were there before come first, then the parts in the order given, then hooks added inside the context: a
user's own, and those of `step_saliency`, which therefore reads the pattern as it is used. Two bridges in one layer: the second
sees what the first has made. Two momenta add. A bridge and a momentum of the same layer commute: values and head outputs are
not patterns. Momentum reads a value as it is when its hook fires; it takes part in no gradient (each row's own loss does not
depend on other positions' values; with the other objectives the path through the momentum is left out).
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stepsal.errors import InputError, UnsupportedModelError
from stepsal.interventions.activity import Tally
from stepsal.interventions.edits import Groups, GroupSeries, bridge_pattern, make_groups, random_groups, starve_pattern
from stepsal.interventions.momentum import MomentumState
from stepsal.interventions.stepflow import OddsEqualBridge, Part, RandomBridge, Starvation, StepMomentum, resolve_heads
from stepsal.interventions.text_state import Block, Follower
from stepsal.models import host_of
from stepsal.models.host import Hook, Model, visible_keys
from stepsal.models.support import check_supported
from stepsal.traces.formats import FormatSpec, StepsSpec

if TYPE_CHECKING:
    from pandas import DataFrame

HookFunction = Callable[[Tensor, Any], Tensor | None]


@contextmanager
def intervene(
    model: Model, parts: Part | Sequence[Part], *, format: FormatSpec = "auto", steps: StepsSpec = "auto"
) -> Iterator["Interventions"]:
    """Apply the parts to every forward pass of the model inside the context, however it is run.

    A teacher-forced pass over whole traces, a hand-written loop over a cache (chunks or single tokens), `hf_generate`, the
    model's `generate` and `step_saliency` all work, batches with an attention mask too. Not followed: beam search, which
    reorders the cache; two sequences decoded in turns; cropped and static caches (refused).

    Args:
        model: a `TransformerBridge`, from `load_model` or booted by you, or a `HookedTransformer` of TransformerLens 3.9; its
            tokenizer is used.
        parts: one or several; none is allowed and does nothing.
        format, steps: how the text is split, as in `Trace.from_text`. The question ends with the first opening marker. A
            text without one (always with `plain`) is all question: nothing is done to it, and leaving the context warns.
            Where questions mention markers, say how long they are: `live.question_tokens = [trace.steps[0].stop]`.

    Yields:
        An object whose `report()` says what was done, inside and after the context.

    Raises:
        InputError: an unknown layer, head or format; on a pass that goes on where nothing was followed.
        UnsupportedModelError: the model's hooks are not what `stepsal.models.host` says of them; embeddings were given, not tokens.

    Warns once, on leaving, about each part that never did anything (unless its strength is zero).

    >>> from stepsal import load_model
    >>> from stepsal.interventions.stepflow import stepflow
    >>> model = load_model()
    >>> tokens = torch.tensor([model.tokenizer.encode("Facts: k = 37.<think>\\nFirst k = 37.\\n\\nSo 37.</think>37")])
    >>> with intervene(model, stepflow(tau_max=0.9)) as live:
    ...     logits = model(tokens)
    >>> live.report().columns[:5].tolist()
    ['layer', 'head', 'part', 'opportunities', 'activations']
    """
    parts = (parts,) if isinstance(parts, Part) else tuple(parts)
    if wrong := [part for part in parts if not isinstance(part, Part)]:
        raise InputError(
            f"{wrong[0]!r} is no intervention: expected OddsEqualBridge, StepMomentum or one of their controls"
        )
    live = Interventions(model, parts, format, steps)
    check_supported(model)
    with host_of(model).hooks(live.hooks()):
        yield live
    live.warn_idle()


class Interventions:
    """What is going on inside `intervene`: the state of the current sequences, and the tallies of all of them."""

    def __init__(self, model: Model, parts: tuple[Part, ...], format: FormatSpec, steps: StepsSpec) -> None:
        if getattr(model, "tokenizer", None) is None:
            raise InputError("the model has no tokenizer, so its text cannot be followed: set model.tokenizer")
        self._host = host_of(model)
        size = self._host.shape
        self._n_heads = size.heads
        self.parts, self.format, self.steps = parts, format, steps
        self._heads = [resolve_heads(part, size.layers, size.heads) for part in parts]
        self._follower = Follower(model.tokenizer, format, steps, self._host.end_tokens())
        self._tallies = {(index, layer): Tally() for index, each in enumerate(self._heads) for layer in each}
        # Of the forward pass that is running; `_finish` clears it:
        self._tokens: Tensor | None = None  # until the first scores are seen
        self._block: Block | None = None
        self._visible: dict[str, Tensor] = {}  # kind of attention -> batch query key
        self._series: dict[Any, GroupSeries] = {}
        self._series_before: dict[Any, GroupSeries] = {}  # of the pass before
        self._values: Tensor | None = None  # of the layer that is running, batch pos kv_head d_head

    @property
    def question_tokens(self) -> Sequence[int] | None:
        """How many tokens of each row are its question, for sequences that begin from now on; None: up to the first marker."""
        return self._follower.question_tokens

    @question_tokens.setter
    def question_tokens(self, given: Sequence[int] | None) -> None:
        if given is not None and not (
            isinstance(given, Sequence) and all(isinstance(each, int) and each > 0 for each in given)
        ):
            raise InputError(
                f"question_tokens={given!r} must be a list with a whole number, at least 1, for each row; or None"
            )
        self._follower.question_tokens = given

    # --- hooks -------------------------------------------------------------------------------------------------------
    def hooks(self) -> list[Hook]:
        """All hooks, `(name, function)`, in the order in which they must be installed."""
        layers = sorted({layer for each in self._heads for layer in each})
        if not layers:
            return []
        host = self._host
        hooks: list[Hook] = [host.at_tokens(self._begin)]
        seen: set[str] = set()  # layers of one kind see the same keys: the first speaks for all
        for layer in layers:
            mine = [(index, part) for index, part in enumerate(self.parts) if layer in self._heads[index]]
            edits = [(index, part) for index, part in mine if not isinstance(part, StepMomentum)]
            momenta = [(index, part) for index, part in mine if isinstance(part, StepMomentum)]
            kind = host.attention_kind(layer)
            if layer == layers[0] or (edits and kind not in seen):
                seen.add(kind)
                hooks.append(host.at_scores(layer, self._see(kind)))
            hooks += [host.at_pattern(layer, self._edit(index, layer, kind, part)) for index, part in edits]
            if momenta:
                hooks.append(host.at_values(layer, self._keep_values))
            hooks += [host.at_head_outputs(layer, self._inject(index, layer, part)) for index, part in momenta]
        hooks.append(host.at_residual(layers[-1], self._finish))
        return hooks

    def _begin(self, tokens: Tensor, hook: Any) -> None:
        self._clear()
        self._series_before, self._series = self._series, {}
        self._tokens = tokens

    def _see(self, kind: str) -> HookFunction:
        def see(scores: Float[Tensor, "batch head query key"], hook: Any) -> None:
            visible = self._visible[kind] = visible_keys(scores)
            if self._tokens is not None:
                queries = visible.shape[1]
                if self._tokens.shape[1] != queries:
                    raise self._refuse(
                        f"{self._tokens.shape[1]} token id(s) came by for {queries} positions; generate with a cache "
                        "(use_past_kv_cache=True)"
                    )
                tokens = self._tokens.to(visible.device).expand(len(visible), queries)
                slides = kind != "full_attention"
                self._block, self._tokens = self._follower.advance(tokens, visible, slides), None
            elif self._block is None:
                raise self._refuse("the token ids did not come by (embeddings were given, not tokens?)")

        return see

    def _edit(self, index: int, layer: int, kind: str, part: OddsEqualBridge | Starvation) -> HookFunction:
        tally, chosen = self._tallies[index, layer], self._chosen(index, layer)

        def edit(pattern: Float[Tensor, "batch head query key"], hook: Any) -> Tensor | None:
            block = self._current()
            if not block.answering:
                return None
            heads = None if chosen is None else chosen.to(pattern.device)
            if isinstance(part, Starvation):
                visible = self._visible[kind].to(pattern.device)
                starved = block.starved(visible.shape[2], part.rows).to(pattern.device) & visible
                opportunity = starved.any(-1)[:, None]
                edited = starve_pattern(pattern, starved[:, None], part.odds, heads)
            else:
                groups = self._groups(part, kind, pattern.device)
                opportunity = groups.opportunity
                edited = bridge_pattern(pattern, groups, part.tau_max, part.feasible, heads)
            tally.add_bridge(opportunity, edited.active, edited.before, edited.target)
            return edited.pattern

        return edit

    def _groups(self, part: OddsEqualBridge, kind: str, device: torch.device) -> Groups:
        """The groups of this pass's queries; found once for all layers of a kind, from the last pass's where that can be."""
        seed = part.seed if isinstance(part, RandomBridge) else None
        name = (kind, device, part.scope, part.bos_in_bridge, seed)
        if name not in self._series:
            block, series = self._current(), self._series_before.get(name)
            goes_on = block.grows and (block.goes_on or (part.scope == "segment" and block.segments_go_on))
            if series is not None and goes_on and kind == "full_attention" and seed is None:
                series.advance()
            else:
                series = GroupSeries(self._new_groups(part, seed, self._visible[kind].to(device)))
            self._series[name] = series
        return self._series[name].now

    def _new_groups(self, part: OddsEqualBridge, seed: int | None, visible: Bool[Tensor, "batch query key"]) -> Groups:
        block, keys = self._current(), visible.shape[2]
        both = block.groups(keys, part.scope, part.bos_in_bridge)
        bridge, current = (group.to(visible.device) & visible for group in both)
        if seed is not None:
            bridge, current = random_groups(bridge, current, block.priority(seed, keys).to(visible.device))
        return make_groups(bridge, current)

    def _keep_values(self, values: Tensor, hook: Any) -> None:
        self._values = values.detach()

    def _inject(self, index: int, layer: int, part: StepMomentum) -> HookFunction:
        state = MomentumState(part, layer, self._chosen(index, layer), self._tallies[index, layer])

        def inject(output: Float[Tensor, "batch pos head d_head"], hook: Any) -> Tensor | None:
            assert self._values is not None
            return state.inject(self._current(), self._values, output)

        return inject

    def _current(self) -> Block:
        if self._block is None:
            raise self._refuse("the pass did not begin below the lowest chosen layer (start_at_layer?)")
        return self._block

    def _finish(self, residual: Tensor, hook: Any) -> None:
        self._clear()

    def _clear(self) -> None:
        self._tokens = self._block = self._values = None
        self._visible = {}

    def _chosen(self, index: int, layer: int) -> Bool[Tensor, " head"] | None:
        heads = self._heads[index][layer]
        if len(heads) == self._n_heads:
            return None
        return torch.zeros(self._n_heads, dtype=torch.bool).index_fill(0, torch.tensor(heads), True)

    # --- what was done -----------------------------------------------------------------------------------------------
    def _refuse(self, reason: str) -> UnsupportedModelError:
        about = self._host.describe()
        return UnsupportedModelError(f"cannot intervene in {about['model']} ({about['architecture']}): {reason}")

    def warn_idle(self) -> None:
        """Warn about each part that has a strength and never did anything."""
        for index, part in enumerate(self.parts):
            tallies = [tally for (which, _), tally in self._tallies.items() if which == index]
            if _does_nothing(part) or any(tally.acted() for tally in tallies):
                continue
            if self._follower.passes == 0:
                reason = "this model made no forward pass inside the context"
            elif not self._follower.answered:
                reason = (
                    "no text showed the marker that opens the thinking, so every token counts as question. Give format= "
                    "the model's markers, and prompts that open the thinking (or let the model do it)"
                )
            elif isinstance(part, OddsEqualBridge):
                reason = "no row had both groups and less bridge mass than its target"
            elif isinstance(part, Starvation):
                reason = f"no {part.rows} row gave any attention to what is starved"
            else:
                reason = f"no step of {' or '.join(part.into)} followed a thinking step"
            warnings.warn(f"{part} never fired: {reason}.", stacklevel=4)

    def report(self) -> "DataFrame":
        """What each part did so far: a row for each layer, head and part.

        - opportunities: for a bridge the rows with some of both groups, for a starvation with some of what it starves; for
          momentum the first tokens of steps that may receive. activations: how many of them were changed.
        - mean_bridge_before, mean_bridge_after: the bridge group's mass (of a starvation: the starved keys'), over the
          opportunities.
        - mean_injected_norm: norm of what was added relative to the head output's, over the activations.

        A number that a part does not have is NaN. Parts of the same kind are numbered from the second on.
        """
        import pandas as pd

        rows = []
        for index, part in enumerate(self.parts):
            kind = type(part).__name__
            earlier = sum(type(other) is type(part) for other in self.parts[:index])
            label = f"{kind} {earlier + 1}" if earlier else kind
            for layer, heads in self._heads[index].items():
                tally = self._tallies[index, layer]
                rows += [
                    {"layer": layer, "head": head, "part": label} | tally.of_head(head, isinstance(part, StepMomentum))
                    for head in heads
                ]
        columns = ["layer", "head", "part", "opportunities", "activations"]
        columns += ["mean_bridge_before", "mean_bridge_after", "mean_injected_norm"]
        return pd.DataFrame(rows, columns=columns)


def _does_nothing(part: Part) -> bool:
    """Whether its strength is zero."""
    if isinstance(part, Starvation):
        return part.odds == 1
    return (part.tau_max if isinstance(part, OddsEqualBridge) else part.alpha) == 0
