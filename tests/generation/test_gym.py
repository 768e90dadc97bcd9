"""Problems of reasoning-gym's tasks: the same in every run, graded by the tasks, and never mixed with others."""

import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace

import pytest

from stepsal import InputError, read_traces, sweep
from stepsal.cli import main
from stepsal.errors import FileError
from stepsal.generation import gym
from stepsal.generation.grading import choose_grader, grade_answer
from stepsal.generation.gym import INSTRUCTION, gym_questions
from stepsal.generation.limited import LimitedProcess
from stepsal.generation.questions import GymProblem, Question

SHORT = {"decoding": {"max_new_tokens": 2}, "grid": {"parts": "none"}}


def boxed(text):
    return f"So it is $\\boxed{{{text}}}$."


# --- the problems ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "task", ["gsm_symbolic", "list_functions", "acre"]
)  # the second draws from global random numbers
def test_the_same_task_seed_size_and_options_give_the_same_problems_in_another_process(task):
    program = f"from stepsal.generation.gym import gym_questions; print([q.id for q in gym_questions({task!r}, 3, 7)])"
    environment = os.environ | {"PYTHONHASHSEED": "5"}
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert other.stdout.strip() == str([question.id for question in gym_questions(task, 3, 7)])


def test_another_seed_other_options_and_another_number_change_the_problems_that_depend_on_them():
    def ids(*given):
        return [question.id for question in gym_questions("chain_sum", *given)]

    assert ids(3, 0)[:2] == ids(2, 0)
    assert not set(ids(3, 0)) & set(ids(3, 1))
    assert not set(ids(3, 0)) & set(ids(3, 0, {"min_terms": 5, "max_terms": 5}))


def test_the_prompt_is_the_problem_and_an_instruction_that_can_be_replaced():
    (default,), (own,), (none,) = (
        gym_questions("chain_sum", 1, instruction=text) for text in (INSTRUCTION, "Box it.", "")
    )
    problem = none.prompt[0]["content"]
    assert default.prompt == [{"role": "user", "content": f"{problem}\n\n{INSTRUCTION}"}]
    assert own.prompt == [{"role": "user", "content": f"{problem}\n\nBox it."}]
    assert default.id == own.id == none.id


@pytest.mark.parametrize(
    ("task", "options", "said"),
    [
        ("gsm_symbolc", {}, "no task 'gsm_symbolc': did you mean 'gsm_symbolic'"),
        ("zzzzzz", {}, "it has ab, acre"),
        ("chain_sum", {"min_term": 3}, "no option 'min_term': did you mean 'min_terms'"),
        ("chain_sum", {"seed": 3}, "seed is no option of the task: give it beside the options"),
        ("chain_sum", {"min_terms": 0}, "makes no problem 0 of options .*min_terms must be positive"),
        ("game_of_life_halting", {}, "calls any answer right"),
    ],
)
def test_what_a_task_does_not_take_is_said_with_the_fix(task, options, said):
    with pytest.raises(InputError, match=said):
        gym_questions(task, 1, 0, options)


def test_without_the_package_the_message_names_what_installs_it(monkeypatch):
    def missing(name):
        raise gym.PackageNotFoundError(name)

    monkeypatch.setattr(gym, "version", missing)
    with pytest.raises(InputError, match=r"pip install 'stepsal\[tasks\]'"):
        gym_questions("gsm_symbolic", 1)


# --- the grades ------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def sums():
    return gym_questions("chain_sum", 1)[0]


@pytest.mark.parametrize("spelt", ["{}", r"\text{{{}}}", "{}.", "${}$"])
def test_the_task_grades_the_last_box_typesetting_aside(sums, spelt):
    assert choose_grader([sums], None) == "task"
    graded = grade_answer(sums, "", boxed("0") + boxed(spelt.format(sums.answer)))
    assert (graded.correct, graded.score, graded.answer_from, graded.grader) == (True, 1.0, "box", "task")


