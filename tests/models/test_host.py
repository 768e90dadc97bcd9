import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import save_tiny
from helpers import relative_error, unchecked

import stepsal
from stepsal import FileError, InputError, load_model, load_tokenizer, step_saliency
from stepsal.models import host_of
from stepsal.models.bridge import BridgeHost
from stepsal.models.hooked_transformer import HookedTransformerHost
from stepsal.models.host import BUNDLED, per_query_head
from stepsal.models.lookup import look_up


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny("qwen2", tmp_path_factory.mktemp("for-the-host"))


# --- loading ---------------------------------------------------------------------------------------------------------
def test_no_name_is_the_bundled_reasoner(reasoner):
    assert host_of(reasoner).describe()["model"] == "stepsal/reasoner"
    config = json.loads((BUNDLED / "config.json").read_text())
    assert host_of(reasoner).shape.layers == config["num_hidden_layers"]
    assert host_of(reasoner).shape.kv_heads == config["num_key_value_heads"]
    assert reasoner.tokenizer.get_vocab() == load_tokenizer().get_vocab()


@pytest.mark.parametrize("kind", [str, Path])
def test_a_folder_is_named_by_text_or_path(folder, kind):
    model = load_model(kind(folder))
    size = host_of(model).shape
    assert (size.layers, size.heads, size.kv_heads, size.context) == (3, 4, 2, 512)
    assert size.vocabulary == len(load_tokenizer())
    assert host_of(model).describe()["model"] == str(folder)


def test_a_relative_folder_is_found(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert host_of(load_model(folder.name)).shape.layers == 3


def test_weights_are_frozen_and_the_model_evaluates(folder):
    model = load_model(folder)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(module.training for module in model.modules())


def test_the_weights_are_those_of_the_folder(folder, trace):
    from transformers import AutoModelForCausalLM

    expected = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        logits = load_model(folder)(trace.tokens[None])
        torch.testing.assert_close(logits, expected(trace.tokens[None]).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu"), "auto"])
@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("bfloat16", torch.bfloat16), (torch.float64, torch.float64), ("float32", torch.float32)],
    ids=str,
)
def test_device_and_precision_are_torch_objects_or_their_names(folder, device, dtype, expected):
    if device == "auto" and (torch.cuda.is_available() or torch.backends.mps.is_available()):
        pytest.skip("'auto' is not the CPU on this machine")
    model = load_model(folder, device=device, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {expected}
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    assert host_of(model).describe()["dtype"] == str(expected).removeprefix("torch.")


def test_auto_is_float32_on_the_cpu_whatever_the_checkpoint(tmp_path):
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(save_tiny("llama", tmp_path / "a")).to(torch.bfloat16).save_pretrained(
        tmp_path / "b"
    )
    load_tokenizer().save_pretrained(tmp_path / "b")
    assert json.loads((tmp_path / "b" / "config.json").read_text())["dtype"] == "bfloat16"
    assert host_of(load_model(tmp_path / "b", device="cpu")).describe()["dtype"] == "float32"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "toaster"}, "unknown device 'toaster': expected 'auto', 'cpu'"),
        ({"device": "cuda:99"}, "device 'cuda:99' cannot be used here .* Use 'auto' or 'cpu'"),
        ({"dtype": "float33"}, "unknown dtype 'float33': expected 'auto', 'float32'"),
        ({"dtype": "int8"}, "unknown dtype 'int8'"),
        ({"dtype": "nn"}, "unknown dtype 'nn'"),
        ({"dtype": torch.int8}, "unknown dtype torch.int8"),
    ],
)
def test_unknown_devices_and_precisions_are_refused(folder, options, message):
    with pytest.raises(InputError, match=message):
        unchecked(load_model)(folder, **options)


def test_a_folder_or_file_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(FileError, match="is no model: there is no config.json in it"):
        load_model(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="is no model"):
        load_model(tmp_path / "file")


