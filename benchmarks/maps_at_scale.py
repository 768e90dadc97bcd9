"""What a folder of many step maps costs, command by command: `python benchmarks/maps_at_scale.py --maps 1000`.

It writes a folder of synthetic maps of 28 layers, 28 heads and 150 steps (`--quick`: small ones), each in a file of its own,
and runs the commands that read a folder of maps, each in a process of its own. A table says how long each took, with its start,
and the most memory that its process held: the peak resident set, which counts the pages of the map's file that it reads.
`diagnose` runs twice; from its second run on, and in the commands after it, the metrics are kept beside the maps.

The maps are made up: log-normal influence that falls off with distance, and reads more from the question. Each has lengths of
its own and a log-normal factor for each pair of steps; one draw of noise serves all, its heads turned by one from map to map.
About half are called correct. No model is run.
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


def make(out: Path, count: int, layers: int, heads: int, n: int) -> None:
    """Write the maps; and the first one in other ways, too, for the sizes of these files."""
    import torch
    from safetensors.torch import save_file

    from stepsal import Step, StepMap
    from stepsal.files import write_settings
    from stepsal.saliency.folder import map_path
    from stepsal.saliency.pooling import count_pairs

    torch.set_num_threads(1)
    noise = torch.empty(layers, heads, n, n).log_normal_(-6, 1.5, generator=torch.Generator().manual_seed(0))
    distance = torch.arange(n)[:, None] - torch.arange(n)
    noise /= (1 + distance.clamp(min=0)) ** torch.linspace(0.5, 1.5, layers)[:, None, None, None]
    noise[..., 0] *= 3
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
        own = torch.empty(n, n).log_normal_(0, 0.3, generator=generator)
        mass = noise.roll(index, 1).mul_(own * pairs)
        correct = bool(torch.rand((), generator=generator) < 0.5)
        trace = f"synthetic-{index:05d}"
        meta = {"model": "synthetic", "rule": "abs", "objective": "token", "score": "loss", "model_layers": layers}
        path = map_path(out, trace)
        stepmap = StepMap(mass, pairs, tuple(steps), tuple(range(layers)), meta | {"trace": trace, "correct": correct})
        stepmap.save(path)
        listed[trace] = {"file": path.name}
        if index == 0:
            save_file({"mass": mass, "pairs": pairs}, out / "whole squares (stepsal 0.1)")
            stepmap.save(out / "bfloat16", precision="bfloat16")
            stepmap.mean_heads().save(out / "mean over heads")
    write_settings(out / "saliency.json", {"rule": "abs", "traces": listed})


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
    parser.add_argument("--make", type=Path, metavar="DIR", help="write the maps into this folder, and nothing else")
    given = parser.parse_args()
    layers, heads, n = (4, 3, 20) if given.quick else (28, 28, 150)
    if given.make is not None:
        make(given.make, given.maps, layers, heads, n)
        return
    out = Path(tempfile.mkdtemp(dir=given.folder))
    try:
        began = time.monotonic()
        # In a process of its own: a process that this one starts is counted with the memory that this one has.
        subprocess.run([sys.executable, *sys.argv, "--make", out], check=True)
        sizes = {
            path.name: path.stat().st_size / 1e6
            for path in sorted(out.iterdir())
            if path.suffix != ".json" and path.is_file()
        }
        compact = next((out / "maps").iterdir()).stat().st_size / 1e6
        print(
            f"{given.maps} maps of {layers} layers, {heads} heads and {n} steps, {compact:.1f} MB each, made in "
            f"{time.monotonic() - began:.0f} s. One of them otherwise: "
            + ", ".join(f"{name} {megabytes:.1f} MB" for name, megabytes in sizes.items()),
            end="\n\n",
            flush=True,
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
