"""Put interventions into a model: forward hooks that follow the text and act on attention patterns and head outputs.

In: a model and interventions (`stepsal.interventions.base`). Out: the same model, acting differently inside the context, and a
report.

1. A hook in front of the embedding keeps the token ids of the forward pass.
2. The attention scores of the lowest chosen layer say how many keys there are and what is padding:
   `stepsal.interventions.text_state` then knows the segment and step of every token. The scores of one chosen layer of each
   kind of attention say which keys each query can see: causal, no padding, inside the window.
3. Each intervention edits patterns, or reads values and edits head outputs.
4. After the highest chosen layer: forget what belongs to this pass.

Order. Hooks that were there before come first, then the interventions in their order, then hooks added inside the context: a
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

from stepsal.checks import checked
from stepsal.errors import InputError, UnsupportedModelError
from stepsal.interventions.base import HeadOutputEdit, Intervention, PatternEdit, as_interventions, overrides
from stepsal.interventions.layer_pass import LayerPass, RunningPass, only_heads
from stepsal.interventions.report import Activity, report_columns
from stepsal.interventions.text_state import Follower
from stepsal.models import host_of
from stepsal.models.checks import a_model
from stepsal.models.host import Hook, Model, visible_keys
from stepsal.models.support import check_supported
from stepsal.traces.formats import FormatSpec, StepsSpec

if TYPE_CHECKING:
    from pandas import DataFrame

HookFunction = Callable[[Tensor, Any], Tensor | None]


@checked(model=a_model)
@contextmanager
def intervene(
    model: Model,
    interventions: Intervention | Sequence[Intervention],
    *,
    format: FormatSpec = "auto",
    steps: StepsSpec = "auto",
) -> Iterator["Interventions"]:
    """Apply interventions to every forward pass of the model inside the context, however it is run.

    A teacher-forced pass over whole traces, a hand-written loop over a cache (chunks or single tokens), `hf_generate`, the
    model's `generate` and `step_saliency` all work, batches with an attention mask too; padding before the text and after its
    end is left out without one, too, but the model itself reads it. Not followed: beam search, which reorders the cache; two
    sequences decoded in turns; cropped and static caches (refused).

    Args:
        model: a `TransformerBridge`, from `load_model` or booted by you, or a `HookedTransformer` of TransformerLens 3.9; its
            tokenizer is used.
        interventions: one or several, also of your own classes; an empty sequence is allowed and does nothing.
        format, steps: how the text is split, as in `Trace.from_text`. The question ends with the first opening marker. A
            text without one (always with `plain`) is all question: nothing is done to it, and leaving the context warns.
            Where questions mention markers, say how long they are: `live.question_tokens = [trace.steps[0].stop]`.

    Yields:
        An object whose `report()` says what was done, inside and after the context.

    Raises:
        InputError: an unknown layer, head or format; on a pass that goes on where nothing was followed.
        UnsupportedModelError: the model's hooks are not what `stepsal.models` says of them; embeddings were given, not tokens.

    On leaving, a warning names each intervention that never did anything (unless its strength is neutral).

    >>> from stepsal import load_model, stepflow
    >>> model = load_model()
    >>> tokens = torch.tensor([model.tokenizer.encode("Facts: k = 37.<think>\\nFirst k = 37.\\n\\nSo 37.</think>37")])
    >>> with intervene(model, stepflow(tau_max=0.9)) as live:
    ...     logits = model(tokens)
    >>> live.report().columns[:5].tolist()
    ['layer', 'head', 'part', 'opportunities', 'activations']
    """
    live = Interventions(model, as_interventions(interventions), format, steps)
    check_supported(model)
    with host_of(model).hooks(live.hooks()):
        yield live
    live.warn_idle()


class Interventions:
    """What is going on inside `intervene`: the state of the current sequences, and what was done in all of them."""

    def __init__(
        self, model: Model, interventions: tuple[Intervention, ...], format: FormatSpec, steps: StepsSpec
    ) -> None:
        if getattr(model, "tokenizer", None) is None:
            raise InputError("the model has no tokenizer, so its text cannot be followed: set model.tokenizer")
        methods = (Intervention.edit_pattern, Intervention.edit_head_outputs)
        if idle := [each for each in interventions if not any(overrides(each, method) for method in methods)]:
            raise InputError(f"{type(idle[0]).__name__} edits nothing: give it edit_pattern, edit_head_outputs or both")
        self._host = host_of(model)
        size, attention = self._host.shape, self._host.attention_layers or None
        self._n_heads = size.heads
        self.interventions, self.format, self.steps = interventions, format, steps
        self._heads = [each.heads_by_layer(size.layers, size.heads, attention) for each in interventions]
        self._follower = Follower(model.tokenizer, format, steps, self._host.stop_tokens(), self._host.pad_tokens())
        self._activities = {(index, layer): Activity() for index, each in enumerate(self._heads) for layer in each}
        self._running = RunningPass(self._refuse)
        self._tokens: Tensor | None = None  # of the pass that is running, until the first scores are seen

    @property
    def question_tokens(self) -> Sequence[int] | int | None:
        """How many tokens of each row are its question, for sequences that begin from now on; None: up to the first marker.

        One number is for every row, however many there are.
        """
        return self._follower.question_tokens

    @question_tokens.setter
    def question_tokens(self, given: Sequence[int] | int | None) -> None:
        numbers = [given] if isinstance(given, int) else given
        if numbers is not None and not (
            isinstance(numbers, Sequence) and all(type(each) is int and each > 0 for each in numbers)
        ):
            raise InputError(
                f"question_tokens={given!r} must be a list with a whole number, at least 1, for each row; one such number for "
                "all rows; or None"
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
            mine = [index for index, heads in enumerate(self._heads) if layer in heads]
            edits = [index for index in mine if overrides(self.interventions[index], Intervention.edit_pattern)]
            outputs = [index for index in mine if overrides(self.interventions[index], Intervention.edit_head_outputs)]
            kind = host.attention_kind(layer)
            if kind not in seen:
                seen.add(kind)
                hooks.append(host.at_scores(layer, self._see(kind)))
            views = {index: LayerPass(self._running, layer, kind, self._chosen(index, layer)) for index in mine}
            hooks += [host.at_pattern(layer, self._edit_pattern(index, views[index])) for index in edits]
            if outputs:
                hooks.append(host.at_values(layer, self._keep_values(layer)))
            hooks += [host.at_head_outputs(layer, self._edit_head_outputs(index, views[index])) for index in outputs]
        hooks.append(host.at_residual(layers[-1], self._finish))
        return hooks

    def _begin(self, tokens: Tensor, hook: Any) -> None:
        self._running.begin()
        self._tokens = tokens

    def _see(self, kind: str) -> HookFunction:
        def see(scores: Float[Tensor, "batch head query key"], hook: Any) -> None:
            visible = self._running.visible[kind] = visible_keys(scores)
            if self._tokens is not None:
                queries = visible.shape[1]
                if self._tokens.shape[1] != queries:
                    raise self._refuse(
                        f"{self._tokens.shape[1]} token id(s) came by for {queries} positions; generate with a cache "
                        "(use_past_kv_cache=True)"
                    )
                tokens = self._tokens.to(visible.device).expand(len(visible), queries)
                slides = kind != "full_attention"
                self._running.text, self._tokens = self._follower.advance(tokens, visible, slides), None
            elif self._running.text is None:
                raise self._refuse("the token ids did not come by (embeddings were given, not tokens?)")

        return see

    def _edit_pattern(self, index: int, view: LayerPass) -> HookFunction:
        intervention, activity = self.interventions[index], self._activities[index, view.layer]

        def edit(pattern: Float[Tensor, "batch head query key"], hook: Any) -> Tensor | None:
            edited = intervention.edit_pattern(pattern, view)
            if edited is None:
                return None
            if not isinstance(edited, PatternEdit):
                edited = _described(intervention, pattern, edited, view)
            activity.add_pattern_edit(edited)
            return edited.pattern

        return edit

    def _keep_values(self, layer: int) -> HookFunction:
        def keep(values: Tensor, hook: Any) -> None:
            self._running.values = {layer: values.detach()}

        return keep

    def _edit_head_outputs(self, index: int, view: LayerPass) -> HookFunction:
        intervention, activity = self.interventions[index], self._activities[index, view.layer]

        def edit(outputs: Float[Tensor, "batch pos head d_head"], hook: Any) -> Tensor | None:
            edited = intervention.edit_head_outputs(outputs, view)
            if edited is None:
                return None
            if not isinstance(edited, HeadOutputEdit):
                edited = _described_outputs(intervention, outputs, edited, view)
            activity.add_head_output_edit(edited)
            return edited.outputs

        return edit

    def _finish(self, residual: Tensor, hook: Any) -> None:
        self._tokens = None
        self._running.end()

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
        """Warn about each intervention that never did anything, unless its strength is neutral."""
        for index, intervention in enumerate(self.interventions):
            activities = [activity for (which, _), activity in self._activities.items() if which == index]
            if intervention.does_nothing or any(activity.acted() for activity in activities):
                continue
            if self._follower.passes == 0:
                reason = "this model made no forward pass inside the context"
            elif not self._follower.answered:
                reason = (
                    "no text showed the marker that opens the thinking, so every token counts as question. Give format= "
                    "the model's markers, and prompts that open the thinking (or let the model do it)"
                )
            else:
                reason = intervention.idle_reason()
            warnings.warn(f"{intervention} never fired: {reason}.", stacklevel=4)

    def report(self) -> "DataFrame":
        """What each intervention did so far: a row for each layer, head and intervention.

        - part: the intervention's class; interventions of the same class are numbered from the second on.
        - opportunities: for a bridge the rows with some of both groups, for a starvation with some of what it starves; for
          momentum the first tokens of steps that may receive. activations: how many of them were changed.
        - mean_bridge_before, mean_bridge_after: the bridge group's mass (of a starvation: the starved keys'), over the
          opportunities.
        - lifted_from_tiny: how many rows a bridge or `SpotLight` lifted from a mass below 1e-4.
        - mean_injected_norm: norm of what was added relative to the head output's, over the activations.
        - mean_span_before, mean_span_after: the mass of the span that `Pasta` or `SpotLight` emphasises, likewise.
        - mean_entropy_before, mean_entropy_after: of the rows of `AttentionTemperature`, in nats, likewise.
        - what an intervention of your own measures and counts.

        Only what the installed interventions measure has a column; what one of them does not measure is NaN there.
        """
        import pandas as pd

        rows = []
        for index, intervention in enumerate(self.interventions):
            kind = type(intervention).__name__
            earlier = sum(type(other) is type(intervention) for other in self.interventions[:index])
            label = f"{kind} {earlier + 1}" if earlier else kind
            for layer, heads in self._heads[index].items():
                activity = self._activities[index, layer]
                rows += [{"layer": layer, "head": head, "part": label} | activity.of_head(head) for head in heads]
        table = pd.DataFrame(rows, columns=report_columns(self.interventions))
        return table.astype(dict.fromkeys(table.columns[5:], float))


def _described(
    intervention: Intervention, old: Float[Tensor, "batch head query key"], new: Tensor, view: LayerPass
) -> PatternEdit:
    """An edit that is a plain tensor, restricted to the chosen heads. The rows of the answer are its opportunities; those of
    them that it changed are its activations.
    """
    _check_shape(intervention, "edit_pattern", old, new)
    pattern, rows = only_heads(new, old, view.heads), view.queries_answering().to(old.device)
    return PatternEdit(pattern, rows, (pattern != old).any(-1) & rows, {})


def _described_outputs(
    intervention: Intervention, old: Float[Tensor, "batch pos head d_head"], new: Tensor, view: LayerPass
) -> HeadOutputEdit:
    _check_shape(intervention, "edit_head_outputs", old, new)
    outputs = only_heads(new.transpose(1, 2), old.transpose(1, 2), view.heads).transpose(1, 2)
    tokens = view.queries_answering()[:, 0].to(old.device)
    changed = (outputs != old).any(-1).any(-1) & tokens
    return HeadOutputEdit(outputs, int(tokens.sum()), int(changed.sum()), {})


def _check_shape(intervention: Intervention, method: str, old: Tensor, new: Tensor) -> None:
    if not isinstance(new, Tensor) or new.shape != old.shape:
        found = tuple(new.shape) if isinstance(new, Tensor) else type(new).__name__
        raise InputError(
            f"{type(intervention).__name__}.{method} returned {found}: expected a tensor of the shape that it was given, "
            f"{tuple(old.shape)}, or None"
        )
