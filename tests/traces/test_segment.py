import random
import time

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
    return _steps(segmenter, range(len(pieces)), pieces)


def _steps(segmenter, tokens, pieces):
    opened = []
    for token in tokens:
        segment = segmenter.push(token)
        opened.append(None)
        if segment:
            opened[-1 - segmenter.back] = segment
        assert segmenter.segment == [each for each in opened if each][-1]
    if left := segmenter.finish():
        opened[-segmenter.back] = left
    steps = []
    for segment, token in zip(opened, tokens, strict=True):
        if segment:
            steps.append(f"{segment[0]}: {pieces[token]}")
        else:
            steps[-1] += f"|{pieces[token]}"
    return steps


class WithTokens(Pieces):
    """Some of the pieces are added tokens; the others are text."""

    def __init__(self, *pieces, special=()):
        super().__init__(*pieces)
        self.added_tokens_decoder = {pieces.index(each): Special(each) for each in special}


class Special(str):
    special = True


def split_with_tokens(special, *pieces, **options):
    """`split` with a tokenizer that has these added tokens, where a piece in brackets, `⟨<think>⟩`, is one of them."""
    tokenizer = WithTokens(*special, *(piece for piece in pieces if piece[0] != "⟨"), special=special)
    texts = iter(range(len(special), len(tokenizer)))
    tokens = [special.index(piece[1:-1]) if piece[0] == "⟨" else next(texts) for piece in pieces]
    return _steps(Segmenter(tokenizer, **options), tokens, tokenizer.pieces)


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
        "t:  It is| simple|.\n\n",
        "t: Yes|<|end|>|<|start|>|assistant|<|channel|>|final|<|message|>",
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
    assert split("Q", "<t", "able>", "A", format=format, question_tokens=1) == ["q: Q", f"{segment}: <t|able>|A"]
    assert split("Q", "A", "<think>", "B", format=format, question_tokens=1) == ["q: Q", f"{segment}: A|<think>|B"]


def test_thinking_that_nothing_opened_ends_with_any_closing_marker_of_the_format():
    for closing in ("</think>", "[/THINK]"):
        assert split("Q", "T", closing, "S", format="think", question_tokens=1) == ["q: Q", f"t: T|{closing}", "s: S"]


@pytest.mark.parametrize("format", ["auto", "think"])
def test_a_response_that_begins_with_the_closing_marker_thinks_nothing(format):
    assert split("Q", "<", "/think>", "S", format=format, question_tokens=1) == ["q: Q|<|/think>", "s: S"]
    assert split("Q", "<", "/", "b>", format=format, question_tokens=1)[0] == "q: Q"


def test_the_prompts_marker_ends_the_question():
    tokenizer = Pieces("Q", "<think>", "\n", "</think>", "\n\n", "S")
    assert question_length(tokenizer, [0, 1, 2]) == 2
    assert question_length(tokenizer, [0, 1, 2, 3, 4]) == 2  # Qwen3's template with thinking switched off
    assert question_length(tokenizer, [0, 1, 0, 2]) == 4
    assert question_length(tokenizer, [0, 1, 2], "plain") == 3
    assert split(*tokenizer.pieces, question_tokens=2) == ["q: Q|<think>", "t: \n|</think>", "s: \n\n|S"]


# --- undecided text --------------------------------------------------------------------------------------------------
BEGINNINGS = [
    ("[", "1", ", 2]"),
    ("<", "b>"),
    ("\n", "\n", "4"),
    ("[",),
    ("<", "thin"),
    (" ", "<", "/"),
    ("\n",),
    ("[TH", "IS]"),
]


@pytest.mark.parametrize("beginning", BEGINNINGS)
@pytest.mark.parametrize("format", ["auto", "think", "harmony", "plain", ("<think>", "</think>")])
def test_text_that_might_have_become_a_marker_is_the_responses_from_its_first_token(beginning, format):
    segment = "s" if format in ("auto", "plain") else "t"
    steps = split("Q", *beginning, format=format, question_tokens=1)
    assert steps == ["q: Q", f"{segment}: {'|'.join(beginning)}"]


