"""GGUF files, on a tiny one that is made here."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conformance import relative_error
from reference import influence_by_separate_passes
from tiny_gguf import SIZES, write_tiny_gguf
from tokenizers import Regex, pre_tokenizers

import stepsal
from stepsal import FileError, InputError, load_model, load_tokenizer, sweep
from stepsal.cli import main
from stepsal.models import host_of
from stepsal.models.loading import sizes
from stepsal.models.lookup import look_up, model_fingerprint, tokenizer_fingerprint
from stepsal.models.sources import locate

QUESTION = [{"role": "user", "content": "Facts: m = k + 25. k = 37.\nStart at k. What is m?"}]
RESPONSE = "First k = 37.\n\nThen m = 62.\n</think>\n\nSo 62"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.Q.gguf")


@pytest.fixture(scope="module")
def model(path):
    return load_model(path)


@pytest.fixture(scope="module")
def folder(model, path, tmp_path_factory):
    """The same weights and tokenizer as a Hugging Face directory."""
    from transformers import AutoModelForCausalLM

    where = tmp_path_factory.mktemp("plain")
    original = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name)
    config = original.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config)
    plain.load_state_dict(original.state_dict())
    plain.save_pretrained(where)
    load_tokenizer(path).save_pretrained(where)
    return where


def test_a_gguf_file_gives_the_maps_of_the_same_weights_in_a_folder(model, path, folder):
    plain = load_model(folder)
    trace = stepsal.Trace.from_text(model.tokenizer, QUESTION, RESPONSE)
    assert len(trace.steps) > 3
    found, expected = (stepsal.step_saliency(each, trace) for each in (model, plain))
    assert torch.equal(found.mass, expected.mass)
    assert found.meta["model"] == str(path)
    assert load_tokenizer(folder).encode(trace.text) == load_tokenizer(path).encode(trace.text)


def test_influence_of_a_gguf_model_is_that_of_separate_backward_passes(model):
    trace = stepsal.Trace.from_text(model.tokenizer, "k = 37.", "So 62")
    expected = influence_by_separate_passes(model, trace.tokens)
    assert relative_error(stepsal.token_influence(model, trace), expected) <= 1e-5


def test_two_loads_have_one_fingerprint_and_other_weights_another(model, path, tmp_path):
    assert model_fingerprint(load_model(path)) == model_fingerprint(model)
    moved = shutil.copy(path, tmp_path / "renamed.gguf")
    assert model_fingerprint(load_model(moved)) == model_fingerprint(model)
    assert look_up(str(moved), Path()).fingerprint == look_up(str(path), Path()).fingerprint

    def scaled(weights):
        return weights | {"output.weight": 2 * weights["output.weight"]}

    other = write_tiny_gguf(tmp_path / "other.gguf", tensors=scaled)
    assert model_fingerprint(load_model(other)) != model_fingerprint(model)
    assert look_up(str(other), Path()).fingerprint != look_up(str(path), Path()).fingerprint


def test_a_gguf_file_is_looked_up_without_its_weights(path):
    from transformers import AutoModelForCausalLM

    facts = look_up(path.name, path.parent)
    plain = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name)
    count = sum(parameter.numel() for parameter in plain.parameters())
    assert (facts.path, facts.bytes) == (str(path.resolve()), 4 * count)
    assert (facts.layers, facts.heads) == sizes(path) == (SIZES["layers"], SIZES["heads"])


def test_the_tokenizer_and_the_chat_template_come_out_of_the_file(model, path):
    bundled, tokenizer = load_tokenizer(), load_tokenizer(path)
    assert tokenizer.get_vocab() == bundled.get_vocab()
    assert tokenizer.chat_template == bundled.chat_template
    assert tokenizer.eos_token_id in host_of(model).stop_tokens()
    assert tokenizer_fingerprint(tokenizer) == tokenizer_fingerprint(model.tokenizer)
    text = "Then m = 62.\n\n<think>  é🙂"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_every_special_token_is_one_token_at_its_own_id(path):
    """Some of R1's have letters that transformers 5.23.0 takes for a mistake of the file, and leaves out."""
    bundled, tokenizer = load_tokenizer(), load_tokenizer(path)
    assert {**bundled.get_added_vocab()} == tokenizer.get_added_vocab()
    for token, index in bundled.get_added_vocab().items():
        assert tokenizer.encode(f"a{token}b")[1:-1] == [index]
    assert (len(tokenizer), tokenizer.eos_token_id) == (len(bundled), bundled.eos_token_id)


