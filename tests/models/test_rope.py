"""Rotary tables carry the bits that transformers computes."""

from __future__ import annotations

import numpy as np
import pytest

from gyges.errors import UserError
from gyges.models.rope import ROPE_TYPES, RopeConfig, cos_sin_table, inverse_frequencies

LLAMA3 = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 2048,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
CASES = {
    "default": {"rope_type": "default"},
    "default, theta 1e6": {"rope_type": "default", "rope_theta": 1000000.0},
    "linear": {"rope_type": "linear", "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "dynamic, odd factor": {"rope_type": "dynamic", "factor": 1.7},
    "llama3 x8": {**LLAMA3, "factor": 8.0, "rope_theta": 500000.0},
    "llama3 x32": {**LLAMA3, "factor": 32.0, "rope_theta": 500000.0},
    "yarn": YARN,
    "yarn, theta 1e6": {**YARN, "rope_theta": 1000000.0},
    "yarn, betas": {**YARN, "beta_fast": 16.0, "beta_slow": 2.0},
    "yarn, attention factor": {**YARN, "attention_factor": 1.25},
    "yarn, mscale": {**YARN, "mscale": 0.8, "mscale_all_dim": 1.2},
    "yarn, not truncated": {**YARN, "truncate": False},
}
LONGEST = 16384


def transformers_rotary(parameters: dict, head_dim: int):
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        head_dim=head_dim,
        max_position_embeddings=LONGEST,
        rope_parameters={"rope_theta": 10000.0, **parameters},
    )
    return config, LlamaRotaryEmbedding(config)


@pytest.mark.parametrize("head_dim", [16, 64, 128, 80])
@pytest.mark.parametrize("case", CASES)
def test_frequencies_are_those_of_transformers_bit_for_bit(case, head_dim):
    config, theirs = transformers_rotary(CASES[case], head_dim)
    rope = RopeConfig.from_hf({"rope_parameters": CASES[case], "max_position_embeddings": LONGEST})
    ours, scaling = inverse_frequencies(rope, head_dim, LONGEST)
    assert ours.dtype == np.float32
    assert ours.shape == (head_dim // 2,)
    np.testing.assert_array_equal(ours, theirs.inv_freq.numpy())
    assert scaling == theirs.attention_scaling
    # And from what transformers makes of the settings when it saves them.
    again = RopeConfig.from_hf({"rope_parameters": config.rope_parameters, "max_position_embeddings": LONGEST})
    assert again == rope


def test_every_registered_type_is_checked_against_transformers():
    assert {case["rope_type"] for case in CASES.values()} == set(ROPE_TYPES.names())


@pytest.mark.parametrize("case", CASES)
def test_tables_are_those_of_transformers_bit_for_bit_up_to_the_last_position(case):
    import torch

    _, theirs = transformers_rotary(CASES[case], 64)
    rope = RopeConfig.from_hf({"rope_parameters": CASES[case], "max_position_embeddings": LONGEST})
    cos, sin = cos_sin_table(rope, 64, LONGEST)
    assert cos.shape == sin.shape == (LONGEST, 32)
    assert cos.dtype == sin.dtype == np.float32
    their_cos, their_sin = theirs(torch.zeros(1), torch.arange(LONGEST)[None])
    np.testing.assert_array_equal(cos, their_cos[0, :, :32].numpy())
    np.testing.assert_array_equal(sin, their_sin[0, :, 32:].numpy())


def test_a_shorter_table_is_the_beginning_of_the_longer_one():
    rope = RopeConfig.from_hf({"rope_parameters": CASES["llama3 x8"]})
    for short, long in zip(cos_sin_table(rope, 64, LONGEST, 100), cos_sin_table(rope, 64, LONGEST), strict=True):
        np.testing.assert_array_equal(short, long[:100])


def test_dynamic_rope_changes_nothing_up_to_the_longest_position_and_is_refused_beyond():
    rope = RopeConfig.from_hf({"rope_scaling": {"type": "dynamic", "factor": 4.0}})
    plain = RopeConfig()
    np.testing.assert_array_equal(inverse_frequencies(rope, 64, 2048)[0], inverse_frequencies(plain, 64, 2048)[0])
    cos_sin_table(rope, 64, 2048, 2048)
    with pytest.raises(UserError, match=r"dynamic.*max_position_embeddings = 2048"):
        cos_sin_table(rope, 64, 2048, 2049)


def test_settings_of_the_older_form_win_over_empty_newer_ones():
    old = {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": None}
    assert RopeConfig.from_hf(old) == RopeConfig("linear", 5e5, factor=2.0)


def test_the_length_before_stretching_may_stand_beside_the_settings_or_be_the_longest():
    yarn = {"rope_type": "yarn", "factor": 2.0}
    longest = {"max_position_embeddings": 8192}
    assert RopeConfig.from_hf({"rope_parameters": yarn, **longest}).original_max_position == 8192
    beside = {"rope_parameters": yarn, **longest, "original_max_position_embeddings": 4096}
    assert RopeConfig.from_hf(beside).original_max_position == 4096
    no_factor = {"rope_parameters": {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 2048}}
    assert RopeConfig.from_hf({**no_factor, **longest}).factor == 4.0
