"""What reasoning-gym answers, in a process of its own (`stepsal.generation.limited_process`, which runs this file).

In: questions of `stepsal.generation.gym`. Out: replies. TASK stands for `"task": NAME, "options": {...}`; seed and size are
options, too.

    {"tasks": true}                            -> {"tasks": ["ab", "acre", ...]}
    {"options_of": NAME}                       -> {"options": ["difficulty", "seed", "size"]}
    {"make": 3, TASK}                          -> {"question": "...", "answer": "4", "sha256": "..."}
    {"score": ["5", "4"], "index": 3, TASK}    -> {"score": 1.0, "sha256": "..."}: the best of several spellings of one answer

Some tasks draw from Python's global random numbers, and the order of a set may be part of a problem: both are fixed here (the
hash seed by whoever starts this process), so that a problem is the same in every run.
"""

import dataclasses
import hashlib
import json
import random
from collections.abc import Callable
from functools import lru_cache
from typing import Any


def load() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The function that answers a question. Raises `ImportError` without reasoning-gym."""
    import reasoning_gym  # noqa: F401

    return _answer


def _answer(question: dict[str, Any]) -> dict[str, Any]:
    from reasoning_gym.factory import DATASETS

    if "tasks" in question:
        return {"tasks": sorted(DATASETS)}
    if "options_of" in question:
        _, config = DATASETS[question["options_of"]]
        return {"options": [field.name for field in dataclasses.fields(config)]}
    name, options = question["task"], json.dumps(question["options"], sort_keys=True)
    if "make" in question:
        entry, sha256 = _entry(name, options, question["make"])
        return {"question": entry["question"], "answer": entry["answer"], "sha256": sha256}
    entry, sha256 = _entry(name, options, question["index"])
    scores = []
    failures = []
    for answer in question["score"]:
        try:
            scores.append(float(_dataset(name, options).score_answer(answer, entry)))
        except Exception as error:  # a grader may fail on what is no answer at all
            failures.append(type(error).__name__)
    return {"sha256": sha256} | ({"score": max(scores)} if scores else {"failed": failures[0]})


@lru_cache(1)
def _dataset(name: str, options: str) -> Any:
    from reasoning_gym.factory import create_dataset

    _fix_random_numbers(options)
    return create_dataset(name, **json.loads(options))


@lru_cache(1024)
def _entry(name: str, options: str, index: int) -> tuple[dict[str, Any], str]:
    """A problem with all that its grader needs, and a hash of it."""
    dataset = _dataset(name, options)
    _fix_random_numbers(f"{options} {index}")
    entry = dataset[index]
    return entry, hashlib.sha256(json.dumps(entry, sort_keys=True, default=repr).encode()).hexdigest()


def _fix_random_numbers(text: str) -> None:
    import numpy as np

    random.seed(text)
    np.random.seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big"))
