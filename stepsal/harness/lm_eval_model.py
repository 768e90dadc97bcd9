"""The model `stepsal` of lm-evaluation-harness: a model of TransformerLens, with interventions while it reads and writes.

In: the harness's requests. Out: answers and log-likelihoods.

1. `generate_until` decodes with `stepsal.generate`'s own loop, so an answer is that of `stepsal generate` under the same
   settings. It is cut at the first stop text afterwards, as the harness's own models do.
2. `loglikelihood` reads context and continuation in one teacher-forced pass inside the interventions. The context is the
   prompt, as in `generate`; what follows it is followed step by step.
3. Answers go to the harness's cache (`--use_cache`) as soon as their batch is done. The cache itself knows nothing of settings,
   and leaves sampled answers out. So the settings are written into it, others are refused, and sampled answers are kept in it
   by their number among the answers to an equal prompt.
4. `get_model_info` gives the harness what its results say of the model: the interventions, and their report.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from lm_eval.api.model import TemplateLM, hash_args
from lm_eval.api.registry import register_model
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor
from tqdm import tqdm

from stepsal._version import __version__
from stepsal.errors import FileError, InputError
from stepsal.generation.generate import Decoding, make_requests, stream
from stepsal.harness.arguments import interventions_of, setting_of
from stepsal.interventions.base import Intervention
from stepsal.interventions.intervene import Interventions
from stepsal.models import host_of
from stepsal.models.loading import load_model
from stepsal.models.lookup import model_fingerprint, tokenizer_fingerprint
from stepsal.models.support import check_supported
from stepsal.plugins import load_plugins
from stepsal.traces.prompt import encode_prompt, prompt_text, tokens_within
from stepsal.traces.segment import decode, question_length
from stepsal.traces.trace import Trace

_ARGUMENTS = (
    *("pretrained", "settings", "setting", "format", "steps", "seed", "device", "dtype", "host", "device_map"),
    *(
        "quantization",
        "batch_size",
        "max_gen_toks",
        "think_end_token",
        "enable_thinking",
        "chat_template_args",
        "plugin",
    ),
)
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "top_k": (None, 0, -1),
    "repetition_penalty": (None, 1, 1.0),
    "min_p": (None, 0, 0.0),
    "num_return_sequences": (None, 1),
}
"""Options of decoding that stepsal does not have, with the values at which they do nothing."""

_DEFAULT_DEVICE = "cuda:0"
"""What the harness's command gives where `--device` is left out, whether there is such a device or not."""
_SETTINGS = "stepsal settings"
"""Where the harness's cache keeps what its answers depend on."""


@dataclass(frozen=True)
class _Generation:
    """How the answers to some requests are decoded, and what ends them besides the end of the sequence."""

    decoding: Decoding
    until: tuple[str, ...]
    sampled: bool