@pytest.mark.parametrize("beginning", BEGINNINGS)
def test_each_prefix_of_a_response_that_shows_no_marker_has_the_boundaries_of_the_whole(beginning):
    pieces = ("Q", *beginning, " It", " is.", "\n\n", "4")
    whole = split(*pieces, question_tokens=1)
    for end in range(2, len(pieces)):
        part = split(*pieces[:end], question_tokens=1)
        assert part[:-1] == whole[: len(part) - 1]
        assert whole[len(part) - 1].startswith(part[-1])


HARMONY = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>")
HEAD = ("Q", "⟨<|start|>⟩", "assistant")


@pytest.mark.parametrize("format", ["auto", "harmony"])
@pytest.mark.parametrize(
    "response",
    [
        ("It", " is", " 4."),
        (" It", " is", " 4."),
        ("\n", "4"),
        (" to", "=4"),
        (" so", " it", " is", " four", " and", " no", " more"),
        ("⟨<|channel|>⟩", "foo", "⟨<|message|>⟩", "4"),
        ("⟨<|channel|>⟩", "analysis", " We", " add", " two", " and", " two", " now"),
        ("⟨<|channel|>⟩", "analysis", ", as it were"),
        ("⟨<|message|>⟩", "4"),
        ("<|channel|>", "analysis", "<|message|>", "4"),
    ],
)
def test_a_harmony_response_without_a_header_is_whole(response, format):
    steps = split_with_tokens(HARMONY, *HEAD, *response, format=format, question_tokens=3)
    assert steps[0] == "q: Q|<|start|>|assistant"
    assert "|".join(step[3:] for step in steps[1:]) == "|".join(piece.strip("⟨⟩") for piece in response)


def test_a_header_that_is_under_way_counts_as_question_until_it_is_decided():
    header = ("⟨<|channel|>⟩", "analysis", " to=python", " code", "⟨<|message|>⟩")
    for end in range(1, len(header) + 1):
        steps = split_with_tokens(HARMONY, *HEAD, *header[:end], question_tokens=3)
        assert len(steps) == 1
    assert split_with_tokens(HARMONY, *HEAD, *header, "T", question_tokens=3)[1:] == ["t: T"]
    recipient = (" to=functions.add", "⟨<|channel|>⟩", "commentary", " json", "⟨<|message|>⟩", "{}")
    assert split_with_tokens(HARMONY, *HEAD, *recipient, question_tokens=3)[1:] == ["t: {}"]


def test_a_step_rule_reads_what_was_undecided():
    assert split("Q", "[1", ".\n\n", "Two", question_tokens=1) == ["q: Q", "s: [1|.\n\n", "s: Two"]
    assert split("Q", "[", "1.\n\n", "Two", question_tokens=1) == ["q: Q", "s: [|1.\n\n", "s: Two"]


# --- markers that are tokens -----------------------------------------------------------------------------------------
THINK = ("<think>", "</think>")


def test_where_a_marker_is_a_token_its_spelling_is_text():
    pieces = ("Q", "⟨<think>⟩", "I write ", "</", "think>", " or ", "</think>", ".", "⟨</think>⟩", "S", "</think>")
    assert split_with_tokens(THINK, *pieces) == [
        "q: Q|<think>",
        "t: I write |</|think>| or |</think>|.|</think>",
        "s: S|</think>",
    ]
    assert split_with_tokens(THINK, "Use <think>", "⟨<think>⟩", "T") == ["q: Use <think>|<think>", "t: T"]
    assert split_with_tokens(THINK, "Q", "<think>", "T", question_tokens=1) == ["q: Q", "s: <think>|T"]


def test_where_a_marker_is_no_token_its_spelling_counts():
    assert split_with_tokens(("<think>",), "Q", "⟨<think>⟩", "T", "</", "think>", "S")[1:] == ["t: T|</|think>", "s: S"]
    assert split_with_tokens(THINK, "Q", "[TH", "INK]", "T", "[/THINK]", "S")[1:] == ["t: T|[/THINK]", "s: S"]


def test_harmonys_special_tokens_count_and_the_words_between_them_are_text():
    spelt = ("<|channel|>", "final", "<|message|>")
    final = ("⟨<|channel|>⟩", "fin", "al", "⟨<|message|>⟩")
    steps = split_with_tokens(HARMONY, "Q", "⟨<|channel|>⟩", "analysis", "⟨<|message|>⟩", "T", *spelt, "U", *final, "S")
    assert steps[0] == "q: Q|<|channel|>|analysis|<|message|>"
    assert "".join(steps[1:-1]).count("final") == 1
    assert steps[-1] == "s: S"


