"""Problems for a model that is no reasoning model, asked to think between markers: `python -m experiments.think_prompts`.

In: a task of reasoning-gym, a seed, a number of problems. Out: a JSONL file for `stepsal generate FILE --format think`. Each
problem is a chat in which a worked example shows the form: the thinking between `<think>` and `</think>`, a step in each
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
EXAMPLE = (
    "Lena has 40 stamps. She gives a quarter of them to Tom, who had 7 stamps. Then each of them buys 5 more stamps. How many "
    "stamps do they have together now?",
    "<think>\nLena has 40 stamps at the start.\n\n"
    "A quarter of 40 stamps is 40 / 4 = 10 stamps, which Lena gives to Tom.\n\n"
    "So Lena keeps 40 - 10 = 30 stamps.\n\n"
    "Tom had 7 stamps and now has 7 + 10 = 17 stamps.\n\n"
    "Lena buys 5 more stamps, so she has 30 + 5 = 35 stamps.\n\n"
    "Tom buys 5 more stamps, so he has 17 + 5 = 22 stamps.\n\n"
    "Together they have 35 + 22 = 57 stamps.\n</think>\n\n"
    "They have \\boxed{57} stamps together.",
)


def chat(question: str) -> list[dict[str, str]]:
    """The messages that ask a question.

    >>> [message["role"] for message in chat("What is 2+2?")]
    ['user', 'assistant', 'user']
    """
    asked, answered = EXAMPLE
    return [
        {"role": "user", "content": INSTRUCTION + asked},
        {"role": "assistant", "content": answered},
        {"role": "user", "content": INSTRUCTION + question},
    ]


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
