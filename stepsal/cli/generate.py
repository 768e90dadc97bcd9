"""`stepsal generate`."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepsal.cli import options
from stepsal.cli.process import prepare_process
from stepsal.errors import InputError

if TYPE_CHECKING:
    from stepsal.generation.questions import Question

HELP = "answers as traces, with StepFlow or without"


def add(parser: argparse.ArgumentParser) -> None:
    from stepsal.cli.interventions import add_interventions

    options.describe(
        parser,
        run,
        description="Answer problems and write the traces, graded where the answers are known. Run again after an interrupt: "
        "finished answers are kept.",
        example="stepsal generate 20 -m bundled -o traces.jsonl --oeb --smi",
        interrupted=options.GOES_ON,
    )
    parser.add_argument(
        "problems",
        nargs="?",
        metavar="PROBLEMS",
        help='a JSONL file of {"prompt" or "messages", "answer"?, "id"?}, or how many test problems of the bundled task',
    )
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="TRACES.jsonl", help="the file to write")
    parser.add_argument(
        "-m", "--model", default="bundled", metavar="NAME", help=f"{options.MODELS} (default: %(default)s)"
    )
    parser.add_argument(
        "--chat",
        action="store_true",
        help="put prompts that are texts into the model's chat template, as what a user says (default: as they are)",
    )
    parser.add_argument(
        "--grader",
        metavar="NAME",
        help="math, exact (the same text), or one of your own (default: a task's own grader, else math)",
    )
    _add_decoding(parser)
    _add_task(parser)
    add_interventions(parser)
    options.add_segmentation(parser)
    options.add_placement(parser)
    options.add_trace_workers(parser)
    options.add_plugins(parser)


def _add_decoding(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("decoding")
    group.add_argument(
        "--max-new-tokens",
        type=options.positive,
        metavar="N",
        help="the longest answer (default: 512, or what the bundled task needs)",
    )
    group.add_argument(
        "--batch-size", type=options.positive, default=8, metavar="N", help="answers at a time (default: %(default)s)"
    )
    group.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 is greedy (default: %(default)s)")
    group.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="the part of the probability to sample from (default: %(default)s)",
    )
    group.add_argument(
        "--samples",
        type=options.positive,
        default=1,
        metavar="N",
        help="answers to each problem (default: %(default)s)",
    )
    options.add_seed(parser)
    options.add_quiet(parser)


def _add_task(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("problems of a task of reasoning-gym (`pip install 'stepsal[tasks]'`)")
    group.add_argument("--task", metavar="NAME", help="such as gsm_symbolic (default: none; PROBLEMS says which)")
    group.add_argument("--size", type=options.positive, metavar="N", help="how many problems (default: 100)")
    group.add_argument(
        "--task-seed", type=int, metavar="N", help="of the problems (default: 0); --seed is of the answers"
    )
    group.add_argument(
        "--task-option",
        type=_name_and_value,
        action="append",
        metavar="NAME=VALUE",
        help="of the task itself, the value as in JSON; may be repeated (default: the task's own)",
    )
    group.add_argument(
        "--instruction",
        metavar="TEXT",
        help="what stands after each problem; '' for nothing (default: reason step by step in paragraphs, box the answer)",
    )


def _name_and_value(text: str) -> tuple[str, Any]:
    """A task's option: the value is read as JSON, and is a text where it is none."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE, such as min_terms=3")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _questions(given: argparse.Namespace) -> "list[Question]":
    """The problems that the arguments name. Raises `InputError` where they name none, or two kinds at once."""
    from stepsal.generation.gym import INSTRUCTION, SIZE, gym_questions
    from stepsal.generation.questions import read_questions, task_questions
    from stepsal.reasoner import DEFAULT_LENGTH

    if (given.problems is None) == (given.task is None):
        what = "no problems" if given.task is None else f"both PROBLEMS {given.problems!r} and --task {given.task}"
        raise InputError(f"{what}: give a JSONL file, how many problems of the bundled task, or --task NAME")
    if given.task is not None:
        return gym_questions(
            given.task,
            given.size or SIZE,
            given.task_seed or 0,
            dict(given.task_option or ()),
            instruction=INSTRUCTION if given.instruction is None else given.instruction,
            own_grader=given.grader in (None, "task"),
        )
    for name in ("size", "task_seed", "task_option", "instruction"):
        if getattr(given, name) is not None:
            raise InputError(f"--{name.replace('_', '-')} does nothing without --task: leave it out, or name a task")
    if not given.problems.isdecimal():
        return read_questions(Path(given.problems), graded=False)
    if int(given.problems) == 0:
        raise InputError("0 problems: give how many, at least 1, or a JSONL file")
    return task_questions("test", [DEFAULT_LENGTH], int(given.problems))


def _has_chat_template(name: str, model: Any) -> bool:
    """Whether the tokenizer has one: that of a loaded model, or of one that workers are to load."""
    from stepsal.models.loading import load_tokenizer

    tokenizer = getattr(model, "tokenizer", None) or load_tokenizer(name)
    return bool(getattr(tokenizer, "chat_template", None))


def run(given: argparse.Namespace) -> None:
    prepare_process(given.threads)
    from stepsal.cli.interventions import chosen_interventions
    from stepsal.generation.files import generate_file, refuse_existing
    from stepsal.generation.generate import Decoding
    from stepsal.generation.grading import check_grader
    from stepsal.generation.questions import as_chat, tokens_needed
    from stepsal.reasoner import DEFAULT_LENGTH

    # Everything that can be checked without the model is checked before minutes of loading weights.
    interventions = chosen_interventions(given)
    options.check_segmentation(given.format, given.steps)
    bundled = given.problems is not None and given.problems.isdecimal()
    check_grader(given.grader, bundled, own=bundled or given.task is not None)
    options.check_placement(given)
    options.check_heads(interventions, given.model)
    refuse_existing(given.out)
    options.check_out(given.out)
    questions = _questions(given)
    room = given.max_new_tokens or (tokens_needed([DEFAULT_LENGTH]) if bundled else 512)
    decoding = Decoding(room, given.batch_size, given.temperature, given.top_p, given.samples, given.seed)
    if given.chat:
        questions = [as_chat(question) for question in questions]
    model = options.model_or_one_to_load(given)
    if any(isinstance(question.prompt, str) for question in questions) and _has_chat_template(given.model, model):
        print(
            "stepsal: these prompts are texts, and go to the model as they are, though it has a chat template: give --chat, or "
            "'messages' in the place of 'prompt', to apply it",
            file=sys.stderr,
        )
    traces = generate_file(
        model,
        questions,
        given.out,
        decoding,
        interventions,
        format=given.format,
        steps=given.steps,
        grader=given.grader,
        engine=given.engine,
        workers=given.workers,
        address=given.address,
        progress=not given.quiet,
    )
    graded = [trace.correct for trace in traces if trace.correct is not None]
    share = f", {sum(graded)} of {len(graded)} right ({sum(graded) / len(graded):.1%})" if graded else ""
    print(f"{given.out}   {len(traces)} trace{'s' * (len(traces) != 1)}{share}")
