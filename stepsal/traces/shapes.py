"""One JSON object, as servers, chats and harnesses log them, to the answers in it.

In: an object of a JSONL file. Out: for each answer a record of one shape, which `stepsal.traces.records` makes a trace of: the
fields of the model's message or its `response`, the `prompt`, token ids, and what the file says about it.

1. What is an answer: the object itself; or what a server sent, alone, beside its `request`, or as a line of a batch's results.
2. `_SERVERS` says how each server's answer is known, and turns it into `choices` as OpenAI's completions have them.
3. A field with text that nothing reads is refused by its name.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from stepsal.checks import shown
from stepsal.errors import InputError
from stepsal.traces.messages import (
    ABOUT_MESSAGES,
    MESSAGE_FIELDS,
    field,
    names,
    read_message,
    refuse_unread,
    texts_in,
)
from stepsal.traces.requests import (
    NATIVE_PROMPTS,
    OPTIONS,
    PROMPT_FIELDS,
    PROMPT_OPTIONS,
    chat_messages,
    left_out_thinking,
    prompt_of,
    whole_request,
)

_IDS = ("tokens", "token_ids")
_ANSWERS = ("response", *_IDS, *MESSAGE_FIELDS)
_OURS = names("id prompt messages answer correct meta segmentation prompt_token_ids request custom_id error")
_TRANSPORT = names("body method url status_code batch_id conversations conversation created created_at")
_ABOUT = ABOUT_MESSAGES | names(
    "choices system_fingerprint done_reason remote_model remote_host completed_at incomplete_details provider timings stats "
    "generation_settings stop_type stopping_word meta_info kv_transfer_params prompt_filter_results content_filter_results "
    "search_results __verbose"
)
"""Fields beside an answer that say how it came about, or that its shape is read from."""
_DATA = sorted(
    names(
        "dataset source split subset category subject level difficulty domain topic language task task_name tags problem "
        "question solution target gold ground_truth reference expected seed_id timestamp run model finish_reason"
    )
)
"""Fields about the problem or the run, which are kept in `meta`."""
_BESIDE = "object that the request is in"
_READ = frozenset({*_IDS, *_OURS, *_TRANSPORT, *_ABOUT, *_DATA, *PROMPT_FIELDS, *OPTIONS})
# Fields that are read where their values are of these kinds.
_BY_KIND = {
    "output": list,
    "message": dict,
    "response": dict,
    "reasoning": dict,
    "thinking": dict,
    "text": dict,
    "format": dict,
}
_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_REASONING_OPTIONS = names(
    "effort max_tokens exclude enabled summary generate_summary type budget_tokens display include_thoughts"
)

Choices = list[Any]


def answers(record: dict[str, Any], id: str, requests: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The answers in an object, each as `trace_of` takes it. `requests` are those of other lines, by their `custom_id`.

    >>> choices = [{"message": {"content": "4"}}, {"message": {"content": "5"}}]
    >>> [each["id"] for each in answers({"prompt": "2+2?", "choices": choices}, "line-1", {})]
    ['line-1-0', 'line-1-1']
    """
    if isinstance(record.get("segmentation"), dict):  # it was a trace before
        return [record | {"id": id if record.get("id") in (None, "") else record["id"], "about": {"answer": record}}]
    if "resps" in record and "arguments" in record:
        return _harness_answers(record, id)
    record = _with_turns(record)
    answer = record["response"] if isinstance(record.get("response"), dict) else record
    if answer is not record and isinstance(answer.get("body"), dict):
        answer = answer["body"]
    called = (record.get("custom_id"), record.get("id"), answer.get("id"))
    id = next(
        (str(name) for name in called if name != "" and isinstance(name, str | int) and not isinstance(name, bool)), id
    )
    server = next((each for each in _SERVERS if each[0](answer, answer is record)), None)
    if server is None and answer is record:
        return _own_answer(record, id, requests)
    choices = server[1](answer) if server else answer.get("choices")
    if not isinstance(choices, list) or not choices:
        raise InputError(f"there are no 'choices' in the server's response, found {shown(answer)}")
    given = next((each for each in (record.get("request"), requests.get(id)) if isinstance(each, dict)), record)
    request = whole_request(given)
    if given is record:
        request = {name: value for name, value in request.items() if name not in NATIVE_PROMPTS}
    as_chat = server is not None and server[2] and (answer is not record or _BY_OLLAMA(answer))
    several = len(choices) > 1
    if several and any(isinstance(place.get("correct"), bool) for place in (record, answer)):
        raise InputError(f"one grade, 'correct', for {len(choices)} answers: put the grade of each into its choice")
    return [
        _choice(choice, answer, request, record, as_chat=as_chat, apart=given is not record)
        | {"id": f"{id}-{number}" if several else id}
        for number, choice in zip(_numbers(choices), choices, strict=True)
    ]


