"""HookedTransformers (TransformerLens 3.9) of local Hugging Face directories; nothing here runs under TransformerLens 4."""

import warnings
from importlib.metadata import version

import torch

import stepsal

TL3 = version("transformer-lens").startswith("3.")
HOST = "hooked_transformer" if TL3 else "bridge"  # what the tests that hold of both kinds of models are run on

CONVERTED = ("Qwen2", "Llama", "Qwen3", "GPT-OSS", "Mistral", "Mistral, windows", "Phi-3", "OLMo 3", "Mixtral")
"""The families of `tests/families.py` that are exact as a HookedTransformer of TransformerLens 3.9; the others are refused."""


def load_hooked(folder, dtype=torch.float32, **processing):
    """A frozen `HookedTransformer` as a user may load it; TransformerLens takes a family's name in the path for the family.

    processing: what TransformerLens does to the weights, such as `fold_ln=True`; nothing by default.
    """
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from transformer_lens import HookedTransformer, loading

        original = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        cfg = loading.get_pretrained_model_config(
            str(folder), device="cpu", dtype=dtype, fold_ln=processing.get("fold_ln", False)
        )
        model = HookedTransformer(cfg, stepsal.load_tokenizer(folder))
    weights = loading.get_pretrained_state_dict(str(folder), cfg, original, dtype=dtype)
    unprocessed = dict.fromkeys(("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases"), False)
    model.load_and_process_state_dict(weights, **unprocessed | processing)
    model.tokenizer = stepsal.load_tokenizer(folder)  # the constructor has put one in its place that prepends a BOS
    model.cfg.tokenizer_prepends_bos = False
    return model.requires_grad_(False).eval()


def in_chunks(model, tokens, size, mask=None):
    """Logits by a hand-written loop over a HookedTransformer's cache."""
    from transformer_lens import TransformerLensKeyValueCache

    cache = TransformerLensKeyValueCache.init_cache(model.cfg, "cpu", len(tokens))
    logits = []
    for start in range(0, tokens.shape[1], size):
        chunk = slice(start, min(start + size, tokens.shape[1]))
        options = {} if mask is None else {"attention_mask": mask[:, chunk]}
        logits.append(model(tokens[:, chunk], past_kv_cache=cache, **options))
    return torch.cat(logits, 1)
