"""Slow, obvious versions of what stepsal does fast. Tests compare the two."""

import contextlib
import itertools
import math

import numpy as np
import torch
from scipy.stats import rankdata, spearmanr
from torch.nn.functional import cross_entropy

from stepsal.traces.rules import FED, STEP_RULES, StepText


# --- influence: the definition, by T backward passes over the full graph ---------------------------------------------
def patterns_and_logits(model, tokens):
    """Every layer's attention pattern, in one graph with the logits."""
    kept = {}

    def leaf(tensor, hook):
        return tensor.detach().requires_grad_(True)

    def keep(tensor, hook):
        kept[hook.layer()] = tensor

    layers = layers_with_attention(model)
    hooks = [("blocks.0.hook_resid_pre", leaf), *((f"blocks.{layer}.attn.hook_pattern", keep) for layer in layers)]
    with model.hooks(fwd_hooks=hooks):
        logits = model(tokens[None])
    return [kept[layer] for layer in layers], logits[0]


def layers_with_attention(model):
    return [layer for layer in range(model.cfg.n_layers) if hasattr(model.blocks[layer], "attn")]


def apply_rule(pattern, gradient, rule):
    causal = torch.tril(torch.ones_like(pattern))
    return {"abs": (gradient * pattern).abs(), "signed": gradient * pattern, "grad": gradient.abs() * causal}[rule]


def influence_by_separate_passes(model, tokens, rule="abs", score="loss"):
    """Row t is the gradient of token t+1's loss alone (or of another score of it)."""
    return row_by_row(*patterns_and_logits(model, tokens), tokens, rule, score)


def score_of(logits, target, score):
    """The loss of a token, its logit, or by how much its logit is above the largest other one."""
    if score == "loss":
        return cross_entropy(logits, target)
    others = [logit for index, logit in enumerate(logits) if index != target]
    return logits[target] - (max(others) if score == "margin" else 0)


def influence_without_transformer_lens(folder, tokens):
    """The same of Hugging Face's own model and eager attention, whose patterns are part of its output."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    output = model(tokens[None], output_attentions=True)
    return row_by_row(output.attentions, output.logits[0], tokens)


def value_attention_without_transformer_lens(folder, tokens):
    """||A v W_O|| of a Qwen2 or Llama, pair by pair, from Hugging Face's own attention, values and weights."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    values, layers = {}, model.model.layers
    for index, layer in enumerate(layers):
        layer.self_attn.v_proj.register_forward_hook(lambda module, given, made, at=index: values.update({at: made[0]}))
    with torch.no_grad():
        attentions = model(tokens[None], output_attentions=True).attentions
    heads, groups = model.config.num_attention_heads, model.config.num_key_value_heads
    found = torch.zeros(len(layers), heads, len(tokens), len(tokens))
    for layer, head, query in itertools.product(range(len(layers)), range(heads), range(len(tokens) - 1)):
        width = values[layer].shape[1] // groups
        group = head // (heads // groups)
        projection = layers[layer].self_attn.o_proj.weight[:, head * width : (head + 1) * width].detach()
        for key in range(query + 1):
            value = values[layer][key, group * width : (group + 1) * width]
            vector = attentions[layer][0, head, query, key] * (projection @ value)
            found[layer, head, query, key] = vector.norm()
    return found


def row_by_row(patterns, logits, tokens, rule="abs", score="loss"):
    influence = torch.zeros(len(patterns), patterns[0].shape[1], len(tokens), len(tokens))
    for t in range(len(tokens) - 1):
        gradients = torch.autograd.grad(score_of(logits[t], tokens[t + 1], score), patterns, retain_graph=True)
        for layer, (pattern, gradient) in enumerate(zip(patterns, gradients, strict=True)):
            influence[layer, :, t] = apply_rule(pattern.detach()[0], gradient[0], rule)[:, t]
    return influence


def influence_of_one_loss(model, tokens, span, score="loss"):
    """The summed loss (or another score) of the tokens in `span`, seen from every row."""
    patterns, logits = patterns_and_logits(model, tokens)
    loss = sum(score_of(logits[t - 1], tokens[t], score) for t in range(*span))
    gradients = torch.autograd.grad(loss, patterns)
    influence = torch.stack([(p.detach() * g).abs()[0] for p, g in zip(patterns, gradients, strict=True)])
    influence[:, :, -1] = 0
    return influence


