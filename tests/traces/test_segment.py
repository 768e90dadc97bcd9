import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import steps_by_rereading
from toy_tokenizers import KINDS, Pieces, byte_fallback, byte_level, characters

import stepsal
from stepsal import Trace, read_traces
from stepsal.errors import InputError
from stepsal.traces.formats import FORMATS, STEP_RULES, Format, paragraph, sentence
from stepsal.traces.segment import Segmenter, TextStream, _decoder, decode, question_length

ALL = {f"{name}-{markers}": make(markers) for name, make in KINDS.items() for markers in (True, False)}
CHARACTERS = characters(markers=False)
BYTES = byte_level()
every_tokenizer = pytest.mark.parametrize("tokenizer", ALL.values(), ids=ALL)
TEXTS = st.lists(
    st.sampled_from(
        ["<think>", "</think>", "<", "/", "think>", "\n", "\n\n", " ", "a", "b.", "A long sentence. ", "3.14"]
    )
    | st.text(max_size=4),
    max_size=25,
).map("".join)


def split(*pieces, **options):
    """Steps as `segment: tokens joined by |`."""
    segmenter = Segmenter(Pieces(*pieces), **options)
    steps = []
    for token, piece in enumerate(pieces):
        segment = segmenter.push(token)
        if segment:
            steps.append(f"{segment[0]}: {piece}")
        else:
            steps[-1] += f"|{piece}"
        assert steps[-1][0] == segmenter.segment[0]
    return steps


def opened(tokenizer, tokens, **options):
    segmenter = Segmenter(tokenizer, **options)
    return [segmenter.push(token) for token in tokens]


# --- text ------------------------------------------------------------------------------------------------------------
@every_tokenizer
@given(TEXTS)
def test_the_streamed_pieces_are_the_decoded_text(tokenizer, text):
    tokens = tokenizer.encode(text, add_special_tokens=False)
    stream = TextStream(tokenizer)
    assert "".join(map(stream.push, tokens)) + stream.held == decode(tokenizer, tokens)


@given(st.lists(st.integers(0, len(BYTES) - 1), max_size=60))
def test_any_byte_level_tokens_stream_to_the_decoded_text(tokens):
    stream = TextStream(BYTES)
    assert "".join(map(stream.push, tokens)) + stream.held == decode(BYTES, tokens)


@pytest.mark.parametrize("make", [byte_level, byte_fallback])
def test_a_character_becomes_final_with_its_last_byte(make):
    tokenizer = make()
    tokens = tokenizer.encode("é🙂🙂数", add_special_tokens=False)[-13:]  # each byte is a token
    stream = TextStream(tokenizer)
    final = [(stream.push(token), stream.held != "") for token in tokens]
    complete = {1: "é", 5: "🙂", 9: "🙂", 12: "数"}
    assert final == [(complete.get(i, ""), i not in complete) for i in range(13)]


@pytest.mark.parametrize("make", [byte_level, byte_fallback])
def test_bytes_that_never_make_a_character_keep_the_decoded_window_short(make):
    tokenizer = make()
    sizes = []

    class Counting(Pieces):
        def decode(self, token_ids, **options):
            sizes.append(len(token_ids))
            return tokenizer.decode(token_ids, **options)

    stream = TextStream(Counting())
    broken = tokenizer.encode("é", add_special_tokens=False)[-2]
    for _ in range(500):
        stream.push(broken)
    assert max(sizes) <= 25
    assert len(sizes) <= 3 * 500


# --- formats ---------------------------------------------------------------------------------------------------------
def test_markers_close_the_segment_before_them():
    assert split("Q", "<think>", "T", "</think>", "S") == ["q: Q|<think>", "t: T|</think>", "s: S"]


@pytest.mark.parametrize("blank", ["\n", "\n\n", " "])
def test_the_token_after_a_marker_opens_a_step_even_if_blank(blank):
    expected = ["q: Q|<think>", f"t: {blank}|T|</think>", f"s: {blank}|S"]
    assert split("Q", "<think>", blank, "T", "</think>", blank, "S") == expected


def test_empty_thinking_is_its_closing_marker():
    assert split("Q", "<think>", "</think>", "S") == ["q: Q|<think>", "t: </think>", "s: S"]
    assert split("Q", "<think></think>", "S") == ["q: Q|<think></think>", "s: S"]


def test_segments_may_be_missing():
    assert split("Q") == ["q: Q"]
    assert split("Q", "<think>") == ["q: Q|<think>"]
    assert split("Q", "<think>", "T") == ["q: Q|<think>", "t: T"]
    assert split("Q", "<think>", "T", "</think>") == ["q: Q|<think>", "t: T|</think>"]


