"""What a folder of many step maps costs, command by command: `python benchmarks/maps_at_scale.py --maps 1000`.

It writes a folder of synthetic maps of 28 layers, 28 heads and 150 steps (`--quick`: small ones), each in a file of its own,
and runs the commands that read a folder of maps, each in a process of its own. A table says how long each took, with its start,
and the most memory that its process held: the peak resident set, which counts the pages of the map's file that it reads.
`diagnose` runs twice; from its second run on, and in the commands after it, the metrics are kept beside the maps.

The maps are made up: log-normal influence that falls off with distance, and reads more from the question; each has lengths and
numbers of its own, and about half are called correct. No model is run.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMANDS = {
    "diagnose": ["diagnose", "{out}"],
    "diagnose, again": ["diagnose", "{out}"],
    "compare": ["compare", "{out}"],
    "figure profiles": ["figure", "profiles", "{out}", "--out", "{out}/profiles.png"],
    "figure maps": ["figure", "maps", "{out}", "--out", "{out}/two.png"],
    "report": ["report", "{out}"],
    "export": ["export", "{out}", "--out", "{out}/maps.parquet"],
}


def make(out: Path, count: int, layers: int, heads: int, n: int, squares: bool) -> tuple[float, float]:
    """Write the maps, and return the megabytes of a file: compact, and (of one map) as whole squares."""
    import torch
    from safetensors.torch import save_file

    from stepsal import Step, StepMap
    from stepsal.files import write_settings
    from stepsal.saliency.folder import map_path
    from stepsal.saliency.pooling import count_pairs

    torch.set_num_threads(1)
    noise = torch.empty(layers, heads, n, n)
    listed = {}
    for index in range(count):
        generator = torch.Generator().manual_seed(index)
        sizes = torch.randint(15, 90, (n,), generator=generator).tolist()
        steps, at = [], 0
        for step, size in enumerate(sizes):
            segment = "question" if step == 0 else "summary" if step >= n - n // 10 else "thinking"
            steps.append(
                Step(step, segment, at, at + size, f"Step {step} of trace {index}: " + "so x = 4, " * (size // 4))
            )
            at += size
        pairs = count_pairs(steps)
        distance = torch.arange(n)[:, None] - torch.arange(n)
        decay = torch.linspace(0.5, 1.5, layers)[:, None, None, None]
        mass = noise.log_normal_(-6, 1.5, generator=generator) / (1 + distance.clamp(min=0)) ** decay
        mass[..., 0] *= 3
        mass = (mass * pairs).tril_()
        correct = bool(torch.rand((), generator=generator) < 0.5)
        trace = f"synthetic-{index:05d}"
        meta = {"model": "synthetic", "rule": "abs", "objective": "token", "score": "loss", "model_layers": layers}
        path = map_path(out, trace)
        stepmap = StepMap(mass, pairs, tuple(steps), tuple(range(layers)), meta | {"trace": trace, "correct": correct})
        stepmap.save(path)
        listed[trace] = {"file": path.name}
        if index == 0 and squares:
            save_file({"mass": mass, "pairs": pairs}, out / "squares")
    write_settings(out / "saliency.json", {"rule": "abs", "traces": listed})
    return path.stat().st_size / 1e6, (out / "squares").stat().st_size / 1e6 if squares else float("nan")


def run(command: list[str]) -> tuple[float, float]:
    """Run a command in a process of its own: its seconds, and its peak resident set in megabytes."""
    program = "import sys; from stepsal.cli import main; sys.exit(main(sys.argv[1:]))"
    began = time.monotonic()
    child = subprocess.Popen(
        [sys.executable, "-c", program, *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert child.stderr is not None
    said = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    if os.waitstatus_to_exitcode(status):
        sys.exit(f"stepsal {' '.join(command)} failed:\n{said.decode()[-2000:]}")
    return time.monotonic() - began, usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maps", type=int, default=40)
    parser.add_argument("--quick", action="store_true", help="maps of 4 layers, 3 heads and 20 steps")
    parser.add_argument(
        "--folder", type=Path, help="where to write (default: a temporary folder); its maps are removed after"
    )
    parser.add_argument("--skip", nargs="*", default=[], metavar="NAME", help="commands to leave out")
    given = parser.parse_args()
    layers, heads, n = (4, 3, 20) if given.quick else (28, 28, 150)
    out = Path(tempfile.mkdtemp(dir=given.folder))
    try:
        began = time.monotonic()
        compact, squares = make(out, given.maps, layers, heads, n, squares=True)
        print(
            f"{given.maps} maps of {layers} layers, {heads} heads and {n} steps, {compact:.1f} MB each ({squares:.1f} MB as "
            f"whole squares), made in {time.monotonic() - began:.0f} s\n"
        )
        print("| command | seconds | peak memory, MB | writes, MB |\n|---|---|---|---|")
        for name, command in COMMANDS.items():
            if name in given.skip:
                continue
            before = size(out)
            seconds, peak = run([part.format(out=out) for part in command])
            print(f"| {name} | {seconds:.1f} | {peak:.0f} | {(size(out) - before) / 1e6:.1f} |", flush=True)
    finally:
        shutil.rmtree(out)


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
