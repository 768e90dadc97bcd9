"""Hugging Face's own model of a folder or a `.gguf` file, which the benchmarks compare stepsal with."""

from pathlib import Path
from typing import Any


def plain_model(path: str, attention: str) -> Any:
    """The model in float32, its weights frozen, with `sdpa` or `eager` attention."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(**_place(path), attn_implementation=attention, dtype=torch.float32)
    return model.eval().requires_grad_(False)


def vocabulary(path: str) -> int:
    """The number of tokens that the model knows."""
    from transformers import AutoConfig

    return int(AutoConfig.from_pretrained(**_place(path)).get_text_config().vocab_size)


def _place(path: str) -> dict[str, str]:
    if path.endswith(".gguf"):
        return {"pretrained_model_name_or_path": str(Path(path).parent), "gguf_file": Path(path).name}
    return {"pretrained_model_name_or_path": path}
