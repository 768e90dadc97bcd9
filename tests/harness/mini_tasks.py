"""Miniature tasks for lm-evaluation-harness, of problems of the bundled task: written into a folder, nothing is fetched."""

import json

import yaml

from stepsal.reasoner import make_problems

UNTIL = "Question:"


def write_tasks(folder, count=6, length=2, split="validation", **generation):
    """`mini_generate`, `mini_choice` and `mini_rolling` in a folder; returns the problems."""
    problems = make_problems(split, count, length)
    docs = [
        {
            "problem": each.messages[0]["content"],
            "answer": str(each.answer),
            "choices": [str(each.answer), str(each.answer + 1), "many"],
            "text": f"{each.messages[0]['content']}<think>\nFirst.\n\nThen {each.answer}.\n</think>\n\n{each.answer}",
        }
        for each in problems
    ]
    data = folder / "data.json"
    data.write_text("".join(json.dumps(doc) + "\n" for doc in docs), encoding="utf-8")
    common = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test"}
    write(
        folder / "mini_generate.yaml",
        common
        | {
            "task": "mini_generate",
            "output_type": "generate_until",
            "doc_to_text": "{{problem}}",
            "doc_to_target": "{{answer}}",
            "generation_kwargs": {"until": [UNTIL], "max_gen_toks": 150, "do_sample": False} | generation,
            "filter_list": [
                {
                    "name": "boxed",
                    "filter": [
                        {"function": "regex", "regex_pattern": r"\\boxed\{(-?\d+)\}", "group_select": -1},
                        {"function": "take_first"},
                    ],
                }
            ],
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        },
    )
    write(
        folder / "mini_choice.yaml",
        common
        | {
            "task": "mini_choice",
            "output_type": "multiple_choice",
            "doc_to_text": "{{problem}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": 0,
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        },
    )
    write(
        folder / "mini_rolling.yaml",
        common
        | {
            "task": "mini_rolling",
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [{"metric": "byte_perplexity"}],
        },
    )
    return problems


def write(path, task):
    path.write_text(yaml.safe_dump(task, sort_keys=False), encoding="utf-8")
