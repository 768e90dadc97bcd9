import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

from stepsal import FileError, InputError, Trace, generate, grader, load_tokenizer, read_traces, sweep
from stepsal.cli import main
from stepsal.generation import mathematics
from stepsal.generation.answers import final_answer, last_box
from stepsal.generation.choices import choice
from stepsal.generation.files import generate_file
from stepsal.generation.generate import Decoding
from stepsal.generation.grading import GRADERS, Graded, grade_answer, grade_trace
from stepsal.generation.limited import SCRIPT, LimitedProcess
from stepsal.generation.mathematics import compare_math
from stepsal.generation.questions import Question, task_questions, tokens_needed
from stepsal.generation.task import answer_problems
from stepsal.generation.units import pairs_to_compare
from stepsal.reasoner import make_problem

TOKENIZER = load_tokenizer()


def answered(response, *, truncated=False):
    """A trace of "1+1?" as `generate` makes it: with the end token unless it was cut off."""
    end = "" if truncated else TOKENIZER.eos_token
    return Trace.from_text(TOKENIZER, "1+1?", f"<think>Add.</think>{response}{end}", meta={"truncated": truncated})


def boxed(answer):
    return rf"So it is $\boxed{{{answer}}}$."


def right(expected, summary):
    return compare_math(expected, summary).right


# --- the final answer ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("truncated", [False, True])
@pytest.mark.parametrize("name", ["math", "exact"])
def test_neither_the_end_token_nor_the_thinking_is_part_of_the_final_answer(truncated, name):
    question = Question("sum", "1+1?", " 2 ")
    graded = grade_trace(TOKENIZER, question, answered("2\n", truncated=truncated), name)
    assert (graded.correct, graded.answer, graded.grader) == (True, "2", name)
    wrong = grade_trace(TOKENIZER, question, answered("Add.", truncated=truncated), name)
    assert (wrong.correct, wrong.answer) == (False, "Add.")