def test_a_marker_token_ends_the_step_though_text_of_the_same_words_does_not():
    pieces = ("⟨<think>⟩", "T.\n\n", "</", "think>", " no", ".\n\n", "⟨</think>⟩", "S")
    assert split_with_tokens(THINK, "Q", *pieces)[1:] == ["t: T.\n\n", "t: </|think>| no|.\n\n|</think>", "s: S"]


def test_a_prompt_that_spells_a_marker_does_not_open_the_thinking():
    tokenizer = WithTokens(*THINK, "Q ", "<think>", "\n", special=THINK)
    assert question_length(tokenizer, [2, 3, 4]) == 3
    assert question_length(tokenizer, [2, 0, 4]) == 2


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
        *(
            (("We note that it holds, " + short, " x"), ["We note that it holds, " + short + "| x"])
            for short in (
                "e.g.",
                "i.e.",
                "cf.",
                "vs.",
                "Eq.",
                "Fig.",
                "Dr.",
                "J.",
                "by A. N.",
                "approx.",
                "no.",
                "p.",
                "etc.",
                "(e.g.",
            )
        ),
        *(
            ((f"This is said in {language}, {short}", " drei"), [f"This is said in {language}, {short}| drei"])
            for language, abbreviations in {
                "German": "z.B. d.h. bzw. vgl. Abb. Gl. Nr.",
                "French": "Mme. M. p.ex.",
                "Spanish": "Sr. Dra. pág. págs. p.ej.",
                "Russian": "т.е. т.д. рис. стр. табл.",
                "Polish": "np. tzn.",
            }.items()
            for short in abbreviations.split()
        ),
        *(
            ((f"This is said, {first}.", f" {second}.", " drei"), [f"This is said, {first}.| {second}.| drei"])
            for first, second in ("zB", "dh", ("i", "e"), ("e", "g"), ("p", "ex"), "те")
        ),
        (("This is said, c.-à-d.", " trois"), ["This is said, c.-à-d.| trois"]),
        (("We solve it for z.", " But", " B"), ["We solve it for z.", " But| B"]),
        (("The plank has a length of 5 ft.", " and"), ["The plank has a length of 5 ft.| and"]),
        (("It is shown in Fig.", " 3", ".", " Then"), ["It is shown in Fig.| 3|.", " Then"]),
        (("So we choose answer B.", " Let", " us"), ["So we choose answer B.", " Let| us"]),
        (("So the answer is no.", " We"), ["So the answer is no.", " We"]),
        (("By the way, 5!", " =", " 120"), ["By the way, 5!| =| 120"]),
        (("That is the answer!", " So"), ["That is the answer!", " So"]),
        (("He says (as it is.)", " so"), ["He says (as it is.)| so"]),
        (('He says "So it is."', " he"), ['He says "So it is."| he']),
        (("Well, as I say ...", " so"), ["Well, as I say ...| so"]),
        (("The total is 42.", " Then"), ["The total is 42.", " Then"]),
        (
            ("We take two steps:\n", "1.", " Add.\n", "2.", " Divide."),
            ["We take two steps:\n", "1.| Add.\n", "2.| Divide."],
        ),
        (("这是一个句子。", "然后", "我们"), ["这是一个句子。", "然后|我们"]),
        (("他说：“这就是答案。", "”", "然后"), ["他说：“这就是答案。|”", "然后"]),
        (("真的是这样吗？", "是的，就是这样！", "好"), ["真的是这样吗？", "是的，就是这样！", "好"]),
        (("ﾊﾝｶｸﾉﾌﾞﾝｼｮｳﾃﾞｽ、ﾊｲ｡", "ﾂｷﾞ"), ["ﾊﾝｶｸﾉﾌﾞﾝｼｮｳﾃﾞｽ、ﾊｲ｡", "ﾂｷﾞ"]),
        (("यह एक लंबा वाक्य है।", "फिर"), ["यह एक लंबा वाक्य है।", "फिर"]),
        (("好。", "然后"), ["好。|然后"]),
        (("第一句话在这里。第二", "句", "。"), ["第一句话在这里。第二", "句|。"]),
        (("Pi is close to 3", ".", "14", ".", " So"), ["Pi is close to 3|.|14|.", " So"]),
        (("Short.", " But", " this ends.", " Here"), ["Short.| But| this ends.", " Here"]),
        (('He said "so it is."', "\n", "Then"), ['He said "so it is."|\n', "Then"]),
        (("**So it is certain.**", " Then"), ["**So it is certain.**", " Then"]),
        (("这是一个很长的句子因为它有很多字。", "\n然后"), ["这是一个很长的句子因为它有很多字。", "\n然后"]),
        (("This is certain. Then", " we"), ["This is certain. Then", " we"]),
        (("So we get that $x = 1.$", " Then", " y"), ["So we get that $x = 1.$", " Then| y"]),
        (("So we get that \\(x = 1.\\)", " Then", " y"), ["So we get that \\(x = 1.\\)", " Then| y"]),
        (("It is as $x = 1.$", " and", " y"), ["It is as $x = 1.$| and| y"]),
        (("我们都看过《你好吗？", "妈妈》这部电影。", "对"), ["我们都看过《你好吗？|妈妈》这部电影。", "对"]),
        (("Sie sagte: „Und auch das.“", " Wir"), ["Sie sagte: „Und auch das.“", " Wir"]),
        (("Well, as I say . . .", " so"), ["Well, as I say . . .| so"]),
        (("They live in the U.S.", " How"), ["They live in the U.S.", " How"]),
        (("The values are these:\n", "•", " 9.", " Add."), ["The values are these:\n", "•| 9.| Add."]),
    ],
)
def test_sentences_end_with_a_terminator_and_white_space(pieces, steps):
    assert split("<think>", *pieces, steps="sentence") == ["q: <think>", *(f"t: {step}" for step in steps)]


