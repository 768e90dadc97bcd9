"""What a server was asked: the prompt, and the options that decide what the model reads and how its answer is sent.

In: a request, in the shape of any of the servers. Out: a prompt as `stepsal.traces.prompt` takes it.
"""

from collections.abc import Mapping
from typing import Any

from stepsal.checks import shown
from stepsal.errors import InputError
from stepsal.traces.messages import field, names, texts_in
from stepsal.traces.prompt import REQUEST_FIELDS

NATIVE_PROMPTS = frozenset({"input_ids", "text", "inputs"})
"""What SGLang's /generate and others call the prompt; beside an answer, such a field may be anything."""
PROMPT_FIELDS = frozenset((*REQUEST_FIELDS, *names("prompt input instructions system extra_body functions")))
PROMPT_OPTIONS = ("truncate_prompt_tokens", "add_special_tokens")
"""Options without text that change the prompt's tokens."""
OPTIONS = names(
    "model user stop metadata response_format tool_choice stream_options service_tier provider models route transforms plugins "
    "extra_headers headers options keep_alive guided_json guided_regex guided_choice guided_grammar "
    "guided_decoding_backend structured_outputs logit_bias sampling_params parameters verbosity truncation include cache_salt "
    "request_id rid safety_identifier prompt_cache_key prompt_cache_retention modalities prediction cache_control "
    "stop_sequences chat_template_content_format structural_tag regex ebnf json_schema grammar betas text_format"
)
"""Options with text that change how the answer is drawn, and neither the prompt nor how the answer is sent."""
_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
    "model": "assistant", "bing": "assistant", "bard": "assistant", "system": "system", "tool": "tool",
    "observation": "tool", "function_response": "tool",
}  # fmt: skip


def whole_request(request: Mapping[str, Any]) -> dict[str, Any]:
    """The request with its body, and what clients keep in `extra_body`, on one level."""
    body = request.get("body")
    found = dict(body) if isinstance(body, dict) else dict(request)
    extra = field(found, "extra_body", dict) or {}
    found.pop("extra_body", None)
    return found | extra


def prompt_of(request: Mapping[str, Any], *, as_chat: bool = False) -> tuple[Any, Any]:
    """The prompt of a request, or its token ids. `as_chat`: a text in it is what a user says.

    >>> prompt_of({"input": "2+2?", "instructions": "Be brief."})[0]["messages"]
    [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': '2+2?'}]
    """
    given = {
        name: request[name]
        for name in ("input_ids", "messages", "input", "prompt", "text", "inputs")
        if request.get(name)
    }
    if isinstance(given.get("text"), dict):  # the Responses API's form of the answer
        del given["text"]
    (name, value), *others = given.items() or {"": None}.items()
    for other, text in others:
        if not all(any(inner in known for known in texts_in(value)) for inner in texts_in(text)):
            raise InputError(f"{name!r} and {other!r} are two prompts: leave the one out that the model did not see")
    if name == "input_ids":
        return None, value
    if name == "messages" or (isinstance(value, list) and isinstance(value[0], dict) and name == "prompt"):
        return _chat(request, value), None
    if name == "prompt" and isinstance(value, dict):
        return prompt_of({**request, **whole_request(value), "prompt": value.get("prompt")})
    if name == "input":
        return _chat(request, _input_messages(value)), None
    if isinstance(value, list):  # the completions API's
        ids = all(isinstance(each, int) for each in value)
        if not ids and len(value) > 1:
            raise InputError(f"a request of several prompts: give each prompt its own line, found {shown(value)}")
        return (None, value) if ids else (value[0], None)
    if value is not None and not isinstance(value, str):
        raise InputError(f"{name!r} must be a string or a list or an object, found {shown(value)}")
    if as_chat and value and not request.get("raw"):
        return _chat(request, [{"role": "user", "content": value}]), None
    if value and (
        lost := next((each for each in ("system", "instructions", "tools", "functions") if request.get(each)), "")
    ):
        raise InputError(
            f"{name!r} is a text, and {lost!r} beside it would be lost: give the prompt as messages, or as the whole text that "
            "the model saw"
        )
    return value, None