def pool_by_loops(influence, trace):
    """Sum over the token pairs of each pair of steps."""
    n = len(trace.steps)
    mass = torch.zeros(*influence.shape[:2], n, n)
    for i, query_step in enumerate(trace.steps):
        for j, key_step in enumerate(trace.steps):
            block = influence[:, :, query_step.start : query_step.stop, key_step.start : key_step.stop]
            mass[:, :, i, j] = block.double().sum((-2, -1)).float()
    return mass


# --- knockout: a source at a time, over whole traces without a cache --------------------------------------------------
def forbid(rows, trace, source, keep_first):
    """A hook on scores: no query of `rows` in a later step attends to the source step."""
    step_of, first = trace.step_of.tolist(), 1 if keep_first else 0
    span = range(max(first, trace.steps[source].start), trace.steps[source].stop)

    def edit(scores, hook):
        scores = scores.clone()
        for query in rows:
            if step_of[query] > source:
                scores[:, :, query, list(span)] = torch.finfo(scores.dtype).min
        return scores

    return edit


def total_knockout_by_loops(host, trace, source, keep_first=True):
    """The logits of the whole trace where no later step attends to the source."""
    rows = range(len(trace.tokens))
    hooks = [host.at_scores(layer, forbid(rows, trace, source, keep_first)) for layer in host.attention_layers]
    return host.forward(trace.tokens[None], hooks)[0]


def direct_knockout_by_loops(host, trace, source, keep_first=True, around=contextlib.nullcontext):
    """The logits of each later query, one at a time: all other positions keep the keys and values of the untouched run.

    `around` makes a context, such as `intervene`, whose hooks come between those of the keys and values and the mask.
    """
    base, layers = {}, host.attention_layers

    def keep(name):
        def look(tensor, hook):
            base[name] = tensor.detach().clone()

        return look

    kept = [
        at(layer, keep((what, layer))) for layer in layers for what, at in (("k", host.at_keys), ("v", host.at_values))
    ]
    with host.hooks(kept), around():
        logits = host.forward(trace.tokens[None], [])[0].clone()
    for query in range(trace.steps[source].stop, len(trace.tokens)):

        def others(name, query=query):
            def replace(tensor, hook):
                replaced = base[name].clone()
                replaced[:, query] = tensor[:, query]
                return replaced

            return replace

        swaps = [
            at(layer, others((what, layer)))
            for layer in layers
            for what, at in (("k", host.at_keys), ("v", host.at_values))
        ]
        mask = [host.at_scores(layer, forbid([query], trace, source, keep_first)) for layer in layers]
        with host.hooks(swaps), around():
            logits[query] = host.forward(trace.tokens[None], mask)[0, query]
    return logits


def answer_by_loops(host, trace, removed, span):
    """The summed log-probability of the answer where no later step attends to any of the removed steps."""
    rows, layers = range(len(trace.tokens)), range(host.shape.layers)
    hooks = [host.at_scores(layer, forbid(rows, trace, source, True)) for source in removed for layer in layers]
    logits = host.forward(trace.tokens[None], hooks)[0].double().log_softmax(-1)
    return sum(float(logits[at - 1, trace.tokens[at]]) for at in range(*span))


def pooled_knockout(base, other, trace, source):
    """For each later step the mean KL and the mean rise of the loss, by loops over its queries."""
    n, targets = len(trace.steps), trace.tokens[1:]
    kl, loss = torch.full((n,), torch.nan), torch.full((n,), torch.nan)
    p, q = base.double().log_softmax(-1), other.double().log_softmax(-1)
    for step in trace.steps[source + 1 :]:
        queries = range(step.start, min(step.stop, len(trace.tokens) - 1))
        if queries:
            kl[step.index] = sum(float((p[t].exp() * (p[t] - q[t])).sum()) for t in queries) / len(queries)
            loss[step.index] = sum(float(p[t, targets[t]] - q[t, targets[t]]) for t in queries) / len(queries)
    return kl, loss


# --- faithfulness: pair by pair, with scipy's correlation -------------------------------------------------------------
def partial_spearman_by_regression(x, y, given):
    """The correlation of what a regression on the other variables' ranks leaves of the ranks of both; NaN if of one nothing."""
    ranks = [rankdata(each) for each in (x, y, *given)]
    others = np.column_stack([np.ones(len(x)), *ranks[2:]])
    left = [each - others @ (np.linalg.pinv(others) @ each) for each in ranks[:2]]
    if len(x) < 4 + len(given) or min(np.abs(each).max() for each in left) < 1e-7:
        return math.nan
    return float(np.corrcoef(*left)[0, 1])