def _numbers(choices: Choices) -> list[int]:
    """What the choices are called by: the `index` of each, or their places where those are no distinct whole numbers."""
    given = [choice.get("index") if isinstance(choice, dict) else None for choice in choices]
    numbers = [each for each in given if isinstance(each, int) and not isinstance(each, bool) and each >= 0]
    return numbers if len(set(numbers)) == len(choices) else list(range(len(choices)))


def is_request(record: dict[str, Any]) -> bool:
    """Whether the object is a line of a batch's requests; its response is a line with the same `custom_id`."""
    return (
        isinstance(record.get("body"), dict) and isinstance(record.get("custom_id"), str) and "response" not in record
    )


# --- the servers -----------------------------------------------------------------------------------------------------
def _of_items(answer: dict[str, Any]) -> Choices:
    """OpenAI's Responses API: the items of `output` as the parts of one message."""
    parts: list[Any] = []
    for item in answer["output"]:
        kind = item.get("type") if isinstance(item, dict) else None
        if kind == "message":
            inner = field(item, "content", list, str) or []
            parts.extend([{"type": "text", "text": inner}] if isinstance(inner, str) else inner)
        elif kind == "reasoning":
            inner = field(item, "content", list) or field(item, "summary", list) or []
            parts.extend(inner)
            if not inner and item.get("encrypted_content"):
                parts.append({"type": "redacted_thinking", "data": item["encrypted_content"]})
        elif kind == "function_call":
            call = {"name": item.get("name"), "input": _arguments(item)}
            parts.append({"type": "tool_use", "id": item.get("call_id"), **call})
        else:
            raise InputError(
                f"of the items of 'output', reasoning, messages and calls of functions can be read, found {shown(item)}"
            )
    return [{"message": {"content": parts or None}, "finish_reason": answer.get("status")}]


def _arguments(item: dict[str, Any]) -> dict[str, Any]:
    arguments = item.get("arguments")
    try:
        found = json.loads(arguments) if isinstance(arguments, str) else arguments
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InputError(f"the arguments of a call must be a JSON object, found {shown(arguments)}")
    return found


def _of_message(answer: dict[str, Any]) -> Choices:
    """Ollama's /api/chat: one message."""
    reason = answer.get("done_reason") or answer.get("finish_reason")
    return [{"message": answer["message"], "finish_reason": reason}]


def _of_ollama(answer: dict[str, Any]) -> Choices:
    """Ollama's /api/generate: `response` is the answer without the thinking."""
    message = {"content": answer["response"], "thinking": answer.get("thinking")}
    return [{"message": message, "finish_reason": answer.get("done_reason")}]


def _of_llama_cpp(answer: dict[str, Any]) -> Choices:
    """llama.cpp's /completion: `content` is the raw text, `tokens` are the response's."""
    choice = {"text": answer["content"], "finish_reason": answer.get("stop_type")}
    return [choice | ({"token_ids": answer["tokens"]} if answer.get("tokens") else {})]


def _of_sglang(answer: dict[str, Any]) -> Choices:
    """SGLang's /generate."""
    about = answer["meta_info"] if isinstance(answer["meta_info"], dict) else {}
    reason = about.get("finish_reason")
    choice = {"text": answer["text"], "finish_reason": reason.get("type") if isinstance(reason, dict) else reason}
    return [choice | ({"token_ids": answer["output_ids"]} if answer.get("output_ids") else {})]


def _of_fields(answer: dict[str, Any]) -> Choices:
    """A message's fields on the response itself: Anthropic's messages, and loggers that keep the message alone."""
    return [{"message": answer, "finish_reason": answer.get("stop_reason")}]


def _has(*names: str) -> Callable[[dict[str, Any]], bool]:
    return lambda answer: any(name in answer for name in names)