def test_markers_may_span_tokens_and_share_them():
    pieces = ("Q <", "th", "ink", ">\n", "T.\n\n", "</", "think", ">\n\n", "S")
    assert split(*pieces) == ["q: Q <|th|ink|>\n", "t: T.\n\n|</|think|>\n\n", "s: S"]


def test_only_the_first_markers_count():
    assert split("Q", "<think>", "<think>", "T", "</think>", "S", "</think>", "<think>", "U") == [
        "q: Q|<think>",
        "t: <think>|T|</think>",
        "s: S|</think>|<think>|U",
    ]


def test_the_closing_marker_is_that_of_the_pair_that_opened():
    assert split("Q", "[THINK]", "</think>", "[/THINK]", "S") == ["q: Q|[THINK]", "t: </think>|[/THINK]", "s: S"]


def test_harmony_thinks_in_sentences_and_answers_in_paragraphs():
    pieces = (
        *("Q", "<|start|>", "assistant", "<|channel|>", "analysis", "<|message|>"),
        *("We add three and 0.5.", " It is", " simple", ".\n\n", "Yes", "<|end|>", "<|start|>", "assistant"),
        *("<|channel|>", "final", "<|message|>", "It is three point five.", " Yes.", "\n\n", "Bye"),
    )
    expected = [
        "q: Q|<|start|>|assistant|<|channel|>|analysis|<|message|>",
        "t: We add three and 0.5.",
        "t:  It is| simple|.\n\n|Yes|<|end|>|<|start|>|assistant|<|channel|>|final|<|message|>",
        "s: It is three point five.| Yes.|\n\n",
        "s: Bye",
    ]
    assert split(*pieces) == expected
    assert split(*pieces, format="harmony", question_tokens=3) == expected


def test_a_pair_of_markers_of_ones_own():
    assert split("<think>", "<r>", "T", "</think>", "</r>", "S", format=("<r>", "</r>")) == [
        "q: <think>|<r>",
        "t: T|</think>|</r>",
        "s: S",
    ]


def test_a_known_prompt_is_the_question_whatever_it_mentions():
    pieces = ("Use", "<think>", "tags", "</think>", "please", "<think>", "T", "</think>", "S")
    assert split(*pieces, question_tokens=5)[0] == "q: Use|<think>|tags|</think>|please|<think>"
    assert split(*pieces, question_tokens=6) == split(*pieces, question_tokens=5)


@pytest.mark.parametrize("format", ["auto", "think", "plain"])
def test_a_response_without_opening_marker(format):
    segment = "t" if format == "think" else "s"
    assert split("Q", "<t", "able>", "A", format=format, question_tokens=1) == (
        ["q: Q", f"{segment}: <t|able>|A"] if format == "plain" else ["q: Q|<t", f"{segment}: able>|A"]
    )
    assert split("Q", "A", "<think>", "B", format=format, question_tokens=1) == ["q: Q", f"{segment}: A|<think>|B"]


def test_thinking_that_nothing_opened_ends_with_any_closing_marker_of_the_format():
    for closing in ("</think>", "[/THINK]"):
        assert split("Q", "T", closing, "S", format="think", question_tokens=1) == ["q: Q", f"t: T|{closing}", "s: S"]


@pytest.mark.parametrize("format", ["auto", "think"])
def test_a_response_that_begins_with_the_closing_marker_thinks_nothing(format):
    assert split("Q", "<", "/think>", "S", format=format, question_tokens=1) == ["q: Q|<|/think>", "s: S"]
    assert split("Q", "<", "/", "b>", format=format, question_tokens=1)[0] == "q: Q|<|/"


def test_the_prompts_marker_ends_the_question():
    tokenizer = Pieces("Q", "<think>", "\n", "</think>", "\n\n", "S")
    assert question_length(tokenizer, [0, 1, 2]) == 2
    assert question_length(tokenizer, [0, 1, 2, 3, 4]) == 2  # Qwen3's template with thinking switched off
    assert question_length(tokenizer, [0, 1, 0, 2]) == 4
    assert question_length(tokenizer, [0, 1, 2], "plain") == 3
    assert split(*tokenizer.pieces, question_tokens=2) == ["q: Q|<think>", "t: \n|</think>", "s: \n\n|S"]


