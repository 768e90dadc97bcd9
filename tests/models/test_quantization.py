"""Weights in few bits. What runs needs bitsandbytes; where it is not installed these tests are skipped."""

import json
from importlib.util import find_spec

import pytest
import torch
from conformance import CHECKS, TEXTS, Subject, value_attention_is_what_each_pair_adds
from conftest import save_tiny

import stepsal
from stepsal import InputError, StepMap, UnsupportedModelError, load_model
from stepsal.cli import main
from stepsal.models import host_of
from stepsal.models.lookup import model_fingerprint
from stepsal.models.quantization import quantization_config

needs_bitsandbytes = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="pip install 'bitsandbytes>=0.49'")
QUESTION = [{"role": "user", "content": "Facts: m = k + 25. k = 37.\nStart at k. What is m?"}]
BITS = ("4bit", "8bit")
# Of bitsandbytes' int8 layers: how they say that they round what goes through them.
ROUNDS = pytest.mark.filterwarnings("ignore:MatMul8bitLt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    sizes = {"hidden_size": 64, "intermediate_size": 128}  # whole blocks of bitsandbytes' 64 weights
    return save_tiny("llama", tmp_path_factory.mktemp("model"), **sizes)


@pytest.fixture(scope="module", params=BITS)
def quantised(request, folder):
    return load_model(folder, quantization=request.param)


@pytest.fixture
def traces():
    return [stepsal.Trace.from_text(stepsal.load_tokenizer(), QUESTION, text) for text in TEXTS]


def dequantised(model, folder):
    """A plain model on the weights that the quantised one multiplies by."""
    import bitsandbytes.functional as few_bits

    plain = load_model(folder)
    own = dict(plain.original_model.named_modules())
    with torch.no_grad():
        for name, module in model.original_model.named_modules():
            weight = getattr(module, "weight", None)
            if (state := getattr(weight, "quant_state", None)) is not None:
                own[name].weight.copy_(few_bits.dequantize_4bit(weight.data, state))
            elif (scale := getattr(weight, "SCB", None)) is not None:
                own[name].weight.copy_(weight.data.float() * scale[:, None] / 127)
    return plain


@needs_bitsandbytes
@pytest.mark.parametrize("check", ["influence", "chunks", "bridge", "momentum", "identity"])
def test_a_quantised_model_keeps_what_stepsal_promises(quantised, traces, check):
    """LLM.int8 rounds what it multiplies, too: head outputs do not add up to the bit, and `value_attention` is left out."""
    rounds = '"load_in_8bit": true' in host_of(quantised).quantization
    for each in CHECKS[check]:
        if not (rounds and each is value_attention_is_what_each_pair_adds):
            each(Subject(quantised, traces))


@needs_bitsandbytes
def test_gradients_go_through_weights_of_4_bits_as_through_the_dequantised_ones(folder, traces):
    """In 4 bits nothing but the weights is rounded, so maps are those of a plain model on the rounded weights."""
    model = load_model(folder, quantization="4bit")
    expected = stepsal.step_saliency(dequantised(model, folder), traces[0]).mass
    for chunk in ("auto", 1, 7):  # bitsandbytes has a kernel without a gradient for one token at a time
        found = stepsal.step_saliency(model, traces[0], chunk=chunk).mass
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


@needs_bitsandbytes
def test_weights_are_frozen_and_the_maps_say_how_they_are_quantised(quantised, traces, tmp_path):
    assert not any(parameter.requires_grad for parameter in quantised.parameters())
    found = stepsal.step_saliency(quantised, traces[1])
    said = json.loads(found.meta["quantization"])
    assert said["quant_method"] == "bitsandbytes"
    assert [bits for bits in BITS if said[f"load_in_{bits}"]] == [bits for bits in BITS if said[f"_load_in_{bits}"]]
    found.save(tmp_path / "map.safetensors")
    assert StepMap.load(tmp_path / "map.safetensors").meta["quantization"] == found.meta["quantization"]


def test_a_model_that_is_not_quantised_says_nothing_of_it(reasoner):
    assert "quantization" not in host_of(reasoner).describe()


@needs_bitsandbytes
def test_fingerprints_tell_quantised_weights_and_their_scales_apart(folder):
    prints = {kind: model_fingerprint(load_model(folder, quantization=kind)) for kind in (None, *BITS)}
    assert len(set(prints.values())) == 3
    model = load_model(folder, quantization="4bit")
    assert model_fingerprint(model) == prints["4bit"]
    module = next(
        each for each in model.original_model.modules() if hasattr(each, "quant_state") and hasattr(each, "weight")
    )
    module.weight.quant_state.absmax *= 2
    assert model_fingerprint(model) != prints["4bit"]


@needs_bitsandbytes
@pytest.mark.parametrize("bits", BITS)
def test_the_command_line_loads_in_few_bits(folder, bits, tmp_path):
    questions, answers, maps = tmp_path / "questions.jsonl", tmp_path / "answers.jsonl", tmp_path / "maps"
    questions.write_text('{"prompt": "k = 37.", "answer": "37"}\n')
    chosen = ["--model", str(folder), f"--load-in-{bits}"]
    assert main(["generate", str(questions), *chosen, "--max-new-tokens", "4", "--out", str(answers)]) == 0
    assert main(["saliency", str(answers), *chosen, "--out", str(maps)]) == 0
    (found,) = (StepMap.load(path) for path in (maps / "maps").glob("*.safetensors"))
    assert json.loads(found.meta["quantization"])[f"load_in_{bits}"]
    assert main(["saliency", str(answers), "--model", str(folder), "--out", str(maps)]) == 2  # other weights


def test_only_one_number_of_bits_is_taken(capsys):
    with pytest.raises(SystemExit):
        main(["saliency", "x.jsonl", "--model", "bundled", "--out", "y", "--load-in-4bit", "--load-in-8bit"])
    assert "not allowed with argument" in capsys.readouterr().err


@needs_bitsandbytes
def test_a_checkpoint_that_is_quantised_already_is_loaded_as_it_is(folder, traces, tmp_path):
    made = load_model(folder, quantization="4bit")
    from transformers import AutoModelForCausalLM

    original = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=quantization_config("4bit", torch.float32), dtype=torch.float32
    )
    original.save_pretrained(tmp_path)
    stepsal.load_tokenizer(folder).save_pretrained(tmp_path)
    found = load_model(tmp_path)
    torch.testing.assert_close(
        stepsal.step_saliency(found, traces[0]).mass, stepsal.step_saliency(made, traces[0]).mass, rtol=1e-6, atol=1e-9
    )
    assert json.loads(host_of(found).describe()["quantization"])["load_in_4bit"]
    with pytest.raises(InputError, match="is already quantised .bitsandbytes.. Leave out"):
        load_model(tmp_path, quantization={"quant_method": "quanto", "weights": "int8"})


