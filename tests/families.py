"""Tiny seeded models of the families that reasoning models belong to, with the traits that make each of them different.

No two sizes are alike where a family allows it, attention is grouped, weights are large so that attention is far from
uniform, and windows are shorter than the traces.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import stepsal

WINDOW = 13
LONGROPE = 128  # tokens from which LongRoPE turns by other angles; the traces are shorter
SLIDES, FULL = "sliding_attention", "full_attention"
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
RECURRENT = "linear_attention"
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 20, "mamba_d_state": 6, "mamba_n_groups": 1}
# The delta rule computes in float32 whatever the model's precision, and the larger the weights, the more its two forms (for
# many tokens and for one) round apart: by 5e-5 with the other families' weights.
DELTA_NET = {
    "initializer_range": 0.1,
    "num_hidden_layers": 5, "layer_types": [FULL, RECURRENT] * 2 + [FULL], "head_dim": 12, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "linear_key_head_dim": 32, "linear_value_head_dim": 10,
}  # fmt: skip
CONVOLUTION = {"num_hidden_layers": 5, "layer_types": [FULL, "conv"] * 2 + [FULL]}
LATENT = {
    "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 12, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4,
    "v_head_dim": 14, "n_routed_experts": 4, "n_group": 2, "topk_group": 1, "n_shared_experts": 1,
    "first_k_dense_replace": 1, **EXPERTS,
}  # fmt: skip


def yarn(context: int) -> dict[str, Any]:
    return {
        "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": context
        }
    }  # fmt: skip


@dataclass(frozen=True)
class Family:
    """A line of the support table: what it is called, who belongs to it, what is special, and how a tiny one is made."""

    name: str
    models: str
    special: str
    kind: str  # the prefix of its Hugging Face classes
    changes: dict[str, Any] = field(default_factory=dict)


FAMILIES = (
    Family("Qwen2", "R1-Distill-Qwen, QwQ, Qwen2.5", "biases", "Qwen2"),
    Family(
        "Qwen2, windows", "Qwen2 with `use_sliding_window`", "sliding windows in some layers", "Qwen2",
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    Family("Llama", "R1-Distill-Llama, Llama 3", "", "Llama"),
    Family("Llama, YaRN", "models with YaRN-scaled rotation", "rotation that scales", "Llama", yarn(64)),
    Family("Qwen3", "Qwen3", "query and key norms", "Qwen3", {"head_dim": 12}),
    Family("Qwen3-MoE", "Qwen3-30B-A3B and larger", "experts", "Qwen3Moe", {"head_dim": 12, "num_experts": 4, **EXPERTS}),
    Family(
        "GPT-OSS", "gpt-oss-20b, gpt-oss-120b", "attention sinks, alternating windows, experts, YaRN", "GptOss",
        {"head_dim": 12, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": WINDOW},
    ),
    Family("Mistral", "Magistral, Mistral Small", "", "Mistral", {"head_dim": 12, "sliding_window": None}),
    Family(
        "Mistral, windows", "Mistral 7B v0.1", "sliding window in every layer", "Mistral",
        {"head_dim": 12, "sliding_window": WINDOW},
    ),
    Family("Phi-3", "Phi-3, Phi-4, Phi-4-reasoning", "one matrix for queries, keys and values", "Phi3"),
    Family(
        "Phi-3, partial rotation", "Phi-4-mini", "rotates part of each head, sliding windows", "Phi3",
        {"partial_rotary_factor": 0.5, "hidden_size": 48, "sliding_window": WINDOW},
    ),
    Family(
        "Phi-3, LongRoPE", "Phi-3-mini-128k, Phi-4-mini", "rotation that scales, out of sight", "Phi3",
        {"hidden_size": 48, "rope_parameters": {
            "rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "short_factor": [1.0, 1.1, 1.2],
            "long_factor": [2.0, 3.0, 4.0], "original_max_position_embeddings": LONGROPE,
        }},
    ),
    Family(
        "Gemma 3", "Gemma 3 (text)", "sliding windows, query and key norms", "Gemma3",
        {"head_dim": 12, "query_pre_attn_scalar": 10, "sliding_window": WINDOW, "layer_types": [SLIDES, FULL, SLIDES]},
    ),
    Family(
        "Gemma 2", "Gemma 2", "soft-capped scores, sliding windows", "Gemma2",
        {"head_dim": 12, "query_pre_attn_scalar": 10, "sliding_window": WINDOW, "attn_logit_softcapping": 3.0},
    ),
    Family("OLMo 2", "OLMo 2", "norms after attention", "Olmo2"),
    Family(
        "OLMo 3", "OLMo 3 Think", "sliding windows, norms after attention", "Olmo3",
        {"sliding_window": WINDOW, "layer_types": [SLIDES, FULL, SLIDES]},
    ),
    Family("GLM-4", "GLM-4, GLM-Z1", "rotates part of each head, in pairs", "Glm4", {"head_dim": 12}),
    Family(
        "GLM-4-MoE", "GLM-4.5 and later", "experts", "Glm4Moe",
        {"head_dim": 12, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "n_shared_experts": 1,
         "first_k_dense_replace": 1, **EXPERTS},
    ),
    Family("SmolLM3", "SmolLM3", "layers without rotation", "SmolLM3", {"no_rope_layers": [1, 0, 1]}),
    Family("DeepSeek-V3", "DeepSeek-V3, DeepSeek-R1", "latent attention, experts", "DeepseekV3", LATENT),
    Family("DeepSeek-V3, YaRN", "the same, as released", "a scale that YaRN changes", "DeepseekV3", LATENT | yarn(64)),
    Family("DeepSeek-V2", "DeepSeek-V2, V2-Lite", "latent attention, complex rotation", "DeepseekV2", LATENT),
    Family(
        "GLM-4-MoE-Lite", "GLM-4.7-Flash", "latent attention, experts", "Glm4MoeLite",
        LATENT | {"n_group": 1, "topk_group": 1},
    ),
    Family("MiniMax-M2", "MiniMax-M2", "experts, query and key norms", "MiniMaxM2",
           {"head_dim": 12, "num_local_experts": 4, "num_experts_per_tok": 2}),
    Family("Mixtral", "Mixtral", "experts", "Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    Family("Ministral 3", "Ministral 3 Reasoning", "", "Ministral3", {"head_dim": 12}),
    Family("Seed-OSS", "Seed-OSS-36B", "", "SeedOss", {"head_dim": 12}),
    Family("Granite", "Granite 3 and 4 (dense)", "a scale of its own", "Granite", {"attention_multiplier": 0.3}),
    Family("EXAONE 4", "EXAONE 4.0", "sliding windows without rotation elsewhere", "Exaone4",
           {"sliding_window": WINDOW, "layer_types": [SLIDES, FULL, SLIDES]}),
    Family("Cohere 2", "Command A Reasoning", "sliding windows, parallel blocks", "Cohere2",
           {"sliding_window": WINDOW, "layer_types": [SLIDES, FULL, SLIDES]}),
    Family("Qwen3.5", "Qwen3.5 (text)", "linear attention in most layers, gated heads", "Qwen3_5", DELTA_NET),
    Family("Qwen3-Next", "Qwen3-Next", "the same, with experts", "Qwen3Next",
           DELTA_NET | {"num_experts": 4, "shared_expert_intermediate_size": 24, **EXPERTS}),
    Family("LFM2", "LFM2", "convolutions in most layers", "Lfm2", CONVOLUTION | {"block_auto_adjust_ff_dim": False}),
    Family("LFM2-MoE", "LFM2-MoE", "the same, with experts", "Lfm2Moe",
           CONVOLUTION | {"num_dense_layers": 1, "num_experts": 4, **EXPERTS}),
    Family("Granite 4, hybrid", "Granite 4 (H)", "Mamba 2 in most layers, experts", "GraniteMoeHybrid",
           MAMBA | {"num_hidden_layers": 5, "layer_types": ["attention", "mamba"] * 2 + ["attention"],
                    "position_embedding_type": "nope",
                    "attention_multiplier": 0.3, "num_local_experts": 4, "num_experts_per_tok": 2,
                    "shared_intermediate_size": 32}),
    Family("Falcon-H1", "Falcon-H1", "Mamba 2 beside attention in every layer", "FalconH1",
           MAMBA | {"mamba_d_ssm": 40, "mamba_d_head": 10, "head_dim": 12}),
    Family("HunYuan", "HunYuan (dense)", "norms after the rotation", "HunYuanDenseV1", {"head_dim": 12}),
    Family("BLOOM", "BLOOM", "position added to the scores", "Bloom", {"n_layer": 3, "n_head": 4}),
)  # fmt: skip

REFUSED = (
    Family("Gemma 4", "Gemma 4 (text)", "layers that share keys and values, embeddings for each layer", "Gemma4",
           {"head_dim": 12, "num_hidden_layers": 6, "layer_types": [SLIDES, FULL] * 3, "num_kv_shared_layers": 2,
            "sliding_window": WINDOW, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 400}),
    Family("Jamba", "Jamba", "Mamba in most layers", "Jamba",
           {"num_hidden_layers": 6, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 1,
            "use_mamba_kernels": False, "mamba_d_state": 6}),
    Family("OLMo hybrid", "OLMo hybrid", "linear attention in most layers", "OlmoHybrid", DELTA_NET),
    Family("Bamba", "Bamba", "Mamba 2 in most layers", "Bamba", MAMBA | {"attn_layer_indices": [1]}),
    Family("Nemotron-H", "Nemotron-H, Nemotron 3", "Mamba 2 in most layers", "NemotronH",
           {"layers_block_type": ["mamba", "attention", "mlp"], "head_dim": 12, "mamba_num_heads": 4, "mamba_head_dim": 20,
            "ssm_state_size": 6, "n_groups": 1}),
    Family("Zamba 2", "Zamba 2", "Mamba 2, attention shared by layers", "Zamba2",
           {"num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid"] * 2, "hybrid_layer_ids": [1, 3],
            "mamba_d_state": 6, "mamba_ngroups": 1, "n_mamba_heads": 4, "mamba_headdim": 20}),
    Family("RecurrentGemma", "RecurrentGemma", "a recurrence in most layers", "RecurrentGemma",
           {"head_dim": 10, "block_types": ["recurrent", "attention"]}),
    Family("Mamba", "Mamba", "no attention", "Mamba"),
    Family("GLM-MoE-DSA", "GLM-5, DeepSeek-V3.2's attention", "a learned choice of keys", "GlmMoeDsa",
           LATENT | {"n_group": 1, "topk_group": 1, "index_topk": 8, "index_head_dim": 8, "index_n_heads": 2}),
)  # fmt: skip


def save_family(family: Family, folder: Path) -> Path:
    """A Hugging Face directory of the family's tiny model, with the reasoner's tokenizer."""
    import transformers

    tokenizer = stepsal.load_tokenizer()
    sizes = {
        "vocab_size": len(tokenizer), "hidden_size": 40, "intermediate_size": 56, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.15,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    config = getattr(transformers, f"{family.kind}TextConfig", None) or getattr(transformers, f"{family.kind}Config")
    torch.manual_seed(0)
    getattr(transformers, f"{family.kind}ForCausalLM")(config(**sizes | family.changes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