_BY_OLLAMA = _has("done", "done_reason", "eval_count", "total_duration")
_BY_LLAMA_CPP = _has("generation_settings", "tokens_predicted", "stop_type", "stopped_eos")
# How an answer is known (its object, and whether its request is in it too), its choices, and whether a text as the prompt is
# what a user said: that server puts it into the model's template.
_SERVERS: tuple[tuple[Callable[[dict[str, Any], bool], bool], Callable[[dict[str, Any]], Any], bool], ...] = (
    (lambda answer, _: answer.get("choices") is not None, lambda answer: answer["choices"], False),
    (lambda answer, _: isinstance(answer.get("output"), list), _of_items, False),
    (lambda answer, _: isinstance(answer.get("message"), dict), _of_message, False),
    (
        lambda answer, flat: (
            isinstance(answer.get("response"), str)
            and (
                not flat
                or _BY_OLLAMA(answer)
                or (isinstance(answer.get("thinking"), str) and bool(answer["thinking"].strip()))
            )
        ),
        _of_ollama,
        True,
    ),
    (lambda answer, _: isinstance(answer.get("content"), str) and _BY_LLAMA_CPP(answer), _of_llama_cpp, False),
    (lambda answer, flat: not flat and "text" in answer and "meta_info" in answer, _of_sglang, False),
    (lambda answer, flat: not flat and any(name in answer for name in MESSAGE_FIELDS), _of_fields, False),
)


# --- answers ---------------------------------------------------------------------------------------------------------
def _choice(
    choice: Any, answer: dict[str, Any], request: dict[str, Any], record: dict[str, Any], *, as_chat: bool, apart: bool
) -> dict[str, Any]:
    """One of the choices of a server's response, with the prompt that it answers. `apart`: the request is another object."""
    if not isinstance(choice, dict) or not isinstance(choice.get("message", choice.get("text")), dict | str):
        raise InputError(
            f"a choice needs a 'message' or a 'text', found {shown(choice)}: the pieces of a stream are not put together"
        )
    is_message = isinstance(choice.get("message"), dict)
    found: dict[str, Any] = {}
    if is_message:
        message = choice["message"]
        found = {name: message[name] for name in ("response", *MESSAGE_FIELDS) if name in message}
    elif not any(choice.get(name) for name in MESSAGE_FIELDS):
        found = {"response": choice.get("text")}
    else:  # OpenRouter's completions have the thinking beside the text
        found = {"content": choice.get("text")} | {name: choice[name] for name in MESSAGE_FIELDS if name in choice}
    found["about"] = {"message": choice["message"]} if is_message else {}
    found["about"] |= {
        "choice": choice,
        "server's response": answer,
        "request": request,
        _BESIDE if apart else "object": record,
    }
    if answer is choice.get("message"):
        del found["about"]["choice"], found["about"]["message"]
        found["about"] = {"answer": answer} | found["about"]
    found |= {"answer": record["answer"]} if "answer" in record else {}
    found |= next(({"correct": place["correct"]} for place in (choice, answer, record) if "correct" in place), {})
    notes = {"model": answer.get("model"), "finish_reason": choice.get("finish_reason")}
    found["meta"] = _meta(record, answer is record) | {k: v for k, v in notes.items() if v is not None}
    found |= _asked(request, answer, as_chat)
    places = {"prompt_token_ids": (choice, answer), "token_ids": (choice,)}
    found |= {name: place[name] for name, all_of in places.items() for place in all_of if place.get(name)}
    places = {"context": (request,) if apart else (), "conversation": (request, answer)}
    places["previous_response_id"] = (request, answer)
    before = next((name for name, all_of in places.items() if any(place.get(name) for place in all_of)), "")
    if before and not found.get("prompt_token_ids"):
        raise InputError(
            f"the request has the {before!r} of an earlier answer, which the model read before the prompt: give the whole "
            "conversation as 'messages', or the ids that the model saw as 'prompt_token_ids'"
        )
    return found


def _asked(request: dict[str, Any], answer: dict[str, Any], as_chat: bool) -> dict[str, Any]:
    """The prompt of a request, and what it asked of the answer's form."""
    prompt, ids = prompt_of(request, as_chat=as_chat)
    if prompt is None and ids is None and isinstance(answer.get("prompt"), str):
        prompt = answer["prompt"]
    found: dict[str, Any] = {"prompt": _dated(prompt, answer, request), "prompt_token_ids": ids}
    found["echo"] = bool(field(request, "echo", bool))
    found["left_out"] = left_out_thinking(request)
    found |= {name: request[name] for name in PROMPT_OPTIONS if name in request}
    if answer.get("type") == "message" and isinstance(found["prompt"], dict) and _ends_with_answer(found["prompt"]):
        found["prompt"] = {"continue_final_message": True} | found["prompt"]  # Anthropic's: the model goes on with it
    return found