@pytest.mark.parametrize(("split", "digits"), [("gpt-2", r"\p{N}+"), ("smollm", r"\p{N}")])
def test_text_is_split_as_the_file_says(split, digits, path, tmp_path):
    """llama.cpp's rule for `smollm`: each digit apart, and the rest as GPT-2 does it."""
    like_gpt2 = rf"'s|'t|'re|'ve|'m|'ll|'d| ?\p{{L}}+| ?{digits}| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+"
    rules = [pre_tokenizers.Split(Regex(like_gpt2), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    if split == "smollm":
        rules.insert(0, pre_tokenizers.Split(Regex(r"\p{N}"), "isolated"))
    tokenizer = load_tokenizer(write_tiny_gguf(tmp_path / "tiny.gguf", split=split))
    found = tokenizer.backend_tokenizer.pre_tokenizer
    for text in ("a  5 = 12\n\n3", "It's 3.14, then\n\n\n 62", "x²  7"):
        assert found.pre_tokenize_str(text) == pre_tokenizers.Sequence(rules).pre_tokenize_str(text)


def test_a_rule_for_splitting_that_transformers_does_not_know_is_warned_of(tmp_path):
    file = write_tiny_gguf(tmp_path / "tiny.gguf", split="own-rule")
    with pytest.warns(UserWarning, match="splits text as 'own-rule', which transformers does not know"):
        load_tokenizer(file)


def test_a_gguf_file_goes_through_the_commands(path, tmp_path):
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"prompt": "k = 37.", "answer": "37"}\n')
    answers, maps = tmp_path / "answers.jsonl", tmp_path / "maps"
    command = ["generate", str(questions), "--model", str(path), "--max-new-tokens", "6", "--out", str(answers)]
    assert main(command) == 0
    assert main(["saliency", str(answers), "--model", str(path), "--out", str(maps)]) == 0


def test_the_workers_of_a_sweep_load_a_gguf_file(path, tmp_path):
    config = {
        "model": {"name": str(path)},
        "problems": {"count": 2},
        "decoding": {"max_new_tokens": 4, "batch_size": 1},
        "grid": {"parts": ["both"]},
    }
    rows = sweep(config, out=tmp_path / "out", workers=2, progress=False)
    assert {about["model"] for about in map(json.loads, rows["model"])} == {str(path.resolve())}


# --- what cannot be loaded -------------------------------------------------------------------------------------------
def test_a_file_that_is_not_there_is_said(tmp_path):
    for name in ("nowhere.gguf", str(tmp_path / "nowhere.gguf"), "folder/nowhere.gguf"):
        for load in (load_model, load_tokenizer):
            with pytest.raises(FileError, match=r"there is no file .*nowhere.gguf. Give"):
                load(name)


@pytest.mark.parametrize("keep", [-5, 0.5, 100, 10, 4])
def test_a_cut_file_is_noticed(keep, path, tmp_path):
    whole, cut = path.read_bytes(), tmp_path / "cut.gguf"
    cut.write_bytes(whole[: keep if isinstance(keep, int) else int(keep * len(whole))])
    for load in (load_model, load_tokenizer, lambda name: look_up(str(name), Path())):
        with pytest.raises(FileError, match="^[^ ]*cut.gguf is cut or damaged .*Fetch it again"):
            load(cut)


@pytest.mark.parametrize("content", [b"", b"no GGUF at all, but some text"])
def test_a_file_that_is_no_gguf_file_is_refused(content, tmp_path):
    other = tmp_path / "other.gguf"
    other.write_bytes(content)
    for load in (load_model, load_tokenizer):
        with pytest.raises(FileError, match="^[^ ]*other.gguf is no GGUF file"):
            load(other)


def test_an_architecture_that_transformers_cannot_read_is_named(tmp_path):
    file = write_tiny_gguf(tmp_path / "tiny.gguf", architecture="cosmos9")
    for load in (load_model, load_tokenizer):
        with pytest.raises(
            FileError, match="cannot read a GGUF file of the architecture 'cosmos9'.* own folder or hub id"
        ):
            load(file)


def test_a_file_that_lacks_weights_is_refused(tmp_path):
    """transformers would make them up."""

    def without(weights):
        return {name: weight for name, weight in weights.items() if name != "blk.1.attn_q.weight"}

    file = write_tiny_gguf(tmp_path / "tiny.gguf", tensors=without)
    with pytest.raises(FileError, match="lacks 1 of the model's weights, .*layers.1.self_attn.q_proj.weight"):
        load_model(file)


def test_one_part_of_several_is_refused(tmp_path):
    file = write_tiny_gguf(
        tmp_path / "tiny-00001-of-00002.gguf", more=lambda writer: writer.add_uint16("split.count", 2)
    )
    with pytest.raises(FileError, match="is one of 2 parts of a model.*gguf-split --merge"):
        load_model(file)


def test_a_scaled_rotation_that_transformers_would_drop_is_refused(tmp_path):
    """As in the files of Llama 3.1 and R1-Distill-Llama: `rope_freqs.weight` has no place in the Hugging Face model."""

    def with_factors(weights):
        import numpy as np

        return weights | {"rope_freqs.weight": np.full(5, 8, np.float32)}

    file = write_tiny_gguf(tmp_path / "tiny.gguf", tensors=with_factors)
    with pytest.raises(FileError, match=r"scales the rotation .*\(rope_freqs.weight\)"):
        load_model(file)

    def stretched(writer):
        writer.add_string("llama.rope.scaling.type", "yarn")

    with pytest.raises(FileError, match=r"scales the rotation .*\(llama.rope.scaling.type\)"):
        load_model(write_tiny_gguf(tmp_path / "other.gguf", more=stretched))


def test_a_gguf_file_is_not_quantised_again(path):
    with pytest.raises(InputError, match="is a GGUF file, which is dequantised as it is loaded"):
        load_model(path, quantization="4bit")


# --- files on the hub ------------------------------------------------------------------------------------------------
def test_a_file_on_the_hub_is_named_by_its_repository_and_fetched(path, model, monkeypatch):
    asked = []

    def download(repository, file):
        asked.append((repository, file))
        return str(path)

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda *given, **options: None)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    loaded = load_model("owner/repo/quantised/tiny.gguf")
    assert set(asked) == {("owner/repo", "quantised/tiny.gguf")}
    assert loaded.cfg.model_name == "owner/repo/quantised/tiny.gguf"
    assert model_fingerprint(loaded) == model_fingerprint(model)
    assert look_up("owner/repo/quantised/tiny.gguf", Path()).path == "owner/repo/quantised/tiny.gguf"


def test_a_file_on_the_hub_without_a_network_comes_from_the_cache_or_not_at_all(path, tmp_path, monkeypatch):
    def unreachable(*given, **options):
        raise OSError("Network is unreachable")

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", unreachable)
    with pytest.raises(FileError, match="the hub cannot be reached"):
        load_model("owner/repo/tiny.gguf")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *given, **options: str(path.parent))
    assert locate(f"owner/repo/{path.name}") == str(path)
    with pytest.raises(FileError, match="no such file, and the hub cannot be reached"):
        locate("owner/repo/other.gguf")