def test_an_answer_in_tags_is_found_and_one_that_stands_nowhere_is_wrong(sums):
    graded = grade_answer(sums, "", f"<answer> {sums.answer} </answer>")
    assert (graded.correct, graded.answer_from, graded.answer) == (True, "tag", sums.answer)
    graded = grade_answer(sums, "", sums.answer)  # of a longer text a grader takes what it likes
    assert (graded.correct, graded.answer_from, graded.answer) == (False, "none", "")


def test_thousands_are_one_number_however_they_are_typeset():
    question = next(each for each in gym_questions("gsm_symbolic", 40) if len(each.answer) == 5)
    spelt = f"{int(question.answer):,}"
    for answer in (spelt, spelt.replace(",", "{,}"), rf"\${spelt}"):
        assert grade_answer(question, "", boxed(answer)).correct, answer


def test_only_a_score_of_one_is_right_and_every_score_is_recorded():
    question = gym_questions("gsm_symbolic", 1)[0]
    graded = grade_answer(question, "", boxed("7"))
    assert (graded.correct, graded.record["score"]) == (False, 0.01)
    assert "score" not in grade_answer(question, "", boxed("7"), "math").record


def test_a_task_without_one_answer_is_graded_by_what_its_problem_holds():
    question = gym_questions("graph_color", 1)[0]
    assert question.answer is None
    assert grade_answer(question, "", boxed("{}")).correct is False
    with pytest.raises(InputError, match="only the task can grade"):
        gym_questions("graph_color", 1, own_grader=False)


def test_an_answer_that_the_grader_cannot_read_is_wrong_with_a_warning():
    question = gym_questions("prime_factorization", 1)[0]
    with pytest.warns(UserWarning, match="could not read the answer to problem .* counts as wrong"):
        assert grade_answer(question, "", boxed("banana")).correct is False
    assert grade_answer(question, "", boxed(question.answer)).correct


def test_grading_can_be_done_again_from_what_a_trace_says(sums):
    again = Question("any", "any", None, gym=GymProblem(**json.loads(json.dumps(vars(sums.gym)))))
    assert grade_answer(again, "", boxed(sums.answer)).correct


def test_a_problem_that_is_not_made_again_is_not_graded(sums):
    other = replace(sums, gym=replace(sums.gym, sha256="0" * 64, version="0.0.1"))
    with pytest.raises(InputError, match=r"made by reasoning-gym 0\.0\.1.*pip install reasoning-gym==0\.0\.1"):
        grade_answer(other, "", boxed(sums.answer))


@pytest.mark.parametrize("hostile", ["9**9**9**9", "(" * 3000 + "1" + ")" * 3000])
def test_a_hostile_answer_is_wrong_and_the_next_one_is_graded(monkeypatch, hostile):
    process = LimitedProcess("task_process.py", "", wait=20.0)
    monkeypatch.setattr(gym, "_process_of", lambda pid: process)
    question = gym_questions("countdown", 1)[0]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # sympy may or may not read it, in time or not
            assert not grade_answer(question, "", boxed(hostile)).correct
        assert grade_answer(question, "", boxed(question.answer)).correct
    finally:
        process.close()


def test_an_answer_that_is_a_program_writes_nothing(tmp_path):
    there = tmp_path / "there"
    question = gym_questions("countdown", 1)[0]
    for program in (
        f"__import__('os').system('touch {there}')",
        f"open('{there}', 'w')",
        f"exec(\"open('{there}', 'w')\")",
    ):
        assert not grade_answer(question, "", f"<answer>{program}</answer>").correct
    assert not there.exists()