# --- steps -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("pieces", "steps"),
    [
        (("One.\n\n", "Two"), ["One.\n\n", "Two"]),
        (("One.", "\n", "\n", "Two"), ["One.|\n|\n", "Two"]),
        (("One.", "\n\nTwo"), ["One.", "\n\nTwo"]),
        (("One.", " \r\n \r\n", " Two"), ["One.| \r\n \r\n", " Two"]),
        (("One.", "\n", "Two", "\r\n", "Three"), ["One.|\n|Two|\r\n|Three"]),
        (("One.\n\nTwo", " three", " four"), ["One.\n\nTwo", " three| four"]),
        (("One.\n\nTwo", "\n", " three"), ["One.\n\nTwo|\n", " three"]),
    ],
)
def test_paragraphs_begin_after_a_blank_line(pieces, steps):
    assert split("<think>", *pieces) == ["q: <think>", *(f"t: {step}" for step in steps)]


@pytest.mark.parametrize(
    ("pieces", "steps"),
    [
        (("This is a sentence", ".", " Then"), ["This is a sentence|.", " Then"]),
        (("This is a sentence", ".", "Then"), ["This is a sentence|.|Then"]),
        (("Pi is close to 3", ".", "14", ".", " So"), ["Pi is close to 3|.|14|.", " So"]),
        (("Short.", " But", " this ends.", " Here"), ["Short.| But| this ends.", " Here"]),
        (('He said "so it is."', "\n", "Then"), ['He said "so it is."|\n', "Then"]),
        (("**So it is certain.**", " Then"), ["**So it is certain.**", " Then"]),
        (("这是一个很长的句子因为它有很多字。", "\n然后"), ["这是一个很长的句子因为它有很多字。", "\n然后"]),
        (("This is certain. Then", " we"), ["This is certain. Then", " we"]),
    ],
)
def test_sentences_end_with_a_terminator_and_white_space(pieces, steps):
    assert split("<think>", *pieces, steps="sentence") == ["q: <think>", *(f"t: {step}" for step in steps)]


def test_lines_begin_after_a_line_break():
    assert split("<think>", "1", "\n", "2\n", "3", steps="line") == ["q: <think>", "t: 1|\n", "t: 2\n", "t: 3"]


def test_a_callable_is_asked_for_text_in_a_step_that_has_text():
    asked = []

    def wait(step_text, token_text):
        asked.append((step_text, token_text))
        return token_text.strip() == "Wait"

    assert split("<think>", "\n", "A", " ", "Wait", "b", steps=wait) == ["q: <think>", "t: \n|A| ", "t: Wait|b"]
    assert asked == [("\nA ", "Wait"), ("Wait", "b")]


def test_the_closing_marker_forms_no_step_of_its_own():
    for marker in (["</think>"], ["</", "think", ">"], ["<", "/", "think>"], [*"</think>"]):
        assert split("<think>", "T.", "\n\n", *marker, "S") == ["q: <think>", "t: T.|\n\n|" + "|".join(marker), "s: S"]
    assert split("<think>", "T.\n\n", "<", "b", ">") == ["q: <think>", "t: T.\n\n|<", "t: b|>"]
    assert split("<think>", "T.\n\n", "<", "�", ">") == ["q: <think>", "t: T.\n\n|<", "t: �|>"]
    assert split("<think>", "T.\n\n", "<", "\n", "</think>") == ["q: <think>", "t: T.\n\n|<|\n|</think>"]
    assert split("<think>", "T.\n\n", "U</think>") == ["q: <think>", "t: T.\n\n", "t: U</think>"]


def test_an_incomplete_character_opens_a_step():
    tokenizer = byte_level(markers=False)
    tokens = tokenizer.encode("<think>A.\n\n🙂", add_special_tokens=False)  # the last four are the emoji's bytes
    assert opened(tokenizer, tokens)[-4:] == ["thinking", None, None, None]


@pytest.mark.parametrize("rule", STEP_RULES)
@given(TEXTS)
def test_one_character_a_token_gives_the_steps_of_rereading_the_text(rule, text):
    tokens = CHARACTERS.encode(text, add_special_tokens=False)
    text = decode(CHARACTERS, tokens)
    found = [
        (i, segment) for i, segment in enumerate(opened(CHARACTERS, tokens, steps=rule, format="think")) if segment
    ]
    assert found == (steps_by_rereading(text, "<think>", "</think>", rule) if text else [])


@every_tokenizer
@given(TEXTS, st.data())
def test_every_prefix_has_the_boundaries_of_the_whole(tokenizer, text, data):
    tokens = tokenizer.encode("Q<think>" + text, add_special_tokens=False)
    whole, end = opened(tokenizer, tokens), data.draw(st.integers(0, len(tokens)))
    assert opened(tokenizer, tokens[:end]) == whole[:end]
    segmenter = Segmenter(tokenizer)
    before = [segmenter.push(token) for token in tokens[:end]]
    fork = segmenter.fork()
    for token in tokens[:5]:
        fork.push(token)  # a fork goes its own way
    assert before + [segmenter.push(token) for token in tokens[end:]] == whole


