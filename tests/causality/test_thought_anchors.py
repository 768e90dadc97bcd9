"""Published sentences and matrices of Thought Anchors on our axes; the folders here are made up, in the published shape."""

import json

import pytest
import torch

import stepsal
from stepsal import FileError, InputError, faithfulness, read_thought_anchors

PROMPT = "Solve this. Problem: What is 3 + 4 + 5? Solution: \n<think>\n"
SENTENCES = [
    "First I add 3 and 4.",
    "That is 7.",
    "Correct. Then I add 5.",  # a short sentence that they join to the next by one space
    "7 + 5 is 12.",
    "That is 7.",  # the same again
    "So the sum is 12.",
]
THINKING = "First I add 3 and 4. That is 7.\n\nCorrect.\n\nThen I add 5.  7 + 5 is 12.\nThat is 7. So the sum is 12."
SUMMARY = "\n</think>\n\nThe sum is\n\n\\boxed{12}."


def score(source, target):
    return round(0.1 * source - 0.01 * target, 3)


def make_folder(folder, sentences=SENTENCES, solution=THINKING + SUMMARY, **changes):
    folder.mkdir(exist_ok=True)
    n = len(sentences)
    files = {
        "base_solution": {"prompt": PROMPT, "solution": solution, "answer": "12", "is_correct": True},
        "chunks_labeled": [
            {"chunk": text, "chunk_idx": i, "function_tags": [f"tag {i}"]} for i, text in enumerate(sentences)
        ],
    }
    for name, sign in (("step_importance", 1), ("step_importance_supp", -1)):
        files[name] = [
            {
                "source_chunk_idx": i,
                "source_chunk_text": text,
                "target_impacts": [
                    {"target_chunk_idx": j, "importance_score": sign * score(i, j)} for j in range(i + 1, n)
                ],
            }
            for i, text in enumerate(sentences)
        ]
    for name, content in (files | changes).items():
        (folder / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def test_the_thinking_steps_are_their_sentences_and_no_byte_is_lost(reasoner, tmp_path):
    tokenizer = reasoner.tokenizer
    trace, published = read_thought_anchors(make_folder(tmp_path / "problem_1"), tokenizer)
    ordinary = stepsal.Trace.from_text(tokenizer, PROMPT, THINKING + SUMMARY, format="think")
    assert torch.equal(trace.tokens, ordinary.tokens)
    assert trace.text == ordinary.text
    assert trace.segment("question")[0].text == ordinary.segment("question")[0].text
    assert [step.text for step in trace.segment("summary")] == [step.text for step in ordinary.segment("summary")]
    thinking = trace.segment("thinking")
    assert [" ".join(step.text.replace("</think>", "").split()) for step in thinking] == SENTENCES
    assert thinking[-1].text.endswith("</think>")
    assert [step.index for step in trace.steps] == list(range(len(trace.steps)))
    for step, following in zip(trace.steps, trace.steps[1:], strict=False):
        assert step.stop == following.start
    for step in trace.steps:
        assert tokenizer.decode(trace.tokens[step.start : step.stop]) == step.text
    assert (trace.id, trace.answer, trace.correct) == ("problem_1", "12", True)
    assert published.tags == ((), *((f"tag {i}",) for i in range(6)), *[()] * len(trace.segment("summary")))


def test_the_matrices_are_on_the_traces_steps_and_missing_where_nothing_was_published(reasoner, tmp_path):
    trace, published = read_thought_anchors(make_folder(tmp_path / "problem_1"), reasoner.tokenizer)
    n = len(trace.steps)
    expected = torch.full((n, n), torch.nan)
    for source in range(6):
        for target in range(source + 1, 6):
            expected[target + 1, source + 1] = score(source, target)
    torch.testing.assert_close(published.resampling.kl, expected, equal_nan=True)
    torch.testing.assert_close(published.suppression.kl, -expected, equal_nan=True)
    assert published.suppression.steps == trace.steps
    assert published.suppression.loss.isnan().all()
    assert published.suppression.answer.isnan().all()
    assert "log KL" in published.suppression.meta["unit"]


def test_a_map_is_compared_with_what_was_published(reasoner, tmp_path):
    trace, published = read_thought_anchors(make_folder(tmp_path / "problem_1"), reasoner.tokenizer)
    stepmap = stepsal.step_saliency(reasoner, trace)
    check = faithfulness([stepmap], [published.resampling])
    assert check.meta["mode"] == "published resampling"
    row = check.table.query("score == 'per reader' and pairs == 'all' and map == 'length'")
    assert row["n"].item() == 1
    published.suppression.save(tmp_path / "a.safetensors")
    assert stepsal.Knockout.load(tmp_path / "a.safetensors").meta == published.suppression.meta
    with pytest.raises(InputError, match="a file cannot hold a callable"):
        stepsal.write_traces(tmp_path / "a.jsonl", [trace])


def test_what_follows_the_last_sentence_is_a_step_without_one(reasoner, tmp_path):
    folder = make_folder(tmp_path / "p", solution=f"{THINKING} Wait. No, it is.{SUMMARY}")
    trace, published = read_thought_anchors(folder, reasoner.tokenizer)
    last = trace.segment("thinking")[-1]
    assert last.text.strip() == "Wait. No, it is.\n</think>"
    assert published.tags[last.index] == ()
    assert published.suppression.kl[last.index].isnan().all()
    assert trace.steps[last.index - 1].text.strip() == SENTENCES[-1]


@pytest.mark.parametrize(
    ("sentences", "named"),
    [
        ([*SENTENCES[:3], "7 + 5 is 13.", *SENTENCES[4:]], r"1 of 6 .*: 3 \('7 \+ 5 is 13.'\)"),
        ([*SENTENCES[:2], *SENTENCES[3:]], r"1 of 5 .*: 2 \('7 \+ 5 is 12.'\)"),  # the text between would be nobody's
        ([*SENTENCES, "The sum is"], r"1 of 7 .*: 6 \('The sum is'\)"),  # in the summary, not in the thinking
        (["", *SENTENCES], r"1 of 7 .*: 0 \(''\)"),
        ([*reversed(SENTENCES)], "of 6 sentences do not follow the one before"),
    ],
)
def test_sentences_that_are_not_where_they_should_be_are_named(reasoner, tmp_path, sentences, named):
    with pytest.raises(InputError, match=named):
        read_thought_anchors(make_folder(tmp_path / "p", sentences), reasoner.tokenizer)


def test_a_token_that_belongs_to_two_sentences_is_named(reasoner, tmp_path):
    tokenizer = reasoner.tokenizer
    ids = tokenizer.encode(THINKING)
    word = next(text for text in (tokenizer.decode([token]) for token in ids) if len(text.strip()) >= 3)
    at = SENTENCES[0].index(word.strip()) + 1
    halves = [SENTENCES[0][:at], SENTENCES[0][at:], *SENTENCES[1:]]
    with pytest.raises(InputError, match="belongs to two sentences"):
        read_thought_anchors(make_folder(tmp_path / "p", halves), tokenizer)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_solution": {"prompt": PROMPT}}, "laid out otherwise than expected: KeyError\\('solution'\\)"),
        ({"chunks_labeled": [{"text": "a"}]}, "laid out otherwise than expected: KeyError\\('chunk'\\)"),
        ({"chunks_labeled": {}}, "chunks_labeled.json holds a dict, expected a list"),
        ({"step_importance": "{"}, "step_importance.json is damaged"),
        ({"step_importance": [{"source_chunk_idx": 0}]}, "step_importance.json is laid out otherwise"),
        (
            {
                "step_importance_supp": [
                    {"source_chunk_idx": 3, "target_impacts": [{"target_chunk_idx": 3, "importance_score": 1.0}]}
                ]
            },
            "the value 1.0 of sentence 3 for sentence 3: expected a finite number for a sentence and a later one, of 6",
        ),
    ],
)
def test_files_that_hold_something_else_are_named(reasoner, tmp_path, changes, message):
    with pytest.raises(FileError, match=message):
        read_thought_anchors(make_folder(tmp_path / "p", **changes), reasoner.tokenizer)


def test_a_missing_file_is_named(reasoner, tmp_path):
    folder = make_folder(tmp_path / "p")
    (folder / "step_importance_supp.json").unlink()
    with pytest.raises(FileError, match="cannot read .*step_importance_supp.json"):
        read_thought_anchors(folder, reasoner.tokenizer)
    with pytest.raises(InputError, match="is a name, and no tokenizer"):
        read_thought_anchors(folder, "org/name")
