"""The floor's arithmetic, against numbers worked out by hand for a toy decoder."""

import pytest

from gyges.bench.floor import cost_of, floor_of, layer_parameters
from gyges.core import ModelGeometry

# hidden 8, 2 query heads and 1 KV head of 4, FFN 10, vocabulary 16, fp32.
TOY = ModelGeometry(
    num_layers=3,
    hidden_size=8,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    intermediate_size=10,
    vocab_size=16,
    item_size=4,
    tied_embeddings=True,
)


def test_a_layer_holds_q_k_v_o_and_three_ffn_matrices():
    # q 8x8, k 4x8, v 4x8, o 8x8; gate, up, down 10x8 each.
    assert layer_parameters(TOY) == 64 + 32 + 32 + 64 + 3 * 80 == 432


def test_cost_of_one_request_by_hand():
    # 3 prompt and 2 output tokens: tokens 1..4 are processed, attending to 1 + 2 + 3 + 4 = 10 tokens; 2 are sampled.
    cost = cost_of([(3, 2)], TOY)
    assert cost.linear_flops == 2 * 3 * 432 * 4
    assert cost.attention_flops == 4 * 10 * 2 * 4 * 3
    assert cost.lm_head_flops == 2 * 16 * 8 * 2
    assert cost.flops == 10368 + 960 + 512
    assert cost.steps == 2
    assert cost.weight_bytes == 2 * (3 * 432 + 128) * 4
    # K and V of a token: 2 x 3 layers x 1 head x 4 x 4 bytes = 96. One decode step reads 4 tokens; 4 are written.
    assert cost.kv_read_bytes == 4 * 96
    assert cost.kv_write_bytes == 4 * 96
    assert cost.bytes == 11392 + 384 + 384


def test_one_output_token_needs_no_decode_step():
    cost = cost_of([(5, 1)], TOY)
    assert (cost.steps, cost.kv_read_bytes, cost.kv_write_bytes) == (1, 0, 5 * 96)


def test_flops_and_kv_add_up_over_requests_but_weights_are_read_once_per_common_step():
    one, other, both = cost_of([(3, 2)], TOY), cost_of([(7, 5)], TOY), cost_of([(3, 2), (7, 5)], TOY)
    assert both.flops == one.flops + other.flops
    assert both.kv_read_bytes == one.kv_read_bytes + other.kv_read_bytes
    assert both.kv_write_bytes == one.kv_write_bytes + other.kv_write_bytes
    assert (both.steps, both.weight_bytes) == (5, other.weight_bytes)


@pytest.mark.parametrize(
    ("flops_per_s", "bytes_per_s", "bound"), [(1184.0, 12160.0, "compute"), (11840.0, 1216.0, "memory")]
)
def test_the_slower_of_compute_and_memory_is_the_floor(flops_per_s, bytes_per_s, bound):
    floor = floor_of(cost_of([(3, 2)], TOY), flops_per_s, bytes_per_s)
    assert (floor.bound, floor.time_s) == (bound, 10.0)
    assert min(floor.compute_s, floor.memory_s) == 1.0
