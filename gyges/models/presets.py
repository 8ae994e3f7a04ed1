"""Models that need no download: real architectures with seeded random weights, as Hugging Face config dicts.

They are small enough for a laptop core, and TP degrees 1, 2 and 4 fit them. transformers, vLLM and others load them
too, once :func:`gyges.models.source.save_checkpoint` has written them to a folder. No torch here.
"""

from __future__ import annotations

from typing import Any

from gyges.registry import Registry

PRESETS: Registry[dict[str, Any]] = Registry("model preset")

# 2.5 M parameters, Llama 3 style: llama3 rope stretched 8x, grouped-query attention, an LM head of its own.
PRESETS.add(
    "tiny",
    {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 192,
        "intermediate_size": 576,
        "num_hidden_layers": 4,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "head_dim": 16,
        "vocab_size": 2048,
        "max_position_embeddings": 16384,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 2048,
        },
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": "float32",
    },
)

# 46.4 M parameters, Qwen2.5 style: biases on q, k and v, tied embeddings, the 1.5B model's 12 query and 2 KV heads.
PRESETS.add(
    "small",
    {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": 768,
        "intermediate_size": 2304,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 8192,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "hidden_act": "silu",
        "use_sliding_window": False,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": "float32",
    },
)
