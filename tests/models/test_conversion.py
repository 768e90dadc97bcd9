"""`load_model(host="hooked_transformer")`: under TransformerLens 3.9 the same answers and maps as a bridge, or a reason."""

import json
import warnings

import pytest
import torch
from conftest import save_tiny
from families import FAMILIES, REFUSED, save_family
from helpers import relative_error
from hooked import CONVERTED, TL3

import stepsal
from stepsal import FileError, InputError, UnsupportedModelError, generate, load_model, sweep
from stepsal.cli import main
from stepsal.models import host_of
from stepsal.models.host import BUNDLED
from stepsal.reasoner import make_problems
from stepsal.saliency.folder import load_step_maps

needs_tl3 = pytest.mark.skipif(not TL3, reason="needs TransformerLens 3.9: make test-tl3")
HOOKED = {"host": "hooked_transformer"}
PROMPTS = [problem.messages for problem in make_problems("validation", 3, length=2) + make_problems("validation", 2)]
SHORT = {
    "problems": {"length": 2, "count": 3},
    "decoding": {"max_new_tokens": 12},
    "grid": {"parts": ["oeb"], "tau_max": 0.5},
}


@pytest.fixture(scope="module")
def bridge():
    return load_model()


# --- which TransformerLens -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("host", ["hooked", "", "HookedTransformer"])
def test_an_unknown_host_is_refused(host):
    with pytest.raises(InputError, match=f"unknown host '{host}': expected 'bridge' or 'hooked_transformer'"):
        load_model(host=host)


@pytest.mark.skipif(TL3, reason="of TransformerLens 4")
def test_without_transformer_lens_3_9_the_error_names_the_command_that_gets_it(tmp_path, capsys):
    says = r"host='hooked_transformer' needs TransformerLens 3.9.*pip install 'transformer-lens==3.9.0'"
    with pytest.raises(InputError, match=says):
        load_model(**HOOKED)
    with pytest.raises(InputError, match=says):
        sweep({"model": HOOKED, **SHORT}, out=tmp_path / "sweep", progress=False)
    assert main(["generate", "1", "--host", "hooked_transformer", "--out", str(tmp_path / "t.jsonl")]) == 2
    assert "pip install 'transformer-lens==3.9.0'" in capsys.readouterr().err


@needs_tl3
def test_a_hooked_transformer_is_on_one_device():
    with pytest.raises(InputError, match="device_map='auto' is for a bridge"):
        load_model(device_map="auto", **HOOKED)


# --- loading ---------------------------------------------------------------------------------------------------------
@needs_tl3
def test_the_model_is_frozen_and_has_the_folders_tokenizer_and_context(tmp_path):
    model = load_model(save_tiny("qwen2", tmp_path), **HOOKED)
    assert type(model).__name__ == "HookedTransformer"
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(module.training for module in model.modules())
    assert model.tokenizer.get_vocab() == stepsal.load_tokenizer().get_vocab()
    assert torch.equal(model.to_tokens("k = 37."), torch.tensor([model.tokenizer.encode("k = 37.")]))
    assert host_of(model).describe() == {
        "model": str(tmp_path),
        "architecture": "Qwen2ForCausalLM",
        "dtype": "float32",
        "device": "cpu",
        "host": "hooked_transformer",
    }


@needs_tl3
def test_the_context_is_the_models_own_where_transformer_lens_would_cut_it(tmp_path):
    family = next(each for each in FAMILIES if each.name == "Mistral")
    assert host_of(load_model(save_family(family, tmp_path), **HOOKED)).shape.context == 512  # not 2,048


@needs_tl3
def test_the_name_of_a_folder_says_nothing_about_the_family(tmp_path, trace):
    """TransformerLens takes a folder with "llama" or "gemma" in its path for one of that family."""
    model = load_model(save_tiny("qwen2", tmp_path / "gemma-llama"), **HOOKED)
    expected = load_model(tmp_path / "gemma-llama")
    with torch.no_grad():
        torch.testing.assert_close(model(trace.tokens[None]), expected(trace.tokens[None]), rtol=1e-5, atol=1e-5)