def _ends_with_answer(prompt: dict[str, Any]) -> bool:
    messages = prompt.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    return isinstance(last, dict) and last.get("role") == "assistant"


def _dated(prompt: Any, *places: dict[str, Any]) -> Any:
    """The prompt of a chat with the time at which the server answered, which templates may write into it."""
    times = (place.get(name) for place in places for name in ("created", "created_at"))
    created = next((time for time in times if time is not None), None)
    if created is None or prompt is None or isinstance(prompt, str):
        return prompt
    return {**(prompt if isinstance(prompt, dict) else {"messages": prompt}), "created": created}


def _meta(record: dict[str, Any], own: bool) -> dict[str, Any]:
    """What the file says about the answer: its `meta`, and the fields about the problem."""
    given = field(record, "meta", dict) or {}
    kept = [name for name in _DATA if own or name not in ("model", "finish_reason")]
    return {name: record[name] for name in kept if record.get(name) is not None} | given


def _own_answer(record: dict[str, Any], id: str, requests: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The answer of an object that has the answer's fields itself, or messages that end with the assistant's."""
    if record.get("error") and not any(record.get(name) for name in _ANSWERS):
        raise InputError(f"the server answered with an error: {shown(record['error'])}")
    if is_request(record):
        if record["custom_id"] in requests:
            return []
        raise InputError("this is a request, and no line of these files is the response to it")
    found = {name: record[name] for name in (*_ANSWERS, "prompt_token_ids", "answer", "correct") if name in record}
    for name in ("reasoning", "thinking"):
        if isinstance(found.get(name), dict) and _is_of_request(name, found[name]):
            del found[name]
    request = {name: value for name, value in whole_request(record).items() if name not in NATIVE_PROMPTS}
    found["about"] = {"answer": record}
    messages = field(record, "messages", list)
    if messages is not None:
        beside = any(found.get(name) is not None for name in ("response", *MESSAGE_FIELDS))
        *prompt, message = messages or [None]
        if not beside and prompt and isinstance(message, dict) and message.get("role") == "assistant":
            found |= {name: message[name] for name in (*_ANSWERS, "prompt_token_ids") if name in message}
            found["about"] |= {"message": message}
            request = request | {"messages": prompt}
        elif not beside and not any(record.get(name) for name in _ANSWERS):
            raise InputError("'messages' must be a prompt's messages, then one with the role 'assistant', the response")
    if isinstance(request.get("prompt"), list) and not all(isinstance(each, dict) for each in request["prompt"]):
        raise InputError(f"the messages of a prompt must be objects, found {shown(request['prompt'])}")
    prompt, ids = prompt_of(request)
    found["prompt"] = _dated(prompt, record, *(each for each in (record.get("prompt"),) if isinstance(each, dict)))
    if ids is not None:
        found.setdefault("prompt_token_ids", ids)
    found["echo"] = bool(field(record, "echo", bool))
    found["left_out"] = left_out_thinking(record)
    found |= {name: request[name] for name in PROMPT_OPTIONS if name in request}
    found["meta"] = _meta(record, own=True)
    return [found | {"id": id if record.get("id") in (None, "") else record["id"]}]


def refuse_unread_texts(record: dict[str, Any]) -> None:
    """Raise `InputError` where what an answer was read from has a text that nothing reads."""
    about = field(record, "about", dict) or {}
    said = read_message(record)
    texts = [text for text in (said.content, said.reasoning, record.get("response")) if isinstance(text, str)]
    texts += texts_in(record.get("prompt"))
    message = {*MESSAGE_FIELDS, "response", *_IDS, "prompt_token_ids"}
    known = {
        "message": message | ABOUT_MESSAGES,
        "choice": message | ABOUT_MESSAGES | {"message", "text", "content_filter_results"},
        "request": _READ | NATIVE_PROMPTS,
        _BESIDE: _READ - PROMPT_FIELDS,
        "answer": _READ | message,
    }
    seen: list[Any] = []
    for where, place in about.items():
        if not any(place is each for each in seen):
            fields = {name: each for name, each in place.items() if not _is_of_request(name, each)}
            refuse_unread(fields, known.get(where, _READ), f"the {where}", texts)
        seen.append(place)


def _is_of_request(name: str, value: Any) -> bool:
    """Whether a field that may hold text is read elsewhere, or only an option, by what stands in it."""
    if name == "think":
        return value in _EFFORTS
    if name in ("reasoning", "thinking") and isinstance(value, dict):
        words = all(len(each.split()) <= 1 for each in value.values() if isinstance(each, str))
        return words and not value.keys() - _REASONING_OPTIONS
    return isinstance(value, _BY_KIND.get(name, ()))


def _with_turns(record: dict[str, Any]) -> dict[str, Any]:
    """The object, with ShareGPT's turns as messages."""
    for name in ("conversations", "conversation", "messages"):
        turns = record.get(name)
        if isinstance(turns, list) and any(isinstance(turn, dict) and "from" in turn for turn in turns):
            rest = {key: value for key, value in record.items() if key != name}
            return rest | {"messages": chat_messages(turns)}
        if name != "messages" and isinstance(turns, list) and "messages" not in record:
            return {key: value for key, value in record.items() if key != name} | {"messages": turns}
    return record


# --- lm-evaluation-harness -------------------------------------------------------------------------------------------
_HARNESS = names(
    "doc_id doc target arguments resps filtered_resps filter metrics doc_hash prompt_hash target_hash id meta task_name"
)

_ACCURACIES = names("acc acc_norm accuracy em exact_match math_verify pass@1 pass_at_1")
"""Metrics of one answer of which 1 says that it is right and 0 that it is wrong."""


def _harness_answers(record: dict[str, Any], id: str) -> list[dict[str, Any]]:
    """The answers in a logged sample of lm-evaluation-harness."""
    responses = record["resps"]
    if isinstance(responses, list) and len(responses) == 1 and isinstance(responses[0], list):
        responses = responses[0]
    if not isinstance(responses, list) or not responses or not all(isinstance(each, str) for each in responses):
        raise InputError(
            f"'resps' must be generated text, found {shown(record['resps'])}: log-likelihoods are no traces"
        )
    metrics = [name for name in field(record, "metrics", list) or [] if isinstance(name, str)]
    scores = {
        name: score
        for name, score in record.items()
        if (name in metrics or _is_accuracy(name)) and isinstance(score, int | float) and abs(score) < float("inf")
    }
    grades = {score for name, score in scores.items() if _is_accuracy(name)}
    refuse_unread(record, {*_HARNESS, *metrics}, "the sample")
    about = ("doc_id", "doc", "filter", "filtered_resps", "task_name")
    found = {
        "prompt": _harness_prompt(record["arguments"]),
        "answer": record.get("target"),
        "meta": (field(record, "meta", dict) or {})
        | {name: record[name] for name in about if record.get(name) is not None},
    }
    if len(grades) == 1 and grades <= {0, 1}:
        (grade,) = grades
        if len(responses) == 1:
            found["correct"] = bool(grade)
        else:  # the harness graded one of the answers, or all of them together
            found["meta"]["grade_of_the_sample"] = grade
    elif scores:
        found["meta"]["metrics_of_the_sample"] = scores
    if record.get("id") != "" and isinstance(record.get("id"), str | int):
        id = str(record["id"])
    elif isinstance(record.get("doc_id"), str | int):
        filtered = record.get("filter") not in (None, "none")
        id = f"{id.rpartition('line-')[0]}doc-{record['doc_id']}" + f"-{record.get('filter')}" * filtered
    several = len(responses) > 1
    return [
        found | {"id": f"{id}-{index}" if several else id, "response": response}
        for index, response in enumerate(responses)
    ]


def _is_accuracy(metric: str) -> bool:
    return metric.partition(",")[0] in _ACCURACIES  # exact_match,strict


def _harness_prompt(arguments: Any) -> Any:
    """The prompt in a sample's arguments: a text, or messages as a JSON text. With a `gen_prefix` the last of them is the
    assistant's, and the model goes on with it."""
    inner = arguments
    if isinstance(inner, dict):
        inner = list(inner.values())
    if isinstance(inner, list) and len(inner) == 1:
        inner = inner[0]
    if isinstance(inner, dict):
        inner = list(inner.values())
    prompt = inner[0] if isinstance(inner, list) and inner else None
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise InputError(f"'arguments' must be one prompt and its options, found {shown(arguments)}")
    try:
        messages = json.loads(prompt) if prompt.lstrip().startswith("[{") else None
    except (ValueError, RecursionError):
        return prompt
    is_chat = isinstance(messages, list) and all(isinstance(each, dict) and "role" in each for each in messages)
    if not (is_chat and messages):
        return prompt
    goes_on = messages[-1]["role"] == "assistant"
    return {"messages": messages, "continue_final_message": True} if goes_on else messages