def faithfulness_by_loops(effect, entries, sizes):
    """Each score on each selection of pairs. The source 0 is the question."""
    n, found = len(sizes), {}
    known = [(i, j) for i in range(n) for j in range(i) if not (effect[i, j].isnan() or entries[i, j].isnan())]
    selections = {"all": known, "no neighbours": [(i, j) for i, j in known if j < i - 1]}
    if any(j == 0 for _, j in known):
        selections["no question"] = [(i, j) for i, j in known if j > 0]
        selections["no neighbours, no question"] = [(i, j) for i, j in known if 0 < j < i - 1]
    for name, pairs in selections.items():
        of_readers = []
        for reader in range(n):
            own = [(i, j) for i, j in pairs if i == reader]
            if len(own) >= 4:
                rho = spearmanr([float(entries[at]) for at in own], [float(effect[at]) for at in own]).statistic
                of_readers.append(rho)
        x, y = ([float(matrix[at]) for at in pairs] for matrix in (entries, effect))
        found["per reader", name] = float(np.mean(of_readers))
        found["overall", name] = float(spearmanr(x, y).statistic)
        given = [[math.log(i - j) for i, j in pairs], [sizes[j] for _, j in pairs]]
        found["partial", name] = partial_spearman_by_regression(x, y, given)
    return found


# --- segmentation: one character a token, rereading the whole text each time -----------------------------------------
def steps_by_rereading(text, opening, closing, rule):
    """Where steps begin, as (position, segment): at each character the segment is read again from its beginning."""
    starts = [(0, "question")]
    if opening not in text:
        return starts
    thinking = text.index(opening) + len(opening)
    summary = text.index(closing, thinking) + len(closing) if closing in text[thinking:] else len(text)
    for segment, first, last in (("thinking", thinking, summary), ("summary", summary, len(text))):
        begun, due = [first], False
        for position in range(first, last):
            if position == first:
                starts.append((position, segment))
                continue
            if text[position].isspace() or not text[begun[-1] : position].strip():
                continue
            step = StepText()
            for start, stop in itertools.pairwise([*begun, position]):
                step.begin()
                step.feed(text[start:stop])
            due = due or FED[STEP_RULES[rule]](step, text[position])
            seen = text[first : position + 1]
            under_way = any(seen.endswith(closing[:size]) for size in range(1, len(closing) + 1))
            if due and not (segment == "thinking" and under_way):
                begun.append(position)
                due = False
                starts.append((position, segment))
    return starts


# --- step maps: the official code's pooling --------------------------------------------------------------------------
def mean_over_whole_blocks(influence, steps):
    """The mean of every block of the token map, the zero, non-causal half of the diagonal ones included."""
    n = len(steps)
    means = torch.zeros(*influence.shape[:2], n, n)
    for i, query_step in enumerate(steps):
        for j, key_step in enumerate(steps):
            numbers = [
                influence[:, :, query, key]
                for query in range(query_step.start, query_step.stop)
                for key in range(key_step.start, key_step.stop)
            ]
            means[:, :, i, j] = sum(numbers) / len(numbers)
    return means


def official_metrics(influence, trace):
    """The official code's three quantities of one layer, from a token map averaged over heads, by loops over blocks.

    Their step matrix averages whole blocks, the masked half included; the final (analysis) block is the square of summary
    (thinking) steps, averaged likewise.
    """
    steps = mean_over_whole_blocks(influence[None, None], trace.steps)[0, 0]

    def block(name):
        indices = [step.index for step in trace.steps if step.segment == name]
        return sum(float(steps[i, j]) for i in indices for j in indices) / len(indices) ** 2

    final, analysis = block("summary"), block("thinking")
    return {
        "final_block_intensity": final,
        "analysis_block_intensity": analysis,
        "final_heat_anomaly": final / analysis,
    }