@needs_tl3
def test_tokens_of_the_generation_settings_end_a_sequence(tmp_path):
    folder = save_tiny("qwen2", tmp_path)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7]}))
    assert host_of(load_model(folder, **HOOKED)).stop_tokens() == host_of(load_model(folder)).stop_tokens() == {2, 7}


@needs_tl3
@pytest.mark.parametrize(
    "family",
    [each for each in (*FAMILIES, *REFUSED) if each.name not in (*CONVERTED, "BLOOM")],
    ids=lambda each: each.name,
)
def test_a_family_that_would_be_computed_otherwise_is_refused_with_the_reason(family, tmp_path):
    reasons = {
        "Qwen2, windows": "it leaves out the sliding window of layer 1, 13 tokens",
        "Llama, YaRN": r"differ from Hugging Face's by \d\d% of their size \(its rotation: rope_type 'yarn'",
        "Phi-3, partial rotation": r"differ from Hugging Face's by \d\d% .* 0.5 of each head",
        "Phi-3, LongRoPE": "the rotation changes with the length .rope_type 'longrope'",
    }
    reason = reasons.get(
        family.name, f"{family.kind}.*: TransformerLens 3.9 has no HookedTransformer of this architecture"
    )
    with warnings.catch_warnings():  # Transformers warns of the tiny configurations
        warnings.simplefilter("ignore")
        folder = save_family(family, tmp_path)
        with pytest.raises(UnsupportedModelError, match=f"{reason}.*host='bridge'"):
            load_model(folder, **HOOKED)


@needs_tl3
def test_experts_that_stay_in_float32_are_refused_in_half_precision(tmp_path):
    family = next(each for each in FAMILIES if each.name == "Mixtral")
    with pytest.raises(UnsupportedModelError, match="it cannot run in bfloat16"):
        load_model(save_family(family, tmp_path), dtype="bfloat16", **HOOKED)


@needs_tl3
def test_weights_that_transformer_lens_would_lose_are_noticed(tmp_path):
    """A Llama with biases: TransformerLens 3.9 has no place for those of the MLP, and says nothing."""
    folder = save_tiny("llama", tmp_path, mlp_bias=True)
    with torch.no_grad():
        from transformers import AutoModelForCausalLM

        original = AutoModelForCausalLM.from_pretrained(folder)
        for layer in original.model.layers:
            layer.mlp.down_proj.bias.uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
        original.save_pretrained(folder)
    with pytest.raises(UnsupportedModelError, match="its logits differ from Hugging Face's"):
        load_model(folder, **HOOKED)


# --- the same answers and maps as a bridge ---------------------------------------------------------------------------
@needs_tl3
@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.9, "top_p": 0.9, "samples": 2}, {"interventions": stepsal.stepflow(tau_max=0.5, alpha=0.5)}],
    ids=["greedy", "sampled", "StepFlow"],
)
def test_the_answers_are_those_of_a_bridge(reasoner, bridge, options):
    options = options | {"max_new_tokens": 60, "batch_size": 4, "progress": False}
    found, expected = (generate(model, PROMPTS, **options) for model in (reasoner, bridge))
    assert [trace.tokens.tolist() for trace in found] == [trace.tokens.tolist() for trace in expected]
    assert [trace.meta for trace in found] == [trace.meta for trace in expected]


@needs_tl3
def test_the_maps_are_those_of_a_bridge_in_every_family(tiny, trace, tmp_path):
    family = "qwen2" if "Qwen2" in host_of(tiny).describe()["architecture"] else "llama"
    expected = stepsal.step_saliency(load_model(save_tiny(family, tmp_path)), trace)
    assert relative_error(stepsal.step_saliency(tiny, trace).mass, expected.mass) <= 1e-4