@pytest.mark.parametrize(
    ("summary", "answer"),
    [
        (r"\boxed{1} and \boxed{2", "1"),
        (r"\boxed{1}, no: \boxed{2}, or \boxed{3", "2"),
        (r"It is $\boxed 5$.", "5"),
        (r"It is $\boxed5$.", "5"),
        (r"\(\boxed -7\)", "-7"),
        (r"\boxed \frac{1}{2}", r"\frac{1}{2}"),
        (r"\fbox{5}", "5"),
        (r"\framebox{5}", "5"),
        (r"\boxed {5}", "5"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{\text{a \{ brace}}", r"\text{a \{ brace}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{1\right.}", r"\left\{1\right."),
        (r"\boxed{\frac{1}{2}} } }", r"\frac{1}{2}"),
        (r"} \boxed{5}", "5"),
        (r"\boxedanswer{5}", r"\boxedanswer{5}"),
        (r"\boxed", r"\boxed"),
        (" 42\n", "42"),
    ],
)
def test_the_last_complete_box_holds_the_final_answer(summary, answer):
    assert final_answer(summary) == answer


@pytest.mark.parametrize("text", [r"\boxed{", r"\boxed{\boxed{", "{", r"\boxed{}", r"\boxed ", "\\", r"\{"])
def test_the_last_box_is_found_in_time_proportional_to_the_text(text):
    before = time.process_time()
    last_box(text * (400_000 // len(text)))
    assert time.process_time() - before < 5


@pytest.mark.parametrize("text", ["<answer>", "not but ", r"\text{a}", "(A", "x = 1 or ", "1 2 ", "5 m ", "is "])
@pytest.mark.parametrize("expected", ["5", "A"])
def test_an_answer_is_graded_in_time_proportional_to_the_text(text, expected):
    before = time.process_time()
    compare_math(expected, text * (200_000 // len(text)))
    compare_math(expected, boxed(text * (4_000 // len(text))))
    assert time.process_time() - before < 5


# --- one answer, many spellings --------------------------------------------------------------------------------------
SAME = {
    "1/2": [
        r"\frac12",
        r"\dfrac{1}{2}",
        r"\tfrac12",
        r"\frac 1 2",
        "0.5",
        ".5",
        "½",
        r"\frac{2}{4}",
        r"x = \frac12",
        "1/2.",
    ],
    "0.5": ["1/2", r"\frac{1}{2}", "0.50", r"50\%"],
    "1000": ["1,000", "1{,}000", r"1\,000", "1 000", r"1,\!000", "10^3", "1e3", r"1\times10^3", "1000.0", r"\$1,000"],
    "1,000": ["1000", "1{,}000"],
    "A": [
        "(A)",
        r"\text{A}",
        r"\textbf{(A)}",
        "A.",
        "A)",
        "(a)",
        r"\mathrm{A}",
        r"(A) $5$",
        "A. five",
        r"\text{Option A}",
    ],
    "(A)": ["A", r"\text{A}"],
    "(b)": ["B", "(B)", "b", r"\text{(b)}"],
    r"\text{A}": ["A", "(A)"],
    "5": [
        "5.",
        "$5$",
        r"\text{5}",
        r"{5}",
        "+5",
        "x=5",
        "5 cm",
        r"5\text{ cm}",
        r"5\,\mathrm{cm}",
        "5cm",
        "5 apples",
        r"5^\circ",
    ],
    "5 cm": ["5", r"5\text{ cm}", "5 centimeters", r"5\ \mathrm{cm}"],
    "90^\\circ": ["90", "90°", "90 degrees", r"90^{\circ}"],
    "25 cm^2": [r"25\text{ cm}^2", "25 cm²", "25"],
    "(1,2)": ["(1, 2)", r"\left(1,2\right)"],
    "x^2+1": ["1+x^2"],
    r"2\sqrt{3}": [r"\sqrt{12}"],
    "12 pi": [r"12\pi"],
    "3 1/2": [r"3\frac12", "3.5", "7/2"],
    "-5": ["−5"],
    "Yes": [r"\text{yes}", "yes."],
    "New York": [r"\text{New York}"],
    r"\{1,2\}": [r"\{2,1\}"],
}
OTHER = {
    "1/2": ["0.6", "2", "1"],
    "1000": ["100", "1,00", "1"],
    "A": ["B", "AB", "C. A", r"\text{None}"],
    "5": ["50", "-5", "5 or 6", "5x", "", r"\frac{5}{", "five or so"],
    "5 cm": ["5 m", r"5\text{ kg}", "6 cm"],
    "25 cm^2": ["25 cm^3"],
    "5 hours": ["5 minutes"],
    "x=5": ["y=5"],
    "x": ["X", "y"],
    "2": ["2t"],
    "2t": ["2"],
    "(1,2)": ["(2,1)", "[1,2]"],
    "S. Jones": ["S. Smith"],
    "yes": ["no"],
}


UNITS = {
    "5": [r"5\text{ m}", r"\$5", "$5", r"\$5.00", "£5", r"5\text{ dollars}", "5 square units"],
    "50": [r"50\%", "50%", r"50\text{ percent}"],
    "50%": ["50", "0.5", "50 percent"],
    r"\$5": ["5", r"5\text{ dollars}", "$5.00"],
    "90": [r"90^\circ", r"90^{\circ}", r"90\degree", "90°", r"90\text{ degrees}"],
    "37": ["37 °C", r"37^\circ C", r"37\,^\circ\text{C}", r"37^{\circ}\mathrm{C}"],
    "37 °C": [r"37^\circ\text{C}", "37", "37°", "37 celsius"],
    "9.8 m/s^2": ["9.8", r"9.8\,\mathrm{m/s^2}", r"9.8\,\mathrm{m}/\mathrm{s}^2", r"9.8\ \text{m}/\text{s}^{2}"],
    r"5\pi": [r"5\pi\text{ cm}^2", r"5\pi \text{ square inches}"],
    r"2\sqrt{3}": [r"2\sqrt{3}\text{ cm}"],
}
NOT_CONVERTED = {
    "5 m": ["500 cm", r"500\text{ cm}", "5 cm"],
    "5 hours": ["300 minutes", "5 minutes"],
    "37 °C": ["98.6 °F", "37 °F", r"37^\circ\text{F}"],
    "$5": ["€5", "500 cents"],
    "5 kg": [r"5\text{ lbs}"],
    "9.8 m/s": [r"9.8\,\mathrm{m}/\mathrm{s}^2"],
    "90°": [r"\frac{\pi}{2}\text{ rad}"],
    "5": [r"5\pi\text{ cm}", "-5 cm", r"5\text{ or }6"],
    r"5\pi": [r"5\pi\text{ or }6"],
}


@pytest.mark.parametrize(("expected", "given"), [(one, other) for one, others in UNITS.items() for other in others])
def test_a_unit_that_only_one_side_says_or_that_both_say_is_no_matter(expected, given):
    assert compare_math(expected, boxed(given)).right


@pytest.mark.parametrize(
    ("expected", "given", "right"),
    [
        ("5", "5 million", False),
        ("5 million", "5", False),
        ("5000000", r"5\text{ million}", True),
        ("24", "2 dozen eggs", True),
        ("500000", "5 hundred thousand", True),
        ("500", "5 hundred thousand", False),
        ("5", "5 millions", False),
        ("5", r"5\text{ million people}", False),
        ("5000000", r"5\text{ million people}", True),
        (r"\frac{1}{2}", r"\frac{1}{2} million", False),
        ("B", "(B) f(x) = 2", True),
        ("B", "(B) (C)", False),
        ("2", r"2\text{ squared}", False),
        ("5", "5 more than x", False),
        ("10", "10 base two", False),
        ("5 Hz", "5 kHz", False),
        ("5 km/h", "5 mph", False),
        ("B", "(B) or (C)", False),
        ("B", "(B) 12 or C", False),
        ("B", "(B) and a dog", True),
    ],
)
def test_words_that_change_an_answer_are_no_unit_and_no_remark(expected, given, right):
    assert compare_math(expected, boxed(given)).right is right


@pytest.mark.parametrize(
    ("expected", "given"), [(one, other) for one, others in NOT_CONVERTED.items() for other in others]
)
def test_units_that_differ_are_not_converted(expected, given):
    assert not compare_math(expected, boxed(given)).right


@pytest.mark.parametrize(
    ("expected", "summary", "right"),
    [
        ("5", "The length is 5 cm.", True),
        ("5", "It costs $5.", True),
        ("5", r"It costs \$5.", True),
        ("50", r"It is $50\%$.", True),
        ("90", r"The angle is $90^\circ$.", True),
        ("5 m", "It is 500 cm.", False),
    ],
)
def test_a_unit_is_no_matter_where_nothing_is_boxed(expected, summary, right):
    assert compare_math(expected, summary).right is right


@pytest.mark.parametrize(("expected", "given"), [(one, other) for one, others in SAME.items() for other in others])
def test_one_answer_may_be_typeset_in_many_ways(expected, given):
    assert compare_math(expected, boxed(given)).right


@pytest.mark.parametrize(("expected", "given"), [(one, other) for one, others in OTHER.items() for other in others])
def test_another_answer_is_wrong_however_alike_it_looks(expected, given):
    assert not compare_math(expected, boxed(given)).right


@pytest.mark.parametrize(
    "box", [r"\boxed 5", r"\fbox{5}", r"\boxed{$5$}", r"\boxed{5.}", r"\boxed{3} \boxed{5} \boxed{7"]
)
def test_any_kind_of_box_is_a_box(box):
    finding = compare_math("5", f"It is ${box}$.")
    assert finding.right
    assert finding.answer_from == "box"


@pytest.mark.parametrize(
    ("expected", "summary", "answer"),
    [
        ("1/2", r"The answer is $\frac{1}{2}$.", r"\frac{1}{2}"),
        ("42", "We get 6*7 = 42.", "42"),
        ("1000", "The total is 1,000 dollars.", "1,000 dollars"),
        ("B", "The answer is (B).", "B"),
        ("C", r"So the answer: $\text{C}$ it is", "C"),
        ("5", "**5**", "**5**"),
    ],
)
def test_without_a_box_math_verify_extracts_the_answer_and_that_is_recorded(expected, summary, answer):
    graded = grade_answer(Question("a", "?", expected), "", summary)
    assert graded == Graded(True, None, answer, "math", "extracted")


def test_without_a_box_and_without_mathematics_an_answer_is_wrong():
    assert grade_answer(Question("a", "?", "4"), "", "I do not know") == Graded(
        False, None, "I do not know", "math", "extracted"
    )


def test_numbers_with_units_that_differ_are_not_compared():
    assert pairs_to_compare("5 m", "5 cm") == []
    assert choice("E. coli") == "E"  # as a given answer; an expected one must be the letter alone


# --- hostile answers -------------------------------------------------------------------------------------------------
@pytest.fixture
def little_time(monkeypatch):
    """A process of its own for math-verify, which has two seconds by the clock."""
    process = LimitedProcess("math_process.py", "", wait=2.0)
    monkeypatch.setattr(mathematics, "_process_of", lambda pid: process)
    yield process
    process.close()


@pytest.mark.parametrize(
    "hostile", ["9^{9^{9^9}}", r"\binom{10^9}{5\cdot10^8}", "(" * 3000, r"\sum_{n=1}^{10^9} \frac{1}{n^n}"]
)
def test_a_hostile_expression_ends_in_seconds_and_is_wrong_with_a_warning(little_time, hostile):
    before = time.monotonic()
    with pytest.warns(UserWarning, match="problem 'a' could not be compared as mathematics"):
        graded = grade_answer(Question("a", "?", "5"), "", boxed(hostile))
    assert graded.correct is False
    assert time.monotonic() - before < 20
    assert grade_answer(Question("a", "?", "5"), "", boxed("10/2")).correct  # and the next one is graded


def test_the_processor_time_of_an_expression_is_limited_by_the_system(tmp_path):
    """Whoever asks may be gone: the process ends by itself."""
    script = tmp_path / "short.py"
    script.write_text(SCRIPT.read_text().replace("SECONDS = 5.0", "SECONDS = 0.5"))
    library = SCRIPT.with_name("math_process.py")
    question = json.dumps({"compare": [["5", "9^{9^{9^9}}"]]}) + "\n"
    command = [sys.executable, "-P", script, library]
    done = subprocess.run(command, input=question, capture_output=True, text=True, timeout=60)
    assert done.returncode < 0
    assert done.stdout == "{}\n"


def test_threads_may_grade_at_the_same_time():
    wrong = []

    def grade(number):
        wrong.extend(n for n in range(number, number + 10) if not right(str(n), boxed(f"{2 * n}/2")))

    threads = [threading.Thread(target=grade, args=(100 * number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_what_is_too_long_to_be_an_answer_is_not_read_as_mathematics():
    long = "1+" * 5000 + "1"
    assert not compare_math("5001", boxed(long)).right
    assert compare_math(long, boxed(long)).right


# --- graders ---------------------------------------------------------------------------------------------------------
def test_without_an_expected_answer_an_answer_is_neither_right_nor_wrong_and_nobody_graded_it():
    graded = grade_trace(TOKENIZER, Question("sum", "1+1?", None), answered("2"))
    assert (graded.correct, graded.answer, graded.grader, graded.record) == (None, "2", None, {})


def test_exact_text_is_exact():
    question = Question("a", "?", "1/2")
    assert grade_answer(question, "", boxed(" 1/2 "), "exact") == Graded(True, None, "1/2", "exact", "box")
    assert not grade_answer(question, "", boxed("0.5"), "exact").correct
    assert not grade_answer(question, "", "The answer is 1/2", "exact").correct


def test_an_answer_to_the_bundled_task_is_graded_by_its_rule():
    (question,) = task_questions("test", [3], 1)
    response = make_problem("test", 0, 3).response
    summary = response.partition("</think>")[2]
    graded = grade_answer(question, response, summary)
    assert (graded.correct, graded.error, graded.grader) == (True, None, "task")
    assert grade_answer(question, "I do not know.", "I do not know.").error == "malformed"


@pytest.mark.parametrize("name", ["math", "exact"])
def test_the_bundled_task_takes_no_other_grader(name):
    with pytest.raises(InputError, match="the bundled task is graded by its own rule"):
        grade_answer(task_questions("test", [3], 1)[0], "", "", name)


@pytest.mark.parametrize(("name", "said"), [("task", "is for problems of a task"), ("maths", "'exact', 'math'")])
def test_a_file_of_problems_takes_only_graders_that_are_there(name, said):
    with pytest.raises(InputError, match=said):
        grade_answer(Question("a", "?", "1"), "", "1", name)


@pytest.fixture
def my_grader():
    @grader("first-word")
    def first_word(question, summary):
        if question.answer == "raise":
            raise KeyError("no such word")
        return summary.split()[0] == question.answer if question.answer != "neither" else "perhaps"

    yield "first-word"
    GRADERS.pop("first-word", None)


def test_a_grader_of_ones_own_is_asked_by_its_name(my_grader):
    assert grade_answer(Question("a", "?", "Yes"), "", "Yes indeed", my_grader) == Graded(
        True, None, "Yes indeed", my_grader, "summary"
    )
    assert not grade_answer(Question("a", "?", "No"), "", "Yes indeed", my_grader).correct


@pytest.mark.parametrize(("answer", "said"), [("raise", "KeyError: 'no such word'"), ("neither", "returned 'perhaps'")])
def test_a_grader_that_fails_is_named_with_the_problem(my_grader, answer, said):
    with pytest.raises(InputError, match=f"grader 'first-word' .*problem 'a'.*{said}|{said}.*problem 'a'"):
        grade_answer(Question("a", "?", answer), "", "Yes", my_grader)


@pytest.mark.parametrize("name", ["", "two words", "math", "task", 3])
def test_a_grader_needs_a_name_that_is_free(name):
    with pytest.raises(InputError, match="grader"):
        grader(name)(lambda question, summary: True)


# --- where graders are named -----------------------------------------------------------------------------------------
@pytest.fixture
def problems(tmp_path):
    path = tmp_path / "problems.jsonl"
    path.write_text('{"id": "a", "prompt": "1+1?", "answer": "2"}\n{"id": "b", "prompt": "2+2?"}\n')
    return path


def test_a_trace_says_who_graded_it_and_from_what(reasoner, problems, tmp_path):
    out = tmp_path / "t.jsonl"
    assert main(["generate", str(problems), "--out", str(out), "--max-new-tokens", "3", "--grader", "exact"]) == 0
    graded, ungraded = read_traces(out, TOKENIZER)
    assert graded.correct is False
    assert (graded.meta["grader"], graded.meta["answer_from"]) == ("exact", "summary")
    assert ungraded.correct is None
    assert "grader" not in ungraded.meta
    assert main(["generate", str(problems), "--out", str(tmp_path / "m.jsonl"), "--max-new-tokens", "3"]) == 0
    assert read_traces(tmp_path / "m.jsonl", TOKENIZER)[0].meta["grader"] == "math"


def test_a_file_begun_with_one_grader_does_not_go_on_with_another(reasoner, tmp_path, monkeypatch):
    questions = [Question("a", "1+1?", "2"), Question("b", "2+2?", "4")]
    decoding = Decoding(2, batch_size=1)

    class StopError(Exception):
        pass

    def stop(*given):
        raise StopError

    monkeypatch.setattr("stepsal.generation.files.write_traces", stop)
    with pytest.raises(StopError):
        generate_file(reasoner, questions, tmp_path / "t.jsonl", decoding, grader="exact", progress=False)
    monkeypatch.undo()
    with pytest.raises(FileError, match="grader 'exact' -> 'math'"):
        generate_file(reasoner, questions, tmp_path / "t.jsonl", decoding, progress=False)
    assert len(generate_file(reasoner, questions, tmp_path / "t.jsonl", decoding, grader="exact", progress=False)) == 2


def test_the_rows_of_a_sweep_say_who_graded(problems, tmp_path, my_grader):
    problems.write_text(problems.read_text().replace('"2+2?"', '"2+2?", "answer": "4"'))
    said = {"decoding": {"max_new_tokens": 2}, "grid": {"parts": "none"}}
    for name, expected in ((None, "math"), ("exact", "exact"), (my_grader, my_grader)):
        config = said | {"problems": {"file": str(problems)} | ({"grader": name} if name else {})}
        rows = sweep(config, out=tmp_path / f"{name}", workers=1, progress=False)
        assert rows["grader"].unique().tolist() == [expected]
        record = json.loads((tmp_path / f"{name}" / "config.json").read_text())
        assert record["config"]["problems"]["grader"] == expected
    rows = sweep(said | {"problems": {"count": 2}}, out=tmp_path / "task", workers=1, progress=False)
    assert rows["grader"].unique().tolist() == ["task"]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"grader": "math"}, "grader='math' is for other problems"),
        ({"file": "p.jsonl", "grader": "maths"}, "Did you mean 'math'?"),
        ({"file": "p.jsonl", "grader": 3}, "must be a text in quotes"),
    ],
)
def test_a_configuration_names_a_grader_that_fits(table, said, tmp_path):
    with pytest.raises(InputError) as error:
        sweep({"problems": table}, out=tmp_path / "out")
    assert said in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_sweep_that_exact_text_graded_is_not_gone_on_with_by_mathematics(problems, tmp_path):
    problems.write_text('{"prompt": "1+1?", "answer": "2"}\n')
    config = {
        "decoding": {"max_new_tokens": 2},
        "grid": {"parts": "none"},
        "problems": {"file": str(problems), "grader": "exact"},
    }
    sweep(config, out=tmp_path / "out", workers=1, progress=False)
    path = tmp_path / "out" / "config.json"
    record = json.loads(path.read_text())
    del record["config"]["problems"]["grader"]  # as an older version wrote it
    path.write_text(json.dumps(record))
    sweep(config, out=tmp_path / "out", workers=1, progress=False)
    del config["problems"]["grader"]
    with pytest.raises(FileError, match=r'\n-   "grader": "exact",\n\+   "grader": "math"'):
        sweep(config, out=tmp_path / "out", workers=1, progress=False)


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
        assert one.meta["grader"] == other.meta["grader"] == "task"


def test_groups_are_made_anew_from_a_file_of_grades_and_the_maps_stay_as_they_are(reasoner, tmp_path, capsys):
    from stepsal import save_step_maps

    traces = [replace(trace, correct=None) for trace in answer_problems(reasoner, 6, 2, progress=False)]
    paths = save_step_maps(reasoner, traces, tmp_path, layers=[0, 1, 6, 7], progress=False)
    before = {path: (path.read_bytes(), os.stat(path).st_mtime_ns) for path in paths}
    command = ["compare", str(tmp_path), "--resamples", "99"]
    assert main(command) == 2
    assert "whether trace 'test-2-0' is correct is not known" in capsys.readouterr().err
    for right in ({0, 1, 2}, {0, 3, 4, 5}):
        grades = [{"id": trace.id, "correct": number in right} for number, trace in enumerate(traces)]
        path = tmp_path / "GRADES.jsonl"
        path.write_text("\n".join(map(json.dumps, grades)) + "\n")
        assert main([*command, "--traces", str(path)]) == 0
        compared = json.loads((tmp_path / "comparison.json").read_text())["meta"]["traces"]
        assert set(compared[0]) == {traces[number].id for number in right}
        assert set(compared[0]) | set(compared[1]) == {trace.id for trace in traces}
    assert before == {path: (path.read_bytes(), os.stat(path).st_mtime_ns) for path in paths}


def test_rows_that_no_grader_is_named_in_are_still_read_and_gone_on_with(tmp_path):
    """As versions before 0.2.0 wrote them."""
    import pyarrow.parquet as parquet

    config = {
        "problems": {"count": 4},
        "decoding": {"max_new_tokens": 2, "batch_size": 2},
        "grid": {"parts": "none"},
    }
    whole = sweep(config, out=tmp_path, workers=1, progress=False)
    shards = sorted(tmp_path.glob("rows/*.parquet"))
    for path in shards:
        parquet.write_table(
            parquet.read_table(path).drop_columns(["grader", "answer_from"]).replace_schema_metadata(None), path
        )
    shards[0].unlink()
    (tmp_path / "results.parquet").unlink()
    record = json.loads((tmp_path / "config.json").read_text())
    del record["config"]["problems"]["grader"]
    (tmp_path / "config.json").write_text(json.dumps(record))
    rows = sweep(config, out=tmp_path, workers=1, progress=False)
    assert rows["answer"].tolist() == whole["answer"].tolist()
    assert rows["grader"].isna().tolist() == [False, False, True, True]