def receiver_kurtosis_by_loops(stepmap, control):
    """Thought Anchors' kurtosis of vertical scores, over thinking steps, with scipy; `control` divides out distance."""
    from scipy.stats import kurtosis

    thinking = stepmap.segment("thinking")
    pairs = [(i, j) for i in thinking for j in thinking if i - j >= 4]
    found = torch.full(stepmap.mass.shape[:2], torch.nan)
    for layer, head in itertools.product(*map(range, found.shape)):
        density = {(i, j): float(stepmap.mass[layer, head, i, j] / stepmap.pairs[i, j]) for i, j in pairs}
        if control:
            mean = {d: np.mean([density[i, j] for i, j in pairs if i - j == d]) for d in {i - j for i, j in pairs}}
            density = {(i, j): density[i, j] / mean[i - j] for i, j in pairs}
        sources = sorted({j for _, j in pairs})
        columns = [[density[i, j] for i, j in pairs if j == source] for source in sources]
        vertical = [(np.mean(c) - 1) * math.sqrt(len(c)) if control else np.mean(c) for c in columns]
        found[layer, head] = float(kurtosis(vertical, fisher=True, bias=True))
    return found


# --- statistics: the closed form -------------------------------------------------------------------------------------
def wilson_interval(right, n):
    """Wilson's 95 % score interval of a proportion (1927, equation 5), with z of the normal distribution to all digits."""
    z = 1.959963984540054
    centre = (right + z * z / 2) / (n + z * z)
    margin = z / (n + z * z) * math.sqrt(right * (n - right) / n + z * z / 4)
    return centre - margin, centre + margin


# --- interventions: row by row, over a whole trace whose steps are known -----------------------------------------------
def bridged_row(row, groups, tau_max, feasible):
    """One attention row; `groups` has "B", "S" or "O" for each key that the query sees, None for the others."""
    count = {name: groups.count(name) for name in "BS"}
    if not count["B"] or not count["S"]:
        return row
    mass = {name: float(sum(p for p, group in zip(row, groups, strict=True) if group == name)) for name in "BS"}
    share = (count["B"] / (count["B"] + count["S"])) ** 0.5
    reach = mass["B"] + mass["S"]
    cap = reach * share if feasible == "share" else reach - 1e-6
    target = min(share, tau_max, cap)
    if not 0 < mass["B"] < target or not mass["S"] > 0:
        return row
    factor = {"B": target / mass["B"], "S": (reach - target) / mass["S"], "O": 1.0, None: 1.0}
    return row * torch.tensor([factor[group] for group in groups])


def groups_of_row(query, steps, step_of, scope, bos, window=None):
    """What each key up to the query is to it, by the steps of a trace."""
    own = steps[step_of[query]]
    bridge_of = {"thinking": "question", "summary": "thinking"}
    groups = []
    for key in range(len(step_of)):
        step = steps[step_of[key]]
        seen = key <= query and (window is None or query - key < window)
        if not seen:
            groups.append(None)
        elif own.segment == "question" or (key == 0 and not bos):
            groups.append("O")
        elif scope == "step":
            groups.append("S" if step.index == own.index else "B")
        else:
            name = {own.segment: "S", bridge_of[own.segment]: "B"}
            groups.append(name.get(step.segment, "O"))
    return groups


def logits_with_interventions(model, trace, bridges=(), momenta=(), window=None):
    """A whole trace, with the parts put in by loops: bridges as (layers, heads, options), momenta likewise.

    window: how many keys a query sees, in all layers or by layer; None is all.
    """
    step_of, values = trace.step_of.tolist(), {}
    n_heads, n_tokens = model.cfg.n_heads, len(trace.tokens)
    windows = window if isinstance(window, dict) else dict.fromkeys(range(model.cfg.n_layers), window)

    def bridge(pattern, hook):
        result = pattern.clone()
        for layers, heads, options in bridges:
            for head in heads if hook.layer() in layers else ():
                for query in range(len(step_of)):
                    groups = groups_of_row(
                        query, trace.steps, step_of, options["scope"], options["bos"], windows[hook.layer()]
                    )
                    row = result[0, head, query].clone()
                    result[0, head, query] = bridged_row(row, groups, options["tau_max"], options["feasible"])
        return result

    def keep(value, hook):  # latent attention has heads before positions
        values[hook.layer()] = value if value.shape[1] == n_tokens else value.transpose(1, 2)

    def inject(output, hook):
        result = output.clone().reshape(1, n_tokens, n_heads, -1)  # which latent attention splits elsewhere
        for layers, heads, options in momenta:
            for before, step in itertools.pairwise(trace.steps):
                if hook.layer() not in layers or before.segment != "thinking" or step.segment not in options["into"]:
                    continue
                start = (
                    before.start if options["window"] is None else max(before.start, before.stop - options["window"])
                )
                mean = values[hook.layer()][0, start : before.stop].mean(0)
                for head in heads:
                    group = head * mean.shape[0] // n_heads
                    result[0, step.start, head] += options["alpha"] * mean[group]
        return result.reshape(output.shape)

    hooks = []
    for layer in layers_with_attention(model):
        hooks += [(f"blocks.{layer}.attn.hook_pattern", bridge), (f"blocks.{layer}.attn.hook_v", keep)]
        hooks += [(f"blocks.{layer}.attn.hook_z", inject)]
    with torch.no_grad(), model.hooks(fwd_hooks=hooks):
        return model(trace.tokens[None])[0]