@pytest.mark.parametrize(
    ("pieces", "steps"),
    [
        (("Add", "\n\n", "two"), ["Add|\n\n", "two"]),
        (("Add", "\n", "two"), ["Add|\n|two"]),
        (("Add\n", "##", " Sum", "\n", "It"), ["Add\n", "##| Sum|\n", "It"]),
        (("Add\n", "**", "Sum", "**", "\n", "It"), ["Add\n", "**|Sum|**|\n", "It"]),
        (
            ("These\n", "-", " one\n", "-", " two\n", " and more\n", "So"),
            ["These\n", "-| one\n", "-| two\n| and more\n", "So"],
        ),
        (("These:\n", "1", ".", " one\n", "2", ".", " two"), ["These:\n", "1|.| one\n", "2|.| two"]),
        (("These:\n", "–", " one\n", "–", " two\n", "So"), ["These:\n", "–| one\n", "–| two\n", "So"]),
        (("These:\n", "✓", " one\n", "✗", " two\n", "●", " x"), ["These:\n", "✓| one\n", "✗| two\n", "●| x"]),
        (("These:\n", "①", " one\n", "②", " two"), ["These:\n", "①| one\n", "②| two"]),
        (("首先：\n", "1", "、", "加\n", "2", "、", "减"), ["首先：\n", "1|、|加\n", "2|、|减"]),
        (("首先：\n", "（", "1", "）加\n", "（", "2", "）减"), ["首先：\n", "（|1|）加\n", "（|2|）减"]),
        (("首先：\n", "一", "、", "加\n", "二", "、", "减"), ["首先：\n", "一|、|加\n", "二|、|减"]),
        (
            ("These are the cases:\n", "a", ".", " one\n", "b", ".", " x"),
            ["These are the cases:\n|a|.| one\n", "b|.| x"],
        ),
        (
            ("These are the cases:\n", "II", ".", " one\n", "III", ".", " x"),
            ["These are the cases:\n|II|.| one\n", "III|.| x"],
        ),
        (("the total is\n", "12", " apples"), ["the total is\n|12| apples"]),
        (("the total is\n", "3", ".14", " at most"), ["the total is\n|3|.14| at most"]),
        (("We get\n", "\\[", "x. Then y", "\\]", "\n", "so"), ["We get\n", "\\[|x. Then y|\\]|\n", "so"]),
        (("We get", " $$", "x = 1", "$$", " so"), ["We get", " $$|x = 1|$$", " so"]),
        (
            ("We get\n", "\\begin{dmath}", "x", "\\end{dmath}", "\n", "so"),
            ["We get\n", "\\begin{dmath}|x|\\end{dmath}|\n", "so"],
        ),
        (
            ("Since", " \\( \\begin{pmatrix}", " 1 \\end{pmatrix} ", " v \\)"),
            ["Since| \\( \\begin{pmatrix}| 1 \\end{pmatrix} | v \\)"],
        ),
        (("Sum\n", "===", "\n", "It"), ["Sum\n|===|\n", "It"]),
        (("Case 1", ": x > 0\n", "Case 2", ": x < 0\n", "So"), ["Case 1|: x > 0\n", "Case 2|: x < 0\n", "So"]),
        (
            ("We get\n", "\\begin{align}", "x", "\\end{align}", "\n", "so"),
            ["We get\n", "\\begin{align}|x|\\end{align}|\n", "so"],
        ),
        (
            ("Code:\n", "```", "py\n", "print(1). Then\n", "# no heading\n", "```", "\n", "So"),
            ["Code:\n", "```|py\n|print(1). Then\n|# no heading\n|```|\n", "So"],
        ),
    ],
)
def test_blank_lines_headings_items_equations_and_code_end_a_sentence(pieces, steps):
    assert split("<think>", *pieces, steps="sentence") == ["q: <think>", *(f"t: {step}" for step in steps)]


