import pytest

from stepsal import Trace, generate, load_tokenizer
from stepsal.generation.files import generate_file
from stepsal.generation.generate import Decoding
from stepsal.generation.grading import Graded, final_answer, grade_answer, grade_trace
from stepsal.generation.questions import Question, task_questions, tokens_needed
from stepsal.generation.task import answer_problems
from stepsal.reasoner import make_problem

TOKENIZER = load_tokenizer()


def answered(response, *, truncated=False):
    """A trace of "1+1?" as `generate` makes it: with the end token unless it was cut off."""
    end = "" if truncated else TOKENIZER.eos_token
    return Trace.from_text(TOKENIZER, "1+1?", f"<think>Add.</think>{response}{end}", meta={"truncated": truncated})


@pytest.mark.parametrize("truncated", [False, True])
def test_neither_the_end_token_nor_the_thinking_is_part_of_the_final_answer(truncated):
    question = Question("sum", "1+1?", " 2 ")
    assert grade_trace(TOKENIZER, question, answered("2\n", truncated=truncated)) == Graded(True, None, "2")
    assert grade_trace(TOKENIZER, question, answered("Add.", truncated=truncated)) == Graded(False, None, "Add.")


def test_without_an_expected_answer_an_answer_is_neither_right_nor_wrong():
    assert grade_trace(TOKENIZER, Question("sum", "1+1?", None), answered("2")) == Graded(None, None, "2")


def test_an_answer_to_the_bundled_task_is_graded_by_its_rule():
    (question,) = task_questions("test", [3], 1)
    right = make_problem("test", 0, 3).response
    summary = right.partition("</think>")[2]
    assert grade_answer(question, right, summary) == Graded(True, None, question.answer)
    assert grade_answer(question, "I do not know.", "I do not know.").error == "malformed"


def test_a_box_that_is_never_closed_holds_no_answer():
    assert final_answer(r"\boxed{1} and \boxed{2") == r"\boxed{1} and \boxed{2"


def test_answers_without_and_with_a_file_are_graded_alike(reasoner, tmp_path):
    questions = task_questions("test", [3], 4)
    decoding = Decoding(tokens_needed([3]), batch_size=64)
    in_a_file = generate_file(reasoner, questions, tmp_path / "a.jsonl", decoding, progress=False)
    at_once = answer_problems(reasoner, 4, 3, progress=False)
    plain = generate(reasoner, [q.prompt for q in questions], max_new_tokens=tokens_needed([3]), progress=False)
    for one, other, ungraded, question in zip(in_a_file, at_once, plain, questions, strict=True):
        assert one.tokens.tolist() == other.tokens.tolist() == ungraded.tokens.tolist()
        graded = grade_trace(reasoner.tokenizer, question, ungraded)
        assert one.correct == other.correct == graded.correct
        assert one.meta.get("error") == other.meta["error"] == graded.error