def official_bridge(logits, bridge, current, tau_max, smoothing, eps=1e-6):
    """The public code's rule on attention logits, `key`: constants added to each group's logits, then a softmax.

    It adds `smoothing = eps` to both sides of the ratios of masses, so its rows sum to 1 only after the softmax.
    """
    p = logits.softmax(-1)
    p_bridge, p_current = float(p[bridge].sum()), float(p[current].sum())
    available = p_bridge + p_current
    target = min((int(bridge.sum()) / int((bridge | current).sum())) ** 0.5, tau_max)
    if not (p_bridge < target and available > eps and p_current > eps):
        return p
    target = max(min(target, available - eps), eps)
    shifted = logits.clone()
    shifted[bridge] += math.log((target + smoothing) / (p_bridge + smoothing))
    shifted[current] += math.log((available - target + smoothing) / (p_current + smoothing))
    return shifted.softmax(-1)


def starve(pattern, steps, rows, odds):
    """The starved rows of one trace's attention pattern, `head query key`, written as loops."""
    step_of = [step for step in steps for _ in range(step.start, step.stop)]
    result = pattern.clone()
    for head, query in itertools.product(range(pattern.shape[0]), range(pattern.shape[1])):
        own = step_of[query]
        keys = []
        for key in range(query + 1):
            other = step_of[key]
            if rows in ("openings", "steps"):
                earlier = own.segment == "thinking" and other.index < own.index
                if earlier and (rows == "steps" or (query == own.start and other.segment == "thinking")):
                    keys.append(key)
            elif own.segment == rows and other.segment == {"thinking": "question", "summary": "thinking"}[rows]:
                keys.append(key)
        row = pattern[head, query].double()
        new = row.clone()
        for key in keys:
            new[key] *= odds
        result[head, query] = (new * row.sum() / new.sum()).to(pattern.dtype)
    return result


# --- rivals of the bridge: the published equations on one attention row --------------------------------------------------
def emphasised_keys(query, steps, step_of, span):
    """The keys of the span of one query: nothing for question rows, and only steps that are over."""
    own = steps[step_of[query]]
    over = [] if own.segment == "question" else steps[: own.index]
    chosen = [step for step in over if step.segment == ("question" if span == "question" else "thinking")]
    if span == "last_steps":
        chosen = chosen[-3:]
    return [key for step in chosen for key in range(step.start, step.stop)]


def pasta_row(row, keys, alpha):
    """Zhang et al., equation 2: A / C in the span, alpha A / C outside it. C makes the row sum to 1."""
    scaled = [float(p) * (1 if key in keys else alpha) for key, p in enumerate(row)]
    return torch.tensor([p / sum(scaled) for p in scaled], dtype=row.dtype)


def spotlight_row(row, keys, psi):
    """Venkateswaran and Contractor: a bias of log(psi / share) on the span's scores, then a softmax."""
    share = sum(float(row[key]) for key in keys)
    scores = row.double().log()
    if 0 < share < psi:
        for key in keys:
            scores[key] += math.log(psi / share)
    return scores.softmax(-1).to(row.dtype)


def tempered_row(row, tau):
    """The softmax of the row's scores divided by tau."""
    return (row.double().log() / tau).softmax(-1).to(row.dtype)


def emphasised_model(patterns, trace, rule, span):
    """One layer's attention pattern, `head query key`, with `rule(row, keys)` applied to the rows that have a span."""
    result, step_of = patterns.clone(), trace.step_of.tolist()
    for head, query in itertools.product(range(patterns.shape[0]), range(patterns.shape[1])):
        keys = emphasised_keys(query, trace.steps, step_of, span)
        if keys:
            result[head, query, : query + 1] = rule(patterns[head, query, : query + 1], keys)
    return result