@needs_tl3
def test_rows_that_ended_are_filled_with_a_token_that_ends_a_sequence(qwen2):
    host, tokens = host_of(qwen2), torch.tensor([[5, 6, 7], [8, 9, 10]])
    chosen = iter([[11, 4], [12, 13], [4, 14], [15, 16]])

    def choose(so_far, logits):
        return torch.nn.functional.one_hot(torch.tensor(next(chosen)), logits.shape[1]).float()

    with torch.no_grad():
        output = host.decode(tokens, torch.ones_like(tokens), 9, {3, 4}, choose)
    assert output.tolist() == [[5, 6, 7, 11, 12, 4], [8, 9, 10, 4, 3, 3]]


@needs_tl3
def test_a_model_with_which_decoding_would_not_be_exact_is_refused(tmp_path):
    model = load_model(save_tiny("qwen2", tmp_path), **HOOKED)
    model.set_ungroup_grouped_query_attention(True)
    with pytest.raises(UnsupportedModelError, match="cannot decode here: it repeats keys and values for each head"):
        generate(model, ["2+2?"], progress=False)


# --- the command line and sweeps -------------------------------------------------------------------------------------
def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@needs_tl3
def test_the_commands_load_it_and_give_what_a_bridge_gives(tmp_path):
    made = {}
    for host in ("bridge", "hooked_transformer"):
        out = tmp_path / host
        out.mkdir()
        assert main(["generate", "3", "--host", host, "--out", str(out / "t.jsonl"), "--max-new-tokens", "40"]) == 0
        chosen = ["--model", str(BUNDLED), "--host", host, "--out", str(out / "maps")]
        assert main(["saliency", str(out / "t.jsonl"), *chosen]) == 0
        made[host] = lines(out / "t.jsonl"), load_step_maps(out / "maps")
    (answers, maps), (expected, expected_maps) = made["hooked_transformer"], made["bridge"]
    assert answers == expected
    for found, bridges in zip(maps, expected_maps, strict=True):
        assert relative_error(found.mass, bridges.mass) <= 1e-4
        assert (found.meta["host"], bridges.meta["host"]) == ("hooked_transformer", "bridge")
    assert main(["report", str(tmp_path / "hooked_transformer" / "maps"), "--out", str(tmp_path / "page.html")]) == 0


@needs_tl3
def test_what_was_begun_on_another_host_is_refused(tmp_path, trace, bridge, reasoner, capsys):
    stepsal.save_step_maps(bridge, [trace], tmp_path / "maps", progress=False)
    with pytest.raises(FileError, match="host 'bridge' -> 'hooked_transformer'"):
        stepsal.save_step_maps(reasoner, [trace], tmp_path / "maps", progress=False)
    sweep(SHORT, out=tmp_path / "sweep", workers=1, progress=False)
    with pytest.raises(FileError, match=r"\+ +.host.: .hooked_transformer"):
        sweep({"model": HOOKED, **SHORT}, out=tmp_path / "sweep", workers=1, progress=False)


@needs_tl3
@pytest.mark.parametrize("workers", [1, 2])
def test_a_sweep_on_it_has_the_answers_of_a_bridge(tmp_path, workers):
    config = SHORT | {"decoding": {"max_new_tokens": 12, "batch_size": 2}}
    expected = sweep(config, out=tmp_path / "bridge", workers=1, progress=False)
    found = sweep({"model": HOOKED, **config}, out=tmp_path / "hooked", workers=workers, progress=False)
    same = ["setting", "problem", "answer", "correct", "tokens"]
    assert found[same].equals(expected[same])
    assert [each.tolist() for each in found["trace"]] == [each.tolist() for each in expected["trace"]]
    assert {json.loads(each)["host"] for each in found["model"]} == {"hooked_transformer"}
    assert (
        json.loads((tmp_path / "hooked" / "config.json").read_text())["config"]["model"]["host"] == "hooked_transformer"
    )


@pytest.mark.bridge
def test_a_sweep_that_was_begun_before_there_was_a_choice_of_hosts_is_gone_on_with(tmp_path):
    sweep(SHORT, out=tmp_path, workers=1, progress=False)
    about = json.loads((tmp_path / "config.json").read_text())
    assert about["config"]["model"].pop("host") == "bridge"
    (tmp_path / "config.json").write_text(json.dumps(about))
    assert len(sweep(SHORT, out=tmp_path, workers=1, progress=False)) == 6
