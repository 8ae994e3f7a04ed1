"""What a config.json means: real files read right, unsupported ones refused by the name of the field."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest

from gyges.errors import UnknownNameError, UserError
from gyges.models.config import DecoderConfig

# The fields of published config.json files that matter, as published.
LLAMA2_7B = {
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "vocab_size": 32000,
    "eos_token_id": 2,
}
LLAMA31_8B = {
    **LLAMA2_7B,
    "attention_bias": False,
    "eos_token_id": [128001, 128008, 128009],
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "num_key_value_heads": 8,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
QWEN25_05B = {
    "model_type": "qwen2",
    "hidden_act": "silu",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 21,
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 151936,
    "eos_token_id": 151645,
}
QWEN3_06B = {
    "model_type": "qwen3",
    "attention_bias": False,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 151936,
    "eos_token_id": 151645,
}


def without(config: dict, *names: str) -> dict:
    return {key: value for key, value in config.items() if key not in names}


def test_llama2_has_no_bias_and_fp16_is_served_without_loss():
    config = DecoderConfig.from_hf(LLAMA2_7B)
    assert (config.head_dim, config.num_kv_heads, config.rope.rope_type, config.rope.theta) == (128, 32, "default", 1e4)
    assert not any((config.qkv_bias, config.o_bias, config.mlp_bias, config.qk_norm, config.tied_embeddings))
    assert config.eos_token_ids == (2,)
    assert config.dtype == "float32"


def test_llama31_reads_its_rope_scaling_and_its_three_end_tokens():
    config = DecoderConfig.from_hf(LLAMA31_8B)
    rope = config.rope
    assert (rope.rope_type, rope.theta, rope.factor, rope.low_freq_factor, rope.high_freq_factor) == (
        "llama3",
        500000.0,
        8.0,
        1.0,
        4.0,
    )
    assert rope.original_max_position == 8192
    assert config.max_position == 131072
    assert config.eos_token_ids == (128001, 128008, 128009)
    assert config.dtype == "bfloat16"


def test_qwen25_biases_q_k_v_only_and_its_idle_window_is_ignored():
    config = DecoderConfig.from_hf(QWEN25_05B)
    assert (config.qkv_bias, config.o_bias, config.mlp_bias, config.qk_norm) == (True, False, False, False)
    assert config.tied_embeddings
    assert config.head_dim == 64


def test_qwen3_normalises_q_and_k_and_its_heads_do_not_add_up_to_the_hidden_size():
    config = DecoderConfig.from_hf(QWEN3_06B)
    assert config.qk_norm
    assert not config.qkv_bias
    assert config.num_heads * config.head_dim == 2048 != config.hidden_size
    assert DecoderConfig.from_hf(without(QWEN3_06B, "head_dim")).head_dim == 128


def test_absent_kv_heads_are_the_query_heads_in_llama_and_an_error_in_qwen():
    assert DecoderConfig.from_hf(without(LLAMA2_7B, "num_key_value_heads")).num_kv_heads == 32
    with pytest.raises(UserError, match="num_key_value_heads"):
        DecoderConfig.from_hf(without(QWEN25_05B, "num_key_value_heads"))


def test_attention_bias_means_q_k_v_and_o_where_the_architecture_has_the_switch():
    for file in (LLAMA2_7B, QWEN3_06B):
        config = DecoderConfig.from_hf({**file, "attention_bias": True})
        assert (config.qkv_bias, config.o_bias) == (True, True)


@pytest.mark.parametrize("file", [LLAMA31_8B, QWEN25_05B, QWEN3_06B], ids=lambda f: f["model_type"])
def test_older_and_newer_spelling_mean_the_same_model(file):
    newer = without(file, "rope_theta", "rope_scaling", "torch_dtype")
    newer["rope_parameters"] = {
        "rope_type": "default",
        **(file.get("rope_scaling") or {}),
        "rope_theta": file["rope_theta"],
    }
    newer["dtype"] = file["torch_dtype"]
    assert DecoderConfig.from_hf(newer) == DecoderConfig.from_hf(file)


@pytest.mark.parametrize("file", [LLAMA2_7B, LLAMA31_8B, QWEN25_05B, QWEN3_06B])
def test_agrees_with_what_transformers_makes_of_the_same_file(file):
    from transformers import AutoConfig

    theirs = AutoConfig.for_model(**copy.deepcopy(file))
    ours = DecoderConfig.from_hf(file)
    assert DecoderConfig.from_hf(theirs.to_dict()) == ours, "what transformers saves again means the same model"
    assert ours.num_kv_heads == theirs.num_key_value_heads
    assert ours.head_dim == getattr(theirs, "head_dim", theirs.hidden_size // theirs.num_attention_heads)
    assert ours.rms_norm_eps == theirs.rms_norm_eps
    assert ours.rope.theta == theirs.rope_parameters["rope_theta"]
    assert ours.tied_embeddings == theirs.tie_word_embeddings


def test_unknown_architecture_lists_the_known_ones():
    with pytest.raises(UnknownNameError, match=r"'mixtral'.*llama, qwen2, qwen3"):
        DecoderConfig.from_hf({**LLAMA2_7B, "model_type": "mixtral"})
    with pytest.raises(UserError, match=r"model_type.*llama, qwen2, qwen3"):
        DecoderConfig.from_hf(without(LLAMA2_7B, "model_type"))


@pytest.mark.parametrize(
    ("file", "change", "field"),
    [
        (QWEN25_05B, {"use_sliding_window": True}, "use_sliding_window"),
        (QWEN25_05B, {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        (LLAMA2_7B, {"sliding_window": 4096}, "sliding_window"),
        (LLAMA2_7B, {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        (LLAMA2_7B, {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        (LLAMA2_7B, {"hidden_act": "gelu"}, "hidden_act"),
        (LLAMA2_7B, {"attention_bias": "qkv"}, "attention_bias"),
        (QWEN25_05B, {"attention_bias": False}, "attention_bias"),
        (QWEN25_05B, {"mlp_bias": True}, "mlp_bias"),
        (LLAMA2_7B, {"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
        (QWEN3_06B, {"num_experts": 128}, "num_experts"),
        (LLAMA2_7B, {"rope_scaling": {"type": "longrope"}}, "longrope.*default, dynamic, linear, llama3, yarn"),
        (LLAMA2_7B, {"rope_scaling": {"type": "linear"}}, "factor"),
        (LLAMA2_7B, {"rope_scaling": {"type": "linear", "factor": "2"}}, "factor"),
        (LLAMA2_7B, {"rope_scaling": {"rope_type": "default", "mrope_section": [16, 24, 24]}}, "mrope_section"),
        (LLAMA2_7B, {"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "full_attention"),
        (LLAMA31_8B, {"rope_scaling": {**LLAMA31_8B["rope_scaling"], "low_freq_factor": 4.0}}, "low_freq_factor"),
        (LLAMA2_7B, {"rope_theta": 0}, "rope_theta"),
        (LLAMA2_7B, {"torch_dtype": "float8_e4m3fn"}, "float8_e4m3fn"),
        (LLAMA2_7B, {"num_key_value_heads": 5}, "num_key_value_heads"),
        (LLAMA2_7B, {"hidden_size": 4097}, "hidden_size"),
        (LLAMA2_7B, {"head_dim": 15}, "head_dim"),
        (LLAMA2_7B, {"num_hidden_layers": True}, "num_hidden_layers"),
        (LLAMA2_7B, {"rms_norm_eps": "small"}, "rms_norm_eps"),
        (LLAMA2_7B, {"eos_token_id": "</s>"}, "eos_token_id"),
        (LLAMA2_7B, {"vocab_size": None}, "vocab_size"),
    ],
)
def test_what_is_not_supported_is_refused_by_the_name_of_its_field(file, change, field):
    DecoderConfig.from_hf(file)
    with pytest.raises(UserError, match=field):
        DecoderConfig.from_hf({**file, **change})


def test_a_window_that_starts_after_the_last_layer_is_not_active():
    DecoderConfig.from_hf({**QWEN25_05B, "use_sliding_window": True, "max_window_layers": 24})
    DecoderConfig.from_hf({**QWEN25_05B, "layer_types": ["full_attention"] * 24})


def test_yarn_stretches_the_longest_position_even_where_the_file_kept_the_old_one():
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    assert DecoderConfig.from_hf({**QWEN25_05B, "rope_scaling": scaling}).max_position == 131072
    longer = {**QWEN25_05B, "rope_scaling": scaling, "max_position_embeddings": 262144}
    assert DecoderConfig.from_hf(longer).max_position == 262144


def test_geometry_counts_bytes_in_the_dtype_asked_for():
    config = DecoderConfig.from_hf(LLAMA31_8B)
    assert config.geometry().item_size == config.geometry("bfloat16").item_size == 2
    assert config.geometry("float32").kv_bytes_per_token == 2 * 32 * 8 * 128 * 4
    with pytest.raises(UnknownNameError, match="bfloat16, float32"):
        config.geometry("float16")


def test_reading_a_model_description_needs_no_torch():
    code = (
        "import sys, gyges.models.hub as hub; hub.resolve_model('small').config.geometry(); "
        "assert not {'torch', 'transformers', 'safetensors'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
