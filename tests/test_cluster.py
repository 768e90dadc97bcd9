"""Two machines, simulated on this one: a Ray cluster of two nodes, of which a worker is killed, and then a whole node."""

import os
import subprocess
import sys

import pytest
from hooked import TL3

from stepsal import Knockout, StepMap
from stepsal.cli import main
from stepsal.models.host import BUNDLED

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(TL3, reason="workers load bridges"),
    pytest.mark.usefixtures("alone"),
]
MEASURED = ("seconds", "peak_memory_bytes")

ON_TWO_NODES = """
import sys, time
import psutil
from ray.cluster_utils import Cluster
from stepsal.cli import main
from stepsal.engines.ray import RayWorkers
from stepsal.saliency import recipe

recipe.TOKENS_TOGETHER = 1  # each trace is a piece of its own

def workers():
    return [p for p in psutil.Process().children(recursive=True) if "_RayWorker" in " ".join(p.cmdline())]

def wait_for_two():
    until = time.monotonic() + 120
    while len(found := workers()) < 2:
        assert time.monotonic() < until, "no second worker came"
        time.sleep(0.05)
    return found

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
second = cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
run = RayWorkers.run

def disturbed(self, items):
    for count, (item, said) in enumerate(run(self, items)):
        print("done", item.name, flush=True)
        if len(items) > 1 and count == 1:
            wait_for_two()[0].kill()
            print("killed a worker", flush=True)
        if len(items) > 1 and count == 4:
            wait_for_two()
            cluster.remove_node(second, allow_graceful=False)
            print("killed a node", flush=True)
        yield item, said

RayWorkers.run = disturbed
status = main([*sys.argv[1:], "--engine", "ray", "--address", cluster.address])
cluster.shutdown()
sys.exit(status)
"""


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    path = tmp_path_factory.mktemp("traces") / "t.jsonl"
    assert main(["generate", "10", "--out", str(path), "--max-new-tokens", "60"]) == 0
    return path


def of_a_folder(out):
    """All that the maps and knockouts of a folder say, but what was measured."""
    found = {}
    for path in sorted(out.rglob("*.safetensors")):
        result = StepMap.load(path) if path.parent.name == "maps" else Knockout.load(path)
        numbers = (
            [result.mass, result.pairs] if isinstance(result, StepMap) else [result.kl, result.loss, result.answer]
        )
        meta = {name: value for name, value in result.meta.items() if name not in (*MEASURED, "checksum")}
        found[path.name] = [each.nan_to_num(-1).tolist() for each in numbers], result.steps, meta
    return found


@pytest.mark.parametrize("command", ["saliency", "knockout", "generate"])
def test_with_a_worker_and_a_node_killed_each_piece_is_done_once_and_as_by_one_local_worker(command, traces, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'stepsal[ray]'")
    what = ["10", "--batch-size", "1"] if command == "generate" else [str(traces)]
    common = [command, *what, "--model", str(BUNDLED), "--out"]
    assert main([*common, f"{tmp_path}/one", "--workers", "1"]) == 0
    arguments = [*common, f"{tmp_path}/two", "--workers", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", ON_TWO_NODES, *arguments], capture_output=True, text=True, timeout=900, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "killed a worker" in done.stdout
    assert "killed a node" in done.stdout
    pieces = [line for line in done.stdout.splitlines() if line.startswith("done") and "check" not in line]
    assert len(pieces) == len(set(pieces)) == 10
    one, two = tmp_path / "one", tmp_path / "two"
    if command == "generate":
        assert two.read_bytes() == one.read_bytes()
    else:
        assert len(of_a_folder(one)) == 10
        assert of_a_folder(two) == of_a_folder(one)
    assert not list(tmp_path.rglob(".*"))
