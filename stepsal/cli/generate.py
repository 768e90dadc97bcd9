"""`stepsal generate`."""

import argparse
import sys
from pathlib import Path

from stepsal.cli import options
from stepsal.cli.interventions import chosen_interventions, intervention_options
from stepsal.cli.process import prepare_process
from stepsal.errors import InputError


def add(commands: "options.Commands") -> None:
    parser = commands.add_parser(
        "generate",
        parents=[
            options.seed(),
            intervention_options(),
            options.segmentation(),
            options.placement(),
            options.plugins(),
        ],
        help="answers as traces, with StepFlow or without",
        description="Answer problems and write the traces, graded where the answers are known. Run again after an interrupt.",
    )
    parser.add_argument(
        "problems",
        metavar="PROBLEMS",
        help='a JSONL file of {"prompt" or "messages", "answer"?, "id"?}, or how many test problems of the bundled task',
    )
    parser.add_argument(
        "--chat",
        action="store_true",
        help="put prompts that are texts into the model's chat template, as what a user says",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="TRACES.jsonl")
    parser.add_argument(
        "--model", default=None, metavar="NAME", help=f"{options.MODELS} (default: the bundled reasoner)"
    )
    parser.add_argument(
        "--max-new-tokens", type=options.positive, default=None, help="default: 512, or what the task needs"
    )
    parser.add_argument("--batch-size", type=options.positive, default=8)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--samples", type=options.positive, default=1, help="answers to each problem")
    parser.add_argument(
        "--grader",
        default=None,
        metavar="NAME",
        help="math, exact, or one of your own (default: math; the bundled task has its own rule)",
    )
    parser.set_defaults(run=run, interrupted=options.GOES_ON)


def run(given: argparse.Namespace) -> None:
    prepare_process()
    from stepsal.generation.files import generate_file, refuse_existing
    from stepsal.generation.generate import Decoding
    from stepsal.generation.grading import check_grader
    from stepsal.generation.questions import as_chat, read_questions, task_questions, tokens_needed
    from stepsal.reasoner import DEFAULT_LENGTH

    # Everything that can be checked without the model is checked before minutes of loading weights.
    interventions = chosen_interventions(given)
    options.check_segmentation(given.format, given.steps)
    check_grader(given.grader, bundled=given.problems.isdecimal())
    options.check_placement(given)
    max_new_tokens = given.max_new_tokens
    if given.problems.isdecimal():
        if int(given.problems) == 0:
            raise InputError("0 problems: give how many, at least 1, or a JSONL file")
        questions = task_questions("test", [DEFAULT_LENGTH], int(given.problems))
        max_new_tokens = max_new_tokens or tokens_needed([DEFAULT_LENGTH])
    else:
        questions = read_questions(Path(given.problems), graded=False)
    options.check_heads(interventions, given.model)
    refuse_existing(given.out)
    options.check_out(given.out)
    decoding = Decoding(
        max_new_tokens or 512, given.batch_size, given.temperature, given.top_p, given.samples, given.seed
    )
    if given.chat:
        questions = [as_chat(question) for question in questions]
    model = options.load_placed_model(given)
    if any(isinstance(question.prompt, str) for question in questions) and getattr(
        model.tokenizer, "chat_template", None
    ):
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
    )
    graded = [trace.correct for trace in traces if trace.correct is not None]
    share = f", {sum(graded)} of {len(graded)} right ({sum(graded) / len(graded):.1%})" if graded else ""
    print(f"{given.out}   {len(traces)} trace{'s' * (len(traces) != 1)}{share}")