# --- data and errors -------------------------------------------------------------------------------------------------
def test_a_format_or_rule_that_is_added_is_known_by_name(monkeypatch):
    monkeypatch.setitem(FORMATS, "mine", Format("mine", (("{", "}"),), "shout"))
    monkeypatch.setitem(STEP_RULES, "shout", lambda step, token: token.isupper())
    expected = ["q: Q|{", "t: a", "t: B|}", "s: c|D"]
    assert (
        split("Q", "{", "a", "B", "}", "c", "D") == split("Q", "{", "a", "B", "}", "c", "D", format="mine") == expected
    )


def test_a_format_or_rule_that_is_added_is_known_to_traces_and_readers(monkeypatch, tmp_path):
    tokenizer = CHARACTERS
    (tmp_path / "a.jsonl").write_text('{"prompt": "Q", "response": "{a;b}c"}')
    with pytest.raises(InputError, match="format='mine' is not known"):
        read_traces(tmp_path / "a.jsonl", tokenizer, format="mine")
    monkeypatch.setitem(stepsal.formats.FORMATS, "mine", stepsal.formats.Format("mine", (("{", "}"),), "semicolon"))
    monkeypatch.setitem(stepsal.formats.STEP_RULES, "semicolon", lambda step, token: step.endswith(";"))
    trace = Trace.from_text(tokenizer, "Q", "{a;b}c", format="mine")
    assert [(step.segment, step.text) for step in trace.steps] == [
        ("question", "Q{"),
        ("thinking", "a;"),
        ("thinking", "b}"),
        ("summary", "c"),
    ]
    for options in ({"format": "mine"}, {}):  # the second time: as one of those that `auto` allows
        assert read_traces(tmp_path / "a.jsonl", tokenizer, **options)[0].steps == trace.steps
    assert len(read_traces(tmp_path / "a.jsonl", tokenizer, format="mine", steps="line")[0].segment("thinking")) == 1


def test_a_format_whose_step_rule_is_missing_is_refused_with_the_fix(monkeypatch):
    monkeypatch.setitem(FORMATS, "mine", Format("mine", (("{", "}"),), "shout"))
    with pytest.raises(
        InputError, match=r"thinking_rule='shout', which is not in STEP_RULES .*: add the rule, .*\['shout'\]"
    ):
        Segmenter(CHARACTERS, "mine")


@pytest.mark.parametrize("format", ["thinking", ("<a>", "<a>"), ("", "<a>"), (" <a>", "</a>")])
def test_an_unknown_format_is_refused_with_those_that_exist(format):
    with pytest.raises(InputError, match=r"format=.*'think', 'harmony', 'plain'"):
        Segmenter(CHARACTERS, format)


def test_an_unknown_step_rule_is_refused_with_those_that_exist():
    with pytest.raises(InputError, match=r"steps='words'.*'paragraph', 'line', 'sentence'"):
        Segmenter(CHARACTERS, steps="words")


def test_rules_ask_nothing_of_a_blank_step_or_token():
    assert not paragraph("\n\n", "A")
    assert not paragraph("A", "\n\n")
    assert not sentence("", " A")


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_decodes_as_the_tokenizer_does(kind):
    """Where a tokenizer's class adds nothing, its backend is asked; that must not show."""
    tokenizer = KINDS[kind]()
    ids = list(range(0, len(tokenizer), max(1, len(tokenizer) // 40)))
    for start in range(len(ids) - 3):
        window = ids[start : start + 3]
        assert _decoder(tokenizer)(window) == decode(tokenizer, window)


@pytest.mark.parametrize("markers", [True, False])
def test_a_byte_level_stream_gives_the_decoded_text_whatever_stands_next_to_what(markers):
    """Texts of tokens that are whole by themselves are kept; pieces of characters between them must not be lost."""
    tokenizer, at = byte_level(markers), random.Random(0)
    for _ in range(200):
        tokens = [at.randrange(len(tokenizer)) for _ in range(at.randrange(1, 12))]
        stream = TextStream(tokenizer)
        assert "".join(map(stream.push, tokens)) + stream.held == decode(tokenizer, tokens)


def test_a_tokenizer_need_not_be_hashable():
    class Unhashable(Pieces):
        __hash__ = None

    stream = TextStream(Unhashable("a", "b"))
    assert [stream.push(token) for token in (1, 0)] == ["b", "a"]