def test_a_folder_with_parts_missing_is_refused_with_the_reason(folder, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileError, match=r"(?s)cannot load a tokenizer from .* Give a Hugging Face model directory"):
        load_model(tmp_path)
    load_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(FileError, match="cannot load a model from"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(FileError, match="cannot load a model from"):
        load_model(tmp_path)  # no weights
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(FileError, match="cannot load a model from"):
        load_model(tmp_path)


def test_a_path_that_is_not_there_is_refused(tmp_path):
    for name in (tmp_path / "nowhere", str(tmp_path / "nowhere"), "./nowhere", "a/b/c", "~/nowhere/at/all"):
        with pytest.raises(FileError, match="there is no folder .*Give a Hugging Face model directory or a hub id"):
            load_model(name)


def test_a_hub_id_that_cannot_be_fetched_is_refused():
    with pytest.raises(FileError, match="'nobody/no-such-model': no such folder, and the hub cannot be reached"):
        load_model("nobody/no-such-model")


# --- tokenizers ------------------------------------------------------------------------------------------------------
def small_tokenizer():
    """Words, with ids that no other tokenizer gives."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"zero": 0, "two": 1, "one": 2, "<end>": 3}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="zero"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>")


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_the_tokenizer_gives_the_ids_of_the_folder(tmp_path, family):
    """Booting puts the automatic class in its place, which for some model types changes how text is split."""
    save_tiny(family, tmp_path, vocab_size=7)
    small_tokenizer().save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).encode("one two one") == [2, 1, 2]
    assert load_tokenizer(str(tmp_path)).encode("one two one") == [2, 1, 2]
    model = load_model(tmp_path)
    assert model.tokenizer.encode("one two one") == [2, 1, 2]
    assert model.tokenizer.get_vocab() == {"zero": 0, "two": 1, "one": 2, "<end>": 3}
    assert model.tokenizer.bos_token is None
    assert host_of(model).shape.vocabulary == 7  # the model's, not the tokenizer's


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    for name in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileError, match=r"cannot load a tokenizer from|there is no folder .*nowhere"):
            load_tokenizer(name)


# --- models from elsewhere -------------------------------------------------------------------------------------------
def test_a_bridge_that_the_user_booted_gives_the_same_map(folder, trace):
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(str(folder), device="cpu", dtype=torch.float32)
    found = step_saliency(bridge, trace)
    assert relative_error(found.mass, step_saliency(load_model(folder), trace).mass) <= 1e-6
    assert any(parameter.requires_grad for parameter in bridge.parameters())  # left as the user had it


def test_a_host_is_chosen_by_the_name_of_the_model_s_class_or_of_a_base():
    class HookedTransformer:
        pass

    class Mine(HookedTransformer):
        pass

    for model in (HookedTransformer(), Mine()):
        host = host_of(model)
        assert isinstance(host, HookedTransformerHost)
        assert host.model is model
    assert isinstance(host_of(object()), BridgeHost)


def test_a_host_holds_nothing_but_its_model(folder):
    model = load_model(folder)
    assert host_of(model) == host_of(model)
    assert host_of(model) != host_of(load_model(folder))


def test_a_model_is_looked_up_with_the_sizes_that_it_loads_with(folder):
    from transformers import AutoConfig, AutoModelForCausalLM

    facts = look_up(folder.name, folder.parent)
    model = load_model(facts.path)
    size = host_of(model).shape
    assert facts.path == str(folder.resolve())
    assert (facts.layers, facts.heads) == (size.layers, size.heads)
    config = AutoConfig.from_pretrained(folder)
    assert (size.d_model, size.d_head) == (config.hidden_size, config.hidden_size // config.num_attention_heads)
    original = AutoModelForCausalLM.from_pretrained(folder)
    assert facts.bytes == 4 * sum(parameter.numel() for parameter in original.parameters())


def test_other_weights_and_another_tokenizer_change_the_fingerprint(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    before = look_up(str(folder), Path()).fingerprint
    assert look_up("copy", tmp_path).fingerprint == before
    for name in ("model.safetensors", "tokenizer.json"):
        path = tmp_path / "copy" / name
        content = path.read_bytes()
        path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
        assert look_up("copy", tmp_path).fingerprint != before
        path.write_bytes(content)
    assert look_up("copy", tmp_path).fingerprint == before


def test_a_model_that_is_not_there_is_not_looked_up(tmp_path):
    with pytest.raises(FileError, match=r"(?s)cannot read the model 'nowhere'.* Give 'bundled', a Hugging Face"):
        look_up("nowhere", tmp_path)


def test_every_query_head_gets_a_copy_of_the_keys_it_reads():
    tensor = torch.rand(2, 5, 3, 7)
    assert torch.equal(per_query_head(tensor, 12), tensor.repeat_interleave(4, dim=2))
    assert torch.equal(per_query_head(tensor, 3), tensor)


# --- import ----------------------------------------------------------------------------------------------------------
def test_importing_loads_nothing_heavy_but_torch():
    code = """
import sys, torch
before = set(sys.modules)
import stepsal
print(*{name.partition(".")[0] for name in set(sys.modules) - before})
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    loaded = set(ran.stdout.split())
    assert "stepsal" in loaded
    heavy = {
        "transformers",
        "transformer_lens",
        "tokenizers",
        "pandas",
        "matplotlib",
        "circuitsvis",
        "datasets",
        "scipy",
        "IPython",
    }
    assert loaded.isdisjoint(heavy)
    assert stepsal.__all__ == sorted(stepsal.__all__)
