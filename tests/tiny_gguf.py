"""A tiny GGUF file: the Llama architecture, seeded random weights, and the bundled reasoner's byte-level tokenizer."""

import json

import gguf
import numpy as np

import stepsal

SIZES = {"layers": 3, "heads": 4, "kv_heads": 2, "width": 40, "inner": 56}


def write_tiny_gguf(path, *, architecture="llama", split="gpt-2", tensors=None, more=None):
    """The path, after the file is written. `tensors` takes the weights by name and gives those that are to be written."""
    tokenizer = stepsal.load_tokenizer()
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(SIZES["layers"])
    writer.add_context_length(512)
    writer.add_embedding_length(SIZES["width"])
    writer.add_feed_forward_length(SIZES["inner"])
    writer.add_head_count(SIZES["heads"])
    writer.add_head_count_kv(SIZES["kv_heads"])
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(vocabulary))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list([token for token, _ in vocabulary])
    special = set(tokenizer.all_special_tokens) | set(tokenizer.get_added_vocab())
    writer.add_token_types(
        [gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token, _ in vocabulary]
    )
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    if more is not None:
        more(writer)
    weights = _weights(len(vocabulary))
    for name, weight in (weights if tensors is None else tensors(weights)).items():
        writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _weights(vocabulary):
    generator, width, inner = np.random.default_rng(0), SIZES["width"], SIZES["inner"]
    narrow = width * SIZES["kv_heads"] // SIZES["heads"]

    def matrix(*shape):
        return (0.15 * generator.standard_normal(shape)).astype(np.float32)

    weights = {"token_embd.weight": matrix(vocabulary, width), "output_norm.weight": np.ones(width, np.float32)}
    weights["output.weight"] = matrix(vocabulary, width)
    for layer in range(SIZES["layers"]):
        shapes = {"attn_q": (width, width), "attn_k": (narrow, width), "attn_v": (narrow, width)}
        shapes |= {"attn_output": (width, width), "ffn_gate": (inner, width), "ffn_up": (inner, width)}
        shapes |= {"ffn_down": (width, inner), "attn_norm": (width,), "ffn_norm": (width,)}
        for name, shape in shapes.items():
            weights[f"blk.{layer}.{name}.weight"] = matrix(*shape) if len(shape) > 1 else np.ones(shape, np.float32)
    return weights