# --- generate and sweeps ---------------------------------------------------------------------------------------------
def test_the_command_writes_graded_traces_that_say_their_problem(tmp_path, reasoner):
    out = tmp_path / "traces.jsonl"
    task = ["--task", "chain_sum", "--size", "2", "--task-seed", "3", "--task-option", "min_terms=4"]
    assert main(["generate", *task, "--max-new-tokens", "2", "--out", str(out)]) == 0
    traces = read_traces(out, reasoner.tokenizer)
    questions = gym_questions("chain_sum", 2, 3, {"min_terms": 4})
    assert [trace.id for trace in traces] == [question.id for question in questions]
    assert [trace.meta["task"] for trace in traces] == [vars(question.gym) for question in questions]
    assert {trace.meta["grader"] for trace in traces} == {"task"}
    assert INSTRUCTION in traces[0].prompt


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["3", "--task", "chain_sum"], "both PROBLEMS '3' and --task chain_sum"),
        ([], "no problems: give a JSONL file"),
        (["3", "--size", "2"], "--size does nothing without --task"),
        (["3", "--instruction", ""], "--instruction does nothing without --task"),
    ],
)
def test_the_command_says_which_problems_it_cannot_tell(given, said, tmp_path, capsys):
    assert main(["generate", *given, "--out", str(tmp_path / "t.jsonl")]) == 2
    assert said in capsys.readouterr().err


def test_a_run_that_was_begun_with_another_version_is_refused(tmp_path, monkeypatch, reasoner):
    from stepsal.generation import files
    from stepsal.generation.generate import Decoding

    def stop(*_, **__):
        raise KeyboardInterrupt

    out, decoding, questions = tmp_path / "t.jsonl", Decoding(max_new_tokens=2), gym_questions("chain_sum", 2)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(files, "write_traces", stop)
        files.generate_file(reasoner, questions, out, decoding, progress=False)
    other = [replace(each, gym=replace(each.gym, version="0.1.26")) for each in questions]
    with pytest.raises(FileError, match="begun with other settings(?s:.*)0.1.26"):
        files.generate_file(reasoner, other, out, decoding, progress=False)
    assert len(files.generate_file(reasoner, questions, out, decoding, progress=False)) == 2


def test_a_sweep_asks_a_task_and_keeps_scores_and_the_version(tmp_path, monkeypatch):
    config = SHORT | {"problems": {"task": "chain_sum", "size": 2, "seed": 1, "options": {"min_terms": 3}}}
    rows = sweep(config, out=tmp_path, workers=1, progress=False)
    assert set(rows["problem"]) == {question.id for question in gym_questions("chain_sum", 2, 1, {"min_terms": 3})}
    assert rows["grader"].unique().tolist() == ["task"]
    assert rows["score"].between(0, 1).all()
    record = json.loads((tmp_path / "config.json").read_text())
    assert record["problems"]["task"]["reasoning-gym"] == gym.gym_version()
    assert sweep(config, out=tmp_path, workers=1, progress=False).equals(rows)
    monkeypatch.setattr(gym, "gym_version", lambda: "0.1.26")
    with pytest.raises(FileError, match="another configuration(?s:.*)0.1.26"):
        sweep(config, out=tmp_path, workers=1, progress=False)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"task": "chain_sum", "file": "p.jsonl"}, "has file='p.jsonl' and 'task'"),
        ({"task": "chain_sum", "count": 2}, "a task's number of problems is its 'size'"),
        ({"size": 2}, "'size' does nothing without a 'task'"),
        ({"file": "p.jsonl", "grader": "task"}, "grader='task' is for problems of a task"),
        ({"task": "chain_summ"}, "did you mean 'chain_sum'"),
    ],
)
def test_a_configuration_says_one_kind_of_problems(table, said, tmp_path):
    with pytest.raises(InputError) as error:
        sweep({"problems": table}, out=tmp_path / "out", workers=1)
    assert said in str(error.value)


def test_a_sweep_without_a_task_has_the_record_that_it_had(tmp_path):
    sweep(SHORT | {"problems": {"count": 1}}, out=tmp_path, workers=1, progress=False)
    problems = json.loads((tmp_path / "config.json").read_text())["config"]["problems"]
    assert set(problems) == {"split", "length", "count", "start", "file", "grader"}