@pytest.mark.parametrize(
    ("opening", "closing"),
    [
        ("\\[", "\\]"),
        ("$$", "$$"),
        ("\\begin{align*}", "\\end{align*}"),
        ("\\begin{flalign}", "\\end{flalign}"),
        ("\\begin{IEEEeqnarray*}", "\\end{IEEEeqnarray*}"),
        ("\\begin{split}", "\\end{split}"),
        ("\\begin{cases}", "\\end{cases}"),
        ("\\begin{pmatrix}", "\\end{pmatrix}"),
        ("```py", "```"),
        ("~~~", "~~~"),
        ("````", "````"),
    ],
)
def test_a_block_with_blank_lines_stays_with_its_paragraph(opening, closing):
    block = ("We get\n", opening, "\n", "a\n", "\n", "b\n\n", "c\n", closing, "\n")
    assert split("<think>", *block, "so", "\n\n", "D") == ["q: <think>", "t: " + "|".join(block) + "|so|\n\n", "t: D"]


@pytest.mark.parametrize("stray", ["It costs $$ 5.", "A \\[ alone."])
def test_an_equation_that_never_closes_does_not_swallow_what_follows(stray):
    steps = split("<think>", stray, *["A paragraph.", "\n\n"] * 1000)
    assert len(steps) > 600


@pytest.mark.parametrize(
    "block",
    [
        "Result: ```\na\n\nb\n```",
        "Result: ```python\na\n\nb\n```",
        "如下```python\na\n\nb\n```",
        "We run:\n\n```python\nx = 1\n\ny = 2```",
        "We run:\n\n```python\nx = 1\n\ny = 2```.",
        "```\na\n\nb\n```.",
        "```md\nUse ```code``` here, and ```code```\n\nb\n```",
        "See ```code``` and ```code```.",
        "See ```code```",
        "It was x = 1```",
        "A word " * 400 + "Result: ```\na\n\nb\n```",
    ],
)
def test_a_code_block_ends_where_its_fence_does(block):
    steps = split("<think>", *f"{block}\n\nThen it is.\n\nAnd more.")
    block = block.removeprefix("We run:\n\n")
    expected = [f"t: {block}\n\n", "t: Then it is.\n\n", "t: And more."]
    assert [step.replace("|", "") for step in steps[-3:]] == expected


