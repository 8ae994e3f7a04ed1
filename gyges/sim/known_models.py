"""Sizes of common models under their hub ids, as in their config.json, so that a simulation needs no network.

Sources: the config.json of each repository. Only what sizes and positions need; a fine-tuned variant has the sizes of its base.
"""

from __future__ import annotations

from typing import Any


def _config(
    model_type: str,
    hidden: int,
    ffn: int,
    layers: int,
    heads: int,
    kv_heads: int,
    vocab: int,
    longest: int,
    **more: Any,
) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "max_position_embeddings": longest,
        "torch_dtype": "bfloat16",
        **more,
    }


_QWEN3 = {"head_dim": 128}
_TIED = {"tie_word_embeddings": True}

KNOWN_MODELS: dict[str, dict[str, Any]] = {
    "meta-llama/Llama-2-7b-hf": _config("llama", 4096, 11008, 32, 32, 32, 32000, 4096),
    "meta-llama/Llama-2-13b-hf": _config("llama", 5120, 13824, 40, 40, 40, 32000, 4096),
    "meta-llama/Meta-Llama-3-8B": _config("llama", 4096, 14336, 32, 32, 8, 128256, 8192),
    "meta-llama/Meta-Llama-3-70B": _config("llama", 8192, 28672, 80, 64, 8, 128256, 8192),
    "meta-llama/Llama-3.1-8B": _config("llama", 4096, 14336, 32, 32, 8, 128256, 131072),
    "meta-llama/Llama-3.1-70B": _config("llama", 8192, 28672, 80, 64, 8, 128256, 131072),
    "meta-llama/Llama-3.2-1B": _config("llama", 2048, 8192, 16, 32, 8, 128256, 131072, head_dim=64, **_TIED),
    "meta-llama/Llama-3.2-3B": _config("llama", 3072, 8192, 28, 24, 8, 128256, 131072, head_dim=128, **_TIED),
    "meta-llama/Llama-3.3-70B-Instruct": _config("llama", 8192, 28672, 80, 64, 8, 128256, 131072),
    "Qwen/Qwen2.5-0.5B": _config("qwen2", 896, 4864, 24, 14, 2, 151936, 32768, **_TIED),
    "Qwen/Qwen2.5-1.5B": _config("qwen2", 1536, 8960, 28, 12, 2, 151936, 131072, **_TIED),
    "Qwen/Qwen2.5-7B": _config("qwen2", 3584, 18944, 28, 28, 4, 152064, 131072),
    "Qwen/Qwen2.5-14B": _config("qwen2", 5120, 13824, 48, 40, 8, 152064, 131072),
    "Qwen/Qwen2.5-32B": _config("qwen2", 5120, 27648, 64, 40, 8, 152064, 131072),
    "Qwen/Qwen2.5-72B": _config("qwen2", 8192, 29568, 80, 64, 8, 152064, 131072),
    "Qwen/Qwen3-0.6B": _config("qwen3", 1024, 3072, 28, 16, 8, 151936, 40960, **_QWEN3, **_TIED),
    "Qwen/Qwen3-4B": _config("qwen3", 2560, 9728, 36, 32, 8, 151936, 40960, **_QWEN3, **_TIED),
    "Qwen/Qwen3-8B": _config("qwen3", 4096, 12288, 36, 32, 8, 151936, 40960, **_QWEN3),
    "Qwen/Qwen3-14B": _config("qwen3", 5120, 17408, 40, 40, 8, 151936, 40960, **_QWEN3),
    "Qwen/Qwen3-32B": _config("qwen3", 5120, 25600, 64, 64, 8, 151936, 40960, **_QWEN3),
    "Qwen/Qwen3-30B-A3B": _config(
        "qwen3_moe", 2048, 6144, 48, 32, 4, 151936, 40960, **_QWEN3,
        num_experts=128, num_experts_per_tok=8, moe_intermediate_size=768,
    ),
}  # fmt: skip

# Variants whose sizes are those of their base.
SUFFIXES = ("-Instruct", "-Chat", "-Base")
ALIASES = {
    "meta-llama/Llama-2-7b-chat-hf": "meta-llama/Llama-2-7b-hf",
    "meta-llama/Llama-2-13b-chat-hf": "meta-llama/Llama-2-13b-hf",
    "meta-llama/Meta-Llama-3.1-8B": "meta-llama/Llama-3.1-8B",
    "meta-llama/Meta-Llama-3.1-70B": "meta-llama/Llama-3.1-70B",
}
