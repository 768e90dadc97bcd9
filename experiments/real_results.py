"""Everything that docs/real_models.md says of SmolLM2 and Qwen2.5-Coder: `python -m experiments.real_results --out build/real`.

In: the models that `make real` fetched, and the traces in `experiments/r1_traces`. Out: a folder with the models' answers, the
step maps and knockouts, and in OUT/tables what each command printed. A command whose table is there is not run again, and the
commands go on where an interrupt stopped them: run it again after one. `--list` prints the commands and runs none; `--only`
runs those whose names begin so, in their order. All of it takes hours on two CPU cores.
"""

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

from stepsal.files import atomic_path

MODELS = {
    "smollm2": "real/SmolLM2-135M-Instruct.Q4_1.gguf",
    "qwen": "real/qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
}
WRONG = {"smollm2": 100, "qwen": 50}
"""How many wrong answers are read, beside all right ones."""
R1_TRACES = "experiments/r1_traces/r1_distill_qwen_14b.jsonl"
STUDIED = {
    "loss": "",
    "logit": "--score logit",
    "margin": "--score margin",
    "attention": "--rule attention",
    "signed": "--score logit --rule signed",
    "gradient": "--score logit --rule grad",
}
"""The maps that are held against knockouts, by the names of their folders, with the options that make them."""


def study(name: str, traces: str, model: str) -> list[tuple[str, str]]:
    """The commands that make one model's maps and knockouts of traces, for `experiments.which_map`."""
    folder = f"OUT/study/{name}"
    commands = [(f"study-{name}-knockout", f"stepsal knockout {traces} --model {model} --out {folder}/knockout")]
    for kind, options in STUDIED.items():
        if kind == "loss" and name != "bundled":
            continue  # made for the diagnosis
        commands.append(
            (f"study-{name}-{kind}", f"stepsal saliency {traces} --model {model} {options} --out {folder}/{kind}")
        )
    kinds = " ".join(f"{folder}/{kind}" for kind in STUDIED)
    commands.append((f"study-{name}", f"stepsal faithfulness {kinds} --knockouts {folder}/knockout --markdown"))
    return commands


def commands() -> list[tuple[str, str]]:
    """The name and the command of every table, in their order; OUT is the folder of the results."""
    listed = [("problems", "python -m experiments.think_prompts --size 200 --out OUT/problems.jsonl")]
    for name, model in MODELS.items():
        generate = f"stepsal generate OUT/problems.jsonl --model {model} --format think"
        listed += [
            (f"{name}-answers", f"{generate} --max-new-tokens 220 --batch-size 40 --out OUT/{name}.jsonl"),
            (
                f"{name}-own-sample",
                f"python -m experiments.right_and_wrong OUT/{name}.jsonl --wrong {WRONG[name]} --out OUT/{name}_sample.jsonl",
            ),
            (
                f"{name}-own-maps",
                f"stepsal saliency OUT/{name}_sample.jsonl --model {model} --out OUT/study/{name}/loss",
            ),
            (f"{name}-own", f"stepsal compare OUT/study/{name}/loss --markdown"),
            (f"{name}-r1-maps", f"stepsal saliency {R1_TRACES} --model {model} --out OUT/{name}-r1"),
            (f"{name}-r1", f"stepsal compare OUT/{name}-r1 --markdown"),
            (f"{name}-r1-pairs", f"python -m experiments.same_problem OUT/{name}-r1"),
        ]
    listed += [("bundled-answers", "stepsal generate 120 --out OUT/bundled.jsonl")]
    for name, model in (("bundled", "bundled"), *MODELS.items()):
        listed += study(name, f"OUT/{name}.jsonl" if name == "bundled" else f"OUT/{name}_sample.jsonl", model)
    folders = " ".join(f"{name}=OUT/study/{name}" for name in ("bundled", *MODELS))
    listed.append(("which-map", f"python -m experiments.which_map {folders}"))
    for name, model in MODELS.items():
        listed += [
            (
                f"{name}-saliency-cost",
                f"python benchmarks/saliency.py --model {model} --json OUT/{name}-saliency.jsonl",
            ),
            (
                f"{name}-decoding-cost",
                f"python benchmarks/decoding.py --model {model} --json OUT/{name}-decoding.jsonl",
            ),
            (f"{name}-long", f"python -m experiments.long_traces {model}"),
            (f"{name}-precision", f"python benchmarks/precision.py --model {model}"),
        ]
    return listed


def run(name: str, command: str, out: Path) -> None:
    """Run a command unless its table is there; keep what it prints. Raises `SystemExit` where it fails."""
    table = out / "tables" / f"{name}.md"
    if table.exists():
        print(f"{name}: {table} is there", file=sys.stderr)
        return
    shown = command.replace("OUT", str(out))
    print(f"{name}: {shown}", file=sys.stderr)
    program, *rest = shlex.split(shown)
    start = [sys.executable] if program == "python" else [str(Path(sys.executable).with_name(program))]
    done = subprocess.run([*start, *rest], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{name} failed with status {done.returncode}. Run this again to go on there: {shown}")
    table.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(table) as temporary:
        temporary.write_text(f"{done.stdout.rstrip()}\n\n```sh\n{shown}\n```\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/real"), help="the folder (default: %(default)s)")
    parser.add_argument("--only", nargs="+", default=[""], metavar="NAME", help="run those whose names begin so")
    parser.add_argument("--list", action="store_true", help="print the commands and run none")
    given = parser.parse_args()
    for name, command in commands():
        if not name.startswith(tuple(given.only)):
            continue
        if given.list:
            print(f"{name:26} {command.replace('OUT', str(given.out))}")
        else:
            run(name, command, given.out)


if __name__ == "__main__":
    main()
