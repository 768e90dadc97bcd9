"""All right answers of a file of traces, and as many wrong ones as wanted: `python -m experiments.right_and_wrong`.

In: a file of graded traces. Out: a file of all right traces and of the first wrong ones, in their order. Where few traces are
right, more wrong ones make a comparison dearer and hardly sharper.
"""

import argparse
import json
from pathlib import Path

from stepsal.files import atomic_path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", type=Path, metavar="TRACES.jsonl")
    parser.add_argument("--wrong", type=int, required=True, help="how many wrong ones")
    parser.add_argument("--out", type=Path, required=True, metavar="TRACES.jsonl")
    given = parser.parse_args()
    lines = given.traces.read_text(encoding="utf-8").splitlines()
    correct = [json.loads(line).get("correct") for line in lines]
    right, wrong = (
        [line for line, is_right in zip(lines, correct, strict=True) if is_right is it] for it in (True, False)
    )
    if len(wrong) < given.wrong:
        parser.error(f"{given.traces} holds {len(wrong)} wrong traces: --wrong {given.wrong} is more than that")
    kept = {*right, *wrong[: given.wrong]}
    with atomic_path(given.out) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines if line in kept), encoding="utf-8")
    print(f"{given.out}   {len(right)} right traces and {given.wrong} of {len(wrong)} wrong ones, of {len(lines)}")


if __name__ == "__main__":
    main()