@register_model("stepsal")
class StepsalLM(TemplateLM):
    """A model of stepsal with interventions, as lm-evaluation-harness asks it.

    Args:
        pretrained: as in `stepsal.load_model`, or a model that is loaded.
        settings, setting: a TOML file of settings, and which of them to use (`stepsal.harness.arguments`).
        format, steps: how the text is split, as in `stepsal.Trace.from_text`; a pair of markers of your own is joined by `+`.
        seed: of sampled answers. The harness's own `--seed` is for its few-shot examples.
        device, dtype, host, device_map, quantization: as in `stepsal.load_model`; `cuda:0`, which the harness's command gives
            by default, is `auto` where there is no CUDA, or where there is a `device_map`.
        batch_size: sequences at a time at most.
        max_batch_size: not used; the harness gives it with `--batch_size auto`, which stepsal does not have.
        max_gen_toks: where an answer is cut, unless the task says so.
        think_end_token: the text, or the token's number, after which the answer begins: the harness grades what follows it.
        enable_thinking, chat_template_args: what the chat template is given besides the messages.
        plugin: a module, or several joined by `+`, that defines formats, steps or interventions.
        interventions: `oeb=0.15`, `oeb_layers=shallow`, ..., for every intervention that is defined.

    Raises:
        InputError: an argument that nobody knows, or a value that cannot be used.
        FileError: a model or a file of settings that cannot be read.
    """

    def __init__(
        self,
        pretrained: Any = "bundled",
        *,
        settings: str | None = None,
        setting: str | None = None,
        format: Any = "auto",
        steps: Any = "auto",
        seed: int = 0,
        device: Any = "auto",
        dtype: Any = "auto",
        host: str = "bridge",
        device_map: Any = None,
        quantization: Any = None,
        batch_size: int | str = 1,
        max_batch_size: Any = None,
        max_gen_toks: int = 256,
        think_end_token: str | int | None = None,
        enable_thinking: bool | None = None,
        chat_template_args: Mapping[str, Any] | None = None,
        plugin: str | Sequence[str] = (),
        **interventions: Any,
    ) -> None:
        super().__init__()
        load_plugins(plugin.split("+") if isinstance(plugin, str) else plugin)
        chosen = interventions_of(interventions, known=_ARGUMENTS)
        if (settings is None) != (setting is None) or (settings is not None and chosen):
            raise InputError(
                f"settings={settings!r} and setting={setting!r} go together, without interventions beside them: a TOML file, "
                "and the name of one of its tables"
            )
        if settings is not None:
            chosen = setting_of(settings, setting)
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise InputError(f"batch_size={batch_size!r} must be a whole number, at least 1: stepsal has no 'auto'")
        self.model = pretrained
        if device == _DEFAULT_DEVICE and (device_map is not None or not torch.cuda.is_available()):
            device = "auto"
        if pretrained is None or isinstance(pretrained, str):
            where = {"device": device, "dtype": dtype, "host": host, "device_map": device_map}
            self.model = load_model(pretrained, **where, quantization=quantization)
        check_supported(self.model)
        self.host = host_of(self.model)
        self.tokenizer = self.model.tokenizer
        self.batch_size, self.max_gen_toks = int(batch_size), max_gen_toks
        self.think_end_token = think_end_token
        self.chat_template_args = dict(chat_template_args or {})
        if enable_thinking is not None:
            self.chat_template_args["enable_thinking"] = enable_thinking
        self.seed = seed
        self.format: Any = tuple(format.split("+")) if isinstance(format, str) and "+" in format else format
        self.steps = steps
        self.interventions: tuple[Intervention, ...] = chosen
        self._live = Interventions(self.model, chosen, self.format, self.steps) if chosen else None
        self._made = Counter[str]()

    # --- what the harness asks of every model ------------------------------------------------------------------------
    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def max_length(self) -> int:
        return self.host.shape.context

    @property
    def tokenizer_name(self) -> str:
        return str(self.host.describe()["model"]).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **others: Any) -> list[int]:
        """Token ids, as `stepsal.generate` makes them of a prompt: never two BOS tokens, never an EOS."""
        if add_special_tokens is False or not string:
            return list(self.tokenizer.encode(string, add_special_tokens=False))
        return encode_prompt(self.tokenizer, string)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        request: dict[str, Any] = {"messages": chat_history, "chat_template_kwargs": self.chat_template_args}
        if not add_generation_prompt:
            request["continue_final_message"] = True
        return prompt_text(self.tokenizer, request)

    def get_model_info(self) -> dict[str, Any]:
        """What the harness's results say of the model: `stepsal` has all that answers depend on, and the report so far."""
        report = None
        if self._live is not None:
            self._live.warn_idle()
            table = self._live.report()
            report = {name: [None if value != value else value for value in table[name].tolist()] for name in table}
        done = {name: self._made[name] for name in ("generated", "scored")}
        return {"stepsal": {**self._settings(), "stepsal": __version__, "computed": done, "report": report}}

    def _settings(self) -> dict[str, Any]:
        """What answers depend on besides the request, as plain data."""
        settings = {
            "model": self.host.describe(),
            "interventions": [each.record for each in self.interventions],
            "segmentation": {"format": self.format, "steps": self.steps},
            "seed": self.seed,
            "max_gen_toks": self.max_gen_toks,
            "think_end_token": self.think_end_token,
        }
        plain: dict[str, Any] = json.loads(json.dumps(settings))
        return plain

    # --- the cache ---------------------------------------------------------------------------------------------------
    def set_cache_hook(self, cache_hook: Any) -> None:
        """Take the harness's cache. Raises `FileError` where it was made under other settings, or by another model."""
        super().set_cache_hook(cache_hook)
        kept = cache_hook.dbdict
        if kept is None:
            return
        settings = self._settings() | {
            "model_sha256": model_fingerprint(self.model),
            "tokenizer_sha256": tokenizer_fingerprint(self.tokenizer),
        }
        before = kept.get(_SETTINGS)
        if before is None and not len(kept):
            kept[_SETTINGS] = settings
            kept.commit()
        elif before != settings:
            changed = [name for name in settings if before is None or before.get(name) != settings[name]]
            raise FileError(
                f"the cache {kept.filename} holds answers of another run ({', '.join(changed)} differ): the harness would give "
                "them out as answers of this one. Give another --use_cache for each setting."
            )

    # --- answers -----------------------------------------------------------------------------------------------------
    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """The answers, cut at the stop texts. An answer that is equal under `stepsal generate` is equal here."""
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(index)
        generations = {key: self._read(requests[own[0]].args[1]) for key, own in groups.items()}
        answers: dict[int, str] = {}
        with tqdm(total=len(requests), desc="generating", unit="answer", disable=disable_tqdm) as bar:
            for key, own in groups.items():
                for place, text in self._group([requests[index] for index in own], generations[key]):
                    answers[own[place]] = text
                    bar.update()
        return [answers[index] for index in range(len(requests))]

    def _read(self, given: Mapping[str, Any]) -> _Generation:
        """The harness's options of a generation. Raises `InputError` for those that stepsal cannot follow."""
        options: dict[str, Any] = dict(normalize_gen_kwargs(dict(given), self.max_gen_toks))
        until = tuple(handle_stop_sequences(options.pop("until"), eos=None))
        sampled, temperature = bool(options.pop("do_sample")), float(options.pop("temperature", 0.0))
        room, top_p = options.pop("max_gen_toks"), float(options.pop("top_p", 1.0))
        for name, value in options.items():
            if value not in _NEUTRAL.get(name, ()):
                raise InputError(
                    f"generation_kwargs of the task have {name}={value!r}, which stepsal does not have: change it with "
                    f"--gen_kwargs, or in the task's file. It knows until, max_gen_toks, do_sample, temperature and top_p."
                )
        if sampled and temperature == 0:
            raise InputError("do_sample=True without a temperature: add one to --gen_kwargs, such as temperature=0.6")
        if sampled and given.get("do_sample") is not True:
            # The harness's cache would give one answer to all repeats of the request.
            raise InputError(
                f"temperature={temperature} without do_sample: add do_sample=true to --gen_kwargs, or set the temperature to 0"
            )
        decoding = Decoding(
            room, self.batch_size, temperature if sampled else 0.0, top_p if sampled else 1.0, seed=self.seed
        )
        return _Generation(decoding, until, sampled)

    def _group(self, requests: Sequence[Any], generation: _Generation) -> Iterator[tuple[int, str]]:
        """The answers to requests that are decoded alike, each with its place among them."""
        encoded = [encode_prompt(self.tokenizer, request.args[0]) for request in requests]
        kept, asked = self.cache_hook.dbdict, Counter[tuple[int, ...]]()
        keys, known = [], {}
        for place, (request, prompt) in enumerate(zip(requests, encoded, strict=True)):
            keys.append(hash_args("stepsal sampled", [*request.args, asked[tuple(prompt)]]))
            asked[tuple(prompt)] += 1
            if generation.sampled and kept is not None and keys[-1] in kept:
                known[place] = kept[keys[-1]]
        yield from known.items()
        left = [each for each in make_requests(encoded, 1) if each.index not in known]
        options = {} if self._live is not None else {"format": self.format, "steps": self.steps}
        with self._acting():
            for batch in stream(self.model, left, generation.decoding, self._live or (), **options):
                for place, trace in batch.items():
                    text = self._answer(trace, generation)
                    if not generation.sampled:
                        self.cache_hook.add_partial("generate_until", requests[place].args, text)
                    elif kept is not None:
                        kept[keys[place]] = text
                    self._made["generated"] += 1
                    yield place, text

    def _acting(self) -> AbstractContextManager[Any]:
        """The interventions act inside. Their counts go on from one call to the next."""
        return nullcontext() if self._live is None else self.host.hooks(self._live.hooks())

    def _answer(self, trace: Trace, generation: _Generation) -> str:
        """The text of the response as the harness grades it: no special tokens, no thinking, cut at stop texts."""
        tokens = trace.tokens.tolist()[int(trace.prompt_tokens or 0) :]
        if tokens[-1] in self.host.stop_tokens():
            tokens = tokens[:-1]
        end = self.think_end_token
        if isinstance(end, int) and end in tokens:
            tokens = tokens[len(tokens) - tokens[::-1].index(end) :]
        text = str(self.tokenizer.decode(tokens, skip_special_tokens=True))
        if isinstance(end, str) and end not in text and (at := decode(self.tokenizer, tokens).rfind(end)) >= 0:
            # Special tokens are a part of the marker, as in Harmony's.
            tokens = tokens[tokens_within(self.tokenizer, tokens, at + len(end)) :]
            text = str(self.tokenizer.decode(tokens, skip_special_tokens=True)).lstrip()
        if isinstance(end, int):
            text = text.lstrip()
        return str(postprocess_generated_text(text, list(generation.until), end if isinstance(end, str) else None))

    # --- log-likelihoods ---------------------------------------------------------------------------------------------
    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = False, **others: Any
    ) -> list[tuple[float, bool]]:
        """For each continuation the sum of the log-probabilities of its tokens, and whether each was the most likely one."""
        questions = [question_length(self.tokenizer, context, self.format) for _, context, _ in requests]
        pairs = [(context, continuation) for _, context, continuation in requests]
        scores: dict[int, tuple[float, bool]] = {}
        for index, score in self._scores(pairs, questions, disable_tqdm):
            scores[index] = score
            if requests[index][0] is not None:
                self.cache_hook.add_partial("loglikelihood", requests[index][0], score)
        return [scores[index] for index in range(len(requests))]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """For each text the sum of the log-probabilities of all its tokens.

        Longer texts are read in windows, each of which is a text of its own for the interventions. A text's question ends with
        the first opening marker.
        """
        pairs, owners = [], []
        for index, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0], add_special_tokens=False)
            windows = get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, context_len=1)
            for context, continuation in map(make_disjoint_window, windows):
                pairs.append((context, continuation))
                owners.append(index)
        totals = [0.0] * len(requests)
        for place, (score, _) in self._scores(pairs, None, disable_tqdm):
            totals[owners[place]] += score
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _scores(
        self, pairs: Sequence[tuple[list[int], list[int]]], questions: list[int] | None, quiet: bool
    ) -> Iterator[tuple[int, tuple[float, bool]]]:
        """The scores of continuations of contexts, in batches of pairs of like length."""
        for context, continuation in pairs:
            if not context or not continuation or len(context) + len(continuation) > self.max_length + 1:
                raise InputError(
                    f"a request has {len(context)} tokens of context and {len(continuation)} of continuation: each needs at "
                    f"least one, and the model's context has room for {self.max_length}. Give fewer few-shot examples."
                )
        order = sorted(range(len(pairs)), key=lambda index: sum(map(len, pairs[index])))
        with self._acting(), torch.no_grad(), self.host.frozen():
            for start in tqdm(range(0, len(order), self.batch_size), desc="scoring", unit="batch", disable=quiet):
                own = order[start : start + self.batch_size]
                if self._live is not None:
                    self._live.question_tokens = None if questions is None else [questions[index] for index in own]
                log_probabilities = self._read_through([[*pairs[index][0], *pairs[index][1][:-1]] for index in own])
                for row, index in enumerate(own):
                    target = torch.tensor(pairs[index][1], device=log_probabilities.device)
                    seen = log_probabilities[row, -len(target) :]
                    total = seen.gather(1, target[:, None]).sum()
                    self._made["scored"] += 1
                    yield index, (float(total), bool((seen.argmax(-1) == target).all()))

    def _read_through(self, texts: list[list[int]]) -> Float[Tensor, "batch pos vocabulary"]:
        """The log-probabilities of the next token, of texts that are padded on the left."""
        width = max(map(len, texts))
        tokens = torch.full((len(texts), width), self.eot_token_id)
        mask = torch.zeros_like(tokens)
        for row, text in enumerate(texts):
            tokens[row, width - len(text) :] = torch.tensor(text)
            mask[row, width - len(text) :] = 1
        options = {} if mask.all() else {"attention_mask": mask.to(self.host.device)}
        logits = self.model(tokens.to(self.host.device), return_type="logits", **options)
        return torch.log_softmax(logits.float(), -1)