# --- what would be inexact -------------------------------------------------------------------------------------------
@needs_bitsandbytes
def test_int8_with_outliers_is_refused_since_tokens_meet_in_it(folder, traces):
    from transformers import BitsAndBytesConfig

    model = load_model(folder, quantization=BitsAndBytesConfig(load_in_8bit=True))
    with pytest.raises(
        UnsupportedModelError, match="depends on the tokens that are read beside it.*quantization='8bit'"
    ):
        stepsal.step_saliency(model, traces[0])


@needs_bitsandbytes
def test_a_kernel_without_a_gradient_is_refused(folder, traces):
    model = load_model(folder, quantization="4bit")
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = True  # as bitsandbytes leaves it on CPUs with AVX512-BF16
    with pytest.raises(UnsupportedModelError, match="kernel for 4-bit weights has no gradient: load it with stepsal"):
        stepsal.step_saliency(model, traces[0])


# --- what is refused -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("given", ["5bit", 4, "nf4", ["4bit"], {"quant_method": "no-such"}, {"weights": "int8"}])
def test_what_is_no_quantization_is_refused_before_anything_is_loaded(given, monkeypatch):
    monkeypatch.setattr("stepsal.models.loading.read_tokenizer", lambda source: pytest.fail("loaded"))
    with pytest.raises(InputError, match="quantization=.* expected '4bit', '8bit', or a quantization configuration"):
        load_model(quantization=given)


@pytest.mark.skipif(find_spec("optimum") is not None, reason="optimum is installed")
def test_a_package_that_is_not_installed_is_named_with_its_command(folder):
    from transformers import QuantoConfig

    with pytest.raises(InputError, match="needs a package that is not installed.*pip install optimum-quanto"):
        load_model(folder, quantization=QuantoConfig(weights="int8"))
