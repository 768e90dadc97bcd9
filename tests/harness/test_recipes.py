"""Each recipe runs, on miniature data in the columns of the real tasks: all but the download and a large model is tried."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hooked import TL3

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install 'stepsal[eval]'")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(TL3, reason="the recipes load bridges")]

import lm_eval.tasks  # noqa: E402
from lm_eval import simple_evaluate  # noqa: E402
from lm_eval.config.evaluate_config import EvaluatorConfig  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402
from mini_tasks import write  # noqa: E402

from stepsal import paired_runs  # noqa: E402
from stepsal.harness.arguments import setting_of  # noqa: E402
from stepsal.harness.lm_eval_model import StepsalLM  # noqa: E402
from stepsal.reasoner import make_problems  # noqa: E402

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "benchmarks" / "recipes").glob("*.yaml"))
REAL = {  # each real task's file, the split that it asks, and its columns for a question and its answer
    "aime24": ("aime/aime24.yaml", "train", lambda q, a: {"Problem": q, "Answer": a}),
    "aime25": ("aime/aime25.yaml", "test", lambda q, a: {"problem": q, "answer": a}),
    "hendrycks_math500": (
        "hendrycks_math/hendrycks_math500.yaml",
        "test",
        lambda q, a: {"problem": q, "answer": a, "solution": f"So \\boxed{{{a}}}"},
    ),
    "gpqa_diamond_cot_zeroshot": (
        "gpqa/cot_zeroshot/gpqa_diamond_cot_zeroshot.yaml",
        "train",
        lambda q, a: (
            {"Question": q, "Correct Answer": a} | {f"Incorrect Answer {i}": str(int(a) + i) for i in (1, 2, 3)}
        ),
    ),
}


@pytest.fixture(scope="module")
def minis(tmp_path_factory):
    """The real tasks on problems of the bundled reasoner, in a folder."""
    folder = tmp_path_factory.mktemp("minis")
    for task, (file, split, columns) in REAL.items():
        data = folder / f"{task}.json"
        docs = [columns(each.messages[0]["content"], str(each.answer)) for each in make_problems("validation", 2, 2)]
        data.write_text("".join(json.dumps(doc) + "\n" for doc in docs), encoding="utf-8")
        write(
            folder / f"mini_{task}.yaml",
            {
                "include": str(Path(lm_eval.tasks.__file__).parent / file),
                "task": f"mini_{task}",
                "dataset_path": "json",
                "dataset_name": None,
                "dataset_kwargs": {"data_files": {split: str(data)}},
            },
        )
    return folder


def miniature(recipe, minis, out):
    """The recipe with the bundled reasoner, the miniature tasks and few tokens; all else is as it is written."""
    given = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    given["model_args"] |= {"pretrained": "bundled", "dtype": "float32"}
    given["model_args"]["settings"] = str(ROOT / given["model_args"]["settings"])
    given["gen_kwargs"]["max_gen_toks"] = 40
    given["tasks"] = [f"mini_{task}" for task in given["tasks"]]
    changed = {
        "output_path": str(out / "out"),
        "use_cache": str(out / "cache"),
        "include_path": str(minis),
        "device": "cpu",
    }
    return given | changed


def test_there_is_a_recipe_for_each_row_of_the_papers_table():
    settings = {name: [] for name in ("r1-distill-qwen-7b", "r1-distill-qwen-32b", "gpt-oss-20b")}
    for recipe in RECIPES:
        model, _, setting = recipe.stem.rpartition("-")
        settings[model].append(setting)
    assert settings["r1-distill-qwen-7b"] == settings["r1-distill-qwen-32b"] == ["baseline", "stepflow"]
    assert settings["gpt-oss-20b"] == ["baseline", "oeb", "smi", "stepflow"]


def test_the_harness_knows_the_tasks_and_every_argument():
    known = set(TaskManager().all_tasks)
    for recipe in RECIPES:
        config = EvaluatorConfig.from_config(recipe)  # it refuses keys that it does not have
        assert set(config.tasks) == set(REAL) <= known
        setting_of(ROOT / config.model_args["settings"], config.model_args["setting"])
        assert config.model_args["setting"] == recipe.stem.rpartition("-")[2]
        assert Path(config.output_path).name == Path(config.use_cache).name == recipe.stem


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_a_recipe_runs(recipe, minis, tmp_path, reasoner):
    given = miniature(recipe, minis, tmp_path)
    arguments = {name: value for name, value in given["model_args"].items() if name not in ("pretrained", "dtype")}
    lm = StepsalLM(reasoner, batch_size=given["batch_size"], **arguments)
    results = simple_evaluate(
        model=lm,
        tasks=given["tasks"],
        task_manager=TaskManager(include_path=str(minis), include_defaults=False),
        apply_chat_template=given["apply_chat_template"],
        gen_kwargs=given["gen_kwargs"],
        bootstrap_iters=0,
    )
    assert {name: len(samples) for name, samples in results["samples"].items()} == {
        "mini_aime24": 2,
        "mini_aime25": 2,
        "mini_hendrycks_math500": 2,
        "mini_gpqa_diamond_cot_zeroshot": 4,  # two filters
    }
    expected = setting_of(given["model_args"]["settings"], given["model_args"]["setting"])
    assert results["config"]["stepsal"]["interventions"] == json.loads(json.dumps([each.record for each in expected]))


def test_the_commands_of_the_readme_run(minis, tmp_path):
    """Two rows from the command line, compared."""
    for name in ("r1-distill-qwen-7b-baseline", "r1-distill-qwen-7b-stepflow"):
        given = miniature(ROOT / "benchmarks" / "recipes" / f"{name}.yaml", minis, tmp_path / name)
        write(tmp_path / f"{name}.yaml", given)
        command = [sys.executable, "-m", "stepsal.harness", "run", "--config", str(tmp_path / f"{name}.yaml")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
    outs = [tmp_path / f"r1-distill-qwen-7b-{name}" / "out" for name in ("baseline", "stepflow")]
    table = paired_runs(*outs, filter="flexible-extract").table
    assert sorted(table["task"]) == sorted(f"mini_{task}" for task in REAL)
    assert (table["n"] == 2).all()
    (results,) = outs[1].rglob("results_*.json")
    about = json.loads(results.read_text())["config"]["stepsal"]
    assert about["computed"] == {"generated": 8, "scored": 0}
    assert sum(about["report"]["activations"]) > 0
