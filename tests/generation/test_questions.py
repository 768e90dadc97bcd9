"""Problems in files: texts, chats, and what a chat template makes of them."""

import json

import pytest

from stepsal import InputError, read_traces
from stepsal.cli import main
from stepsal.generation.questions import Question, as_chat, read_questions
from stepsal.traces.prompt import prompt_text

CHAT = [{"role": "user", "content": "k = 3. What is k?"}]


@pytest.fixture
def problems(tmp_path):
    def write(*rows):
        path = tmp_path / "problems.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


def test_messages_are_a_request_and_go_through_the_template(problems, reasoner):
    rows = [{"prompt": CHAT}, {"messages": CHAT, "tools": []}, {"prompt": CHAT[0]["content"]}]
    listed, request, text = read_questions(problems(*rows), graded=False)
    assert request.prompt == {"messages": CHAT, "tools": []}
    texts = {prompt_text(reasoner.tokenizer, question.prompt) for question in (listed, request, as_chat(text))}
    assert len(texts) == 1
    assert as_chat(listed) is listed


def test_what_stands_beside_the_messages_of_a_problem_is_in_the_prompt_and_beside_a_text_is_refused(problems, reasoner):
    system = {"role": "system", "content": "Be brief."}
    beside, within = read_questions(
        problems({"messages": CHAT, "system": "Be brief."}, {"messages": [system, *CHAT]}), graded=False
    )
    assert beside.prompt == within.prompt
    (listed,) = read_questions(problems({"prompt": CHAT, "instructions": "Be brief."}), graded=False)
    assert listed.prompt == within.prompt
    with pytest.raises(InputError, match="line 1: 'system' beside a 'prompt' that is a text would be lost"):
        read_questions(problems({"prompt": "2+2?", "system": "Be brief."}), graded=False)


@pytest.mark.parametrize(
    "row", [{"messages": CHAT, "prompt": "2+2?"}, {"messages": []}, {"messages": "2+2?"}, {"prompt": 5}]
)
def test_a_problem_without_one_prompt_is_refused(problems, row):
    with pytest.raises(InputError, match="line 1 needs a 'prompt', a text or a list of chat messages, or 'messages'"):
        read_questions(problems(row), graded=False)


def test_half_a_surrogate_pair_is_refused_where_a_problem_is_made():
    with pytest.raises(InputError, match="the id of the problem .* has half a surrogate pair"):
        Question("\ud83d", "2+2?", "4")
    with pytest.raises(InputError, match="the answer of the problem 'a' has half a surrogate pair"):
        Question("a", "2+2?", "\udfff")


def test_the_command_says_that_a_text_goes_past_the_template_and_applies_it_when_asked(
    problems, tmp_path, capsys, reasoner
):
    path = problems({"id": "a", "prompt": CHAT[0]["content"]})
    short = ["--max-new-tokens", "2"]
    assert main(["generate", str(path), "--out", str(tmp_path / "text.jsonl"), *short]) == 0
    assert "though it has a chat template: give --chat" in capsys.readouterr().err
    assert main(["generate", str(path), "--chat", "--out", str(tmp_path / "chat.jsonl"), *short]) == 0
    assert "chat template" not in capsys.readouterr().err
    (text,), (chat,) = (read_traces(tmp_path / f"{name}.jsonl", reasoner.tokenizer) for name in ("text", "chat"))
    assert text.prompt == CHAT[0]["content"]
    assert chat.prompt == prompt_text(reasoner.tokenizer, CHAT)
