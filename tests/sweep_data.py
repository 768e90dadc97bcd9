"""Results of sweeps that nobody ran, in the real schema: answers are drawn, what a setting does to them is planted."""

import json

import numpy as np

from stepsal.sweeps.row import Row
from stepsal.sweeps.settings import Setting
from stepsal.sweeps.store import SweepFolder

KINDS = ("wrong premise", "wrong variable", "wrong arithmetic")


def planted(settings, effect, problems=200, samples=1, lengths=(2, 3, 5), seconds=None, cpu=None, seed=0, tokens=100):
    """Rows. `effect(setting)`: the chance that a wrong answer is right under it (below 0: that a right one is wrong)."""
    rows = []
    draw = np.random.default_rng(seed)
    base = draw.random((problems, samples)) < 0.6
    for index, setting in enumerate([Setting(), *settings]):
        chance = np.random.default_rng([seed, index]).random((problems, samples))
        gain = effect(setting) if index else 0.0
        right = base | (chance < gain) if gain >= 0 else base & (chance >= -gain)
        for problem in range(problems):
            for sample in range(samples):
                yes = bool(right[problem, sample])
                wrong = 50 + (problem + 3 * sample) % 4
                rows.append(
                    setting.columns
                    | {
                        "unit": f"{setting.id}/p-{problem}/{sample}/0",
                        "problem": f"p-{problem}",
                        "length": lengths[problem % len(lengths)] if lengths else None,
                        "sample": sample,
                        "seed": 0,
                        "max_new_tokens": 64,
                        "batch_size": 8,
                        "temperature": 0.8 if samples > 1 else 0.0,
                        "top_p": 1.0,
                        "samples": samples,
                        "correct": yes,
                        "error": None if yes or not lengths else KINDS[problem % 3],
                        "answer": "7" if yes else str(wrong),
                        "expected": "7",
                        "tokens": tokens + problem % 7,
                        "truncated": not yes and problem % 5 == 0,
                        "cpu_seconds": cpu and cpu(setting),
                        "seconds": (seconds or (lambda setting: 0.1))(setting),
                        "prompt_tokens": 12,
                        "trace": [1, 2, 3],
                        "notes": None,
                        "model": json.dumps({"model": "made up"}),
                        "versions": "{}",
                    }
                )
    return rows


def write_results(folder, rows):
    """The folder of a finished sweep."""
    sweep = SweepFolder(folder)
    sweep.write("all", [Row(**row) for row in rows])
    sweep.consolidate([["all"]])
    return folder