def _chat(request: Mapping[str, Any], messages: Any) -> dict[str, Any]:
    """The fields of a chat request that decide the prompt, under the names that `stepsal.traces.prompt` knows."""
    found = {name: request[name] for name in REQUEST_FIELDS if request.get(name) is not None}
    instructions = [_plain(request.get(name), name) for name in ("system", "instructions")]
    lead = [{"role": "system", "content": text} for text in instructions if text]
    found["messages"] = [*lead, *messages] if lead and isinstance(messages, list) else messages
    last = messages[-1] if isinstance(messages, list) and messages else None
    if isinstance(last, dict) and last.get("role") == "assistant" and last.get("prefix") is True:
        found.setdefault("continue_final_message", True)
    if functions := field(request, "functions", list):
        found["tools"] = [*(field(found, "tools", list) or []), *functions]
    if found.get("tools") is not None:
        if not isinstance(found["tools"], list):
            raise InputError(f"'tools' must be a list, found {shown(found['tools'])}")
        found["tools"] = [_tool(tool) for tool in found["tools"]]
    switches = _thinking_switches(request)
    if effort := switches.pop("reasoning_effort", None):
        found.setdefault("reasoning_effort", effort)
    if switches:
        found["chat_template_kwargs"] = switches | (field(found, "chat_template_kwargs", dict) or {})
    return found


def _thinking_switches(request: Mapping[str, Any]) -> dict[str, Any]:
    """What the request says about thinking, as templates take it."""
    found: dict[str, Any] = {}
    for name in ("think", "enable_thinking", "thinking", "reasoning"):
        value = request.get(name)
        if isinstance(value, bool):
            found["enable_thinking"] = value
        elif isinstance(value, str) and name == "think":
            found["reasoning_effort"] = value
        elif isinstance(value, dict):
            if isinstance(value.get("effort"), str):
                found["reasoning_effort"] = value["effort"]
            if value.get("type") in ("enabled", "disabled") or isinstance(value.get("enabled"), bool):
                found["enable_thinking"] = value.get("type") == "enabled" or value.get("enabled") is True
    return found


def left_out_thinking(request: Mapping[str, Any]) -> str:
    """The option by which the server was asked to leave the thinking out of its answer; "" for none."""
    if request.get("include_reasoning") is False:
        return "include_reasoning"
    reasoning = request.get("reasoning")
    return "reasoning.exclude" if isinstance(reasoning, dict) and reasoning.get("exclude") is True else ""


def _tool(tool: Any) -> Any:
    """A tool as templates take it: OpenAI's older functions, the Responses API's and Anthropic's are flat."""
    if not isinstance(tool, dict) or "function" in tool or not isinstance(tool.get("name"), str):
        return tool
    function = {name: tool[name] for name in ("name", "description", "parameters", "strict") if name in tool}
    if "input_schema" in tool:
        function["parameters"] = tool["input_schema"]
    return {"type": "function", "function": function}


def _input_messages(given: Any) -> Any:
    """The messages of the Responses API's `input`."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if not isinstance(given, list):
        raise InputError(f"'input' must be a string or a list, found {shown(given)}")
    return [_input_message(item) for item in given]


def _input_message(item: Any) -> dict[str, Any]:
    kind = item.get("type", "message") if isinstance(item, dict) else None
    if kind == "function_call_output":
        return {"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")}
    if kind == "function_call":
        call = {"id": item.get("call_id"), "type": "function"}
        function = {name: item.get(name) for name in ("name", "arguments")}
        return {"role": "assistant", "content": None, "tool_calls": [call | {"function": function}]}
    if kind == "message" and isinstance(item.get("role"), str):
        role = "system" if item["role"] == "developer" else item["role"]
        return {"role": role, "content": _plain(item.get("content"), "input")}
    raise InputError(
        f"of the items of 'input', messages and calls of functions can be read, found {shown(item)}: give the prompt as "
        "'messages', or as the text or the token ids that the model saw"
    )


def _plain(given: Any, name: str) -> str:
    """A text, which may be a list of parts of text."""
    if given is None or isinstance(given, str):
        return given or ""
    texts = [part.get("text") for part in given if isinstance(part, dict)] if isinstance(given, list) else []
    said = [text for text in texts if isinstance(text, str)]
    if not isinstance(given, list) or len(said) < len(given):
        raise InputError(f"{name!r} must be a text or parts of text, found {shown(given)}")
    return "".join(said)


def chat_messages(turns: list[Any]) -> list[Any]:
    """ShareGPT's turns (`from`, `value`) as messages; what is no turn stays as it is, and is refused with the messages.

    >>> chat_messages([{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}])
    [{'role': 'user', 'content': '2+2?'}, {'role': 'assistant', 'content': '4'}]
    """
    messages = []
    for turn in turns:
        if not isinstance(turn, dict) or "value" not in turn or "from" not in turn:
            messages.append(turn)
            continue
        role = _ROLES.get(turn["from"]) if isinstance(turn["from"], str) else None
        if role is None:
            raise InputError(f"'from' must be one of {', '.join(map(repr, _ROLES))}, found {shown(turn['from'])}")
        rest = {name: value for name, value in turn.items() if name not in ("from", "value")}
        messages.append({"role": role, "content": turn["value"], **rest})
    return messages
