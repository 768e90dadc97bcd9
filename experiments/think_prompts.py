"""Problems for a model that is no reasoning model, asked to think between markers: `python -m experiments.think_prompts`.

In: a task of reasoning-gym, a seed, a number of problems. Out: a JSONL file for `stepsal generate FILE --format think`. Each
problem is a chat in which two worked examples show the form: the thinking between `<think>` and `</think>`, a step in each
paragraph, then the answer in a box. An ordinary chat model that is only told the form, and not shown it, writes no markers.
"""

import argparse
import json
from pathlib import Path

from stepsal.files import atomic_path

INSTRUCTION = (
    "Solve the problem. Think first, between <think> and </think>: one short step in each paragraph, with a blank line between "
    "paragraphs. Then give the answer in \\boxed{}.\n\n"
)
EXAMPLES = (
    (
        "A baker sells 12 loaves a day at $3 each. Flour costs him $10 a day. How much does he earn in 5 days?",
        "<think>\nThe baker takes 12 * 3 = 36 dollars a day.\n\n"
        "Flour costs 10 dollars, so he earns 36 - 10 = 26 dollars a day.\n\n"
        "In 5 days he earns 5 * 26 = 130 dollars.\n</think>\n\nHe earns \\boxed{130} dollars.",
    ),
    (
        "Lena has 40 stamps. She gives a quarter of them to Tom, who had 7 stamps. How many stamps does Tom have now?",
        "<think>\nA quarter of 40 stamps is 40 / 4 = 10 stamps.\n\n"
        "Tom had 7 stamps, so now he has 7 + 10 = 17 stamps.\n</think>\n\nTom has \\boxed{17} stamps.",
    ),
)


def chat(question: str) -> list[dict[str, str]]:
    """The messages that ask a question.

    >>> [message["role"] for message in chat("What is 2+2?")]
    ['user', 'assistant', 'user', 'assistant', 'user']
    """
    messages = []
    for asked, answered in EXAMPLES:
        messages += [{"role": "user", "content": INSTRUCTION + asked}, {"role": "assistant", "content": answered}]
    return [*messages, {"role": "user", "content": INSTRUCTION + question}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="gsm_symbolic", help="a task of reasoning-gym (default: %(default)s)")
    parser.add_argument("--size", type=int, default=200, help="how many problems (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the problems (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="a JSONL file")
    given = parser.parse_args()
    from reasoning_gym import create_dataset

    problems = create_dataset(given.task, size=given.size, seed=given.seed)
    lines = [
        {
            "id": f"{given.task}-{given.seed}-{index}",
            "messages": chat(problem["question"]),
            "answer": str(problem["answer"]),
        }
        for index, problem in enumerate(problems)
    ]
    with atomic_path(given.out) as temporary:
        temporary.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    print(f"{given.out}   {len(lines)} problems of {given.task}, seed {given.seed}")


if __name__ == "__main__":
    main()
