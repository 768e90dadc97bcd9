"""Half precision against float32, and traces longer than any map of tokens could be."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import stepsal
from stepsal import Trace, generate, load_model, step_saliency, stepflow, token_influence
from stepsal.errors import FileError, InputError
from stepsal.reasoner import make_problem
from stepsal.saliency.influence import row_scales

CEILING = 640  # MiB over what the process held before, for the trace of 16,384 tokens below
LENGTH = 16_384
LONG = f"""
import json, resource, sys, torch, stepsal
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from conftest import save_tiny
from stepsal import Step, Trace
torch.set_num_threads(1)
model = stepsal.load_model(save_tiny("qwen2", Path(sys.argv[1]), max_position_embeddings=32768, num_hidden_layers=2))
def trace(length):
    starts = list(range(0, length, 512))
    steps = tuple(Step(i, "thinking" if i else "question", a, a + 512, "") for i, a in enumerate(starts))
    return Trace(torch.randint(8, 300, (length,), generator=torch.Generator().manual_seed(0)), steps, "")
stepsal.step_saliency(model, trace(1024))  # what is loaded once
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
found = stepsal.step_saliency(model, trace({LENGTH}))
causal = torch.ones(len(found.steps), len(found.steps)).tril().bool()
print(json.dumps(dict(mib=peak() - before, chunk=found.meta["chunk"], finite=bool(found.mass.isfinite().all()),
    causal=bool((found.mass[..., causal] > 0).all()), later=float(found.mass[..., ~causal].abs().sum()))))
"""


@pytest.fixture(scope="module")
def solved():
    """Right solutions to test problems, short and long."""
    tokenizer = stepsal.load_tokenizer()
    problems = [make_problem("test", index, length) for length in (3, 6) for index in range(4)]
    return [Trace.from_text(tokenizer, each.messages, each.response + tokenizer.eos_token) for each in problems]


@pytest.fixture(scope="module")
def exact(reasoner, solved):
    return [step_saliency(reasoner, trace) for trace in solved]


@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 0.02), ("float16", 0.005)])
def test_step_maps_in_half_precision_are_those_of_float32_within_a_bound(solved, exact, dtype, bound):
    """The summed difference of all entries of a layer, relative to the layer's total mass; averaged over the traces."""
    model = load_model(dtype=dtype)
    errors = []
    for trace, expected in zip(solved, exact, strict=True):
        found = step_saliency(model, trace)
        assert found.mass.dtype == torch.float32
        assert found.mass.isfinite().all()
        assert found.meta["dtype"] == dtype
        errors.append((found.mass - expected.mass).abs().sum((1, 2, 3)) / expected.mass.sum((1, 2, 3)))
    error = torch.stack(errors).mean(0)
    assert (error <= bound).all(), error
    assert (error > 0).all()  # it was not float32 after all


def test_a_row_that_is_certain_keeps_its_influence_in_float16(solved):
    """A loss of 1e-7 has gradients that float16 cannot hold; each row is scaled by a power of two of its own."""
    losses = torch.tensor([3.0, 1e-3, 1e-7])
    largest = -torch.expm1(-losses) * row_scales(losses)  # derivative of a row's loss by a logit
    assert ((largest >= 1) & (largest < 2)).all()
    model = load_model(dtype="float16")
    for trace in solved[:2]:
        rows = token_influence(model, trace).sum((1, 3))[:, :-1]  # layer query
        assert (rows > 0).all()


@pytest.mark.slow
def test_a_trace_of_16k_tokens_stays_below_its_memory_ceiling(tmp_path):
    """In a process of its own. Keeping every pattern and its gradient would take 17 GiB."""
    done = subprocess.run([sys.executable, "-c", LONG, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["mib"] < CEILING, found
    assert found["finite"]
    assert found["causal"]
    assert found["later"] == 0


# --- models in parts -------------------------------------------------------------------------------------------------
HALF_ON_DISK = dict.fromkeys(("model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head"), "cpu") | {
    f"model.layers.{layer}": "cpu" if layer < 4 else "disk" for layer in range(8)
}


@pytest.mark.bridge
@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}, HALF_ON_DISK], ids=["auto", "cpu", "half on disk"])
def test_a_model_that_is_spread_out_gives_the_same_maps_and_answers(solved, exact, reasoner, device_map):
    model = load_model(device_map=device_map)
    torch.testing.assert_close(step_saliency(model, solved[0]).mass, exact[0].mass, rtol=1e-6, atol=1e-9)
    prompt, options = make_problem("test", 0).messages, {"interventions": stepflow(), "max_new_tokens": 12}
    (found,), (expected,) = (generate(each, [prompt], progress=False, **options) for each in (model, reasoner))
    assert found.tokens.tolist() == expected.tokens.tolist()


def test_a_device_beside_a_map_is_refused():
    with pytest.raises(InputError, match="device='cpu' and device_map='auto' exclude each other"):
        load_model(device="cpu", device_map="auto")


def test_an_unknown_map_is_refused():
    with pytest.raises(FileError, match="everywhere"):
        load_model(device_map="everywhere")