@pytest.mark.parametrize(
    "line",
    [
        "The pairs $a$$b$ are equal.",
        "The pairs $a$$b$$c$ are equal.",
        "We use re.sub(r'\\[', '', s) here.",
        'It splits at "\\[" and at "\\]".',
        "It begins with `\\[` or `$$`.",
        "Write `\\begin{align}` before it.",
        "The price is $$5.",
        "It costs $$ 5.",
        "echo $$ prints the pid.",
    ],
)
def test_what_is_no_delimiter_opens_no_equation(line):
    steps = split("<think>", *f"{line}\n\nSecond.\n\nThird.")
    assert [step.replace("|", "")[3:] for step in steps[1:]] == [f"{line}\n\n", "Second.\n\n", "Third."]
    whole = split("<think>", line, "\n\n", "Second.", "\n\n", "Third.")
    assert [step.replace("|", "")[3:] for step in whole[1:]] == [f"{line}\n\n", "Second.\n\n", "Third."]


@pytest.mark.parametrize(
    "equation",
    [
        "It's \\[\nx\n\ny\n\\]",
        "So $a$ is $$\nx\n\ny\n$$",
        "So $$5x = 10 + \n\ny$$",
        "So $$x\n\n= 5$$",
        "It costs $5 and $$\nx\n\ny\n$$",
        "As $5 + x$ is $$\nx\n\ny\n$$",
        "$$5\n\n= x$$",
        "It costs $$5x = 10$$ and $$6$$.",
        "Then $$\\text{the sum}\n\n= 4$$",
        "Don't use `a`: $$ x_1\n\n= 4 $$",
    ],
)
def test_an_equation_is_whole_whatever_its_line_says_before_it(equation):
    steps = split("<think>", *f"{equation}\n\nSecond.")
    assert [step.replace("|", "")[3:] for step in steps[1:]] == [f"{equation}\n\n", "Second."]


def test_a_delimiter_that_is_mentioned_begins_no_sentence():
    assert split("<think>", "We use re.sub(r'", "\\[", "', s)", steps="sentence")[1:] == [
        "t: We use re.sub(r'|\\[|', s)"
    ]


def test_code_that_never_ends_does_not_swallow_what_follows():
    long = ("A line of code\n" * 600, "\n")
    steps = split("<think>", "```py\n", "a\n\n", "b\n\n", *long, "So.\n\n", "Then.\n\n", "```\n", "\n", "A.\n\n", "B.")
    assert [step[3:] for step in steps[2:]] == ["So.\n\n", "Then.\n\n", "```\n|\n", "A.\n\n", "B."]


def test_a_sentence_step_holds_no_blank_line_not_even_in_code():
    pieces = ("```\n", "a = 1\n", "\n", "# b\n", "b. C = 2\n", "```\n", "So")
    assert split("<think>", *pieces, steps="sentence")[1:] == [
        "t: ```\n|a = 1\n|\n",
        "t: # b\n|b. C = 2\n|```\n",
        "t: So",
    ]


@pytest.mark.parametrize("rule", STEP_RULES)
def test_a_step_of_any_length_costs_the_same_for_each_token(rule):
    def seconds(size):
        segmenter = Segmenter(tokenizer, steps=rule)
        started = time.process_time()
        for token in [0] + [1, 2, 3] * size:
            segmenter.push(token)
        return time.process_time() - started

    tokenizer = Pieces("<think>", " a longer word than most of them", ",", " \\alpha")
    seconds(100)
    assert min(seconds(4_000) for _ in range(3)) < 8 * 3 * min(seconds(500) for _ in range(3))


def test_lines_begin_after_a_line_break():
    assert split("<think>", "1", "\n", "2\n", "3", steps="line") == ["q: <think>", "t: 1|\n", "t: 2\n", "t: 3"]


def test_a_callable_is_asked_for_text_in_a_step_that_has_text():
    asked = []

    def wait(step_text, token_text):
        asked.append((step_text, token_text))
        return token_text.strip() == "Wait"

    assert split("<think>", "\n", "A", " ", "Wait", "b", steps=wait) == ["q: <think>", "t: \n|A| ", "t: Wait|b"]
    assert asked == [("\nA ", "Wait"), ("Wait", "b")]


@pytest.mark.parametrize("rule", [lambda: True, lambda text: True, lambda text, token, more: True])
def test_a_callable_that_does_not_take_two_texts_is_refused(rule):
    with pytest.raises(InputError, match=r"a step rule is called as rule\(step_text, token_text\)"):
        split("<think>", "A", "b", steps=rule)


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
