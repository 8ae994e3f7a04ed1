"""What padding costs, by hand for shapes whose figures are easily worked out; which shapes there are; how they are cut."""

import pytest

from gyges.bench.transform.padding import MAX_DEGREES, matrix_padding, padding_memory
from gyges.bench.transform.shapes import CUDA_PAGE, SHAPES, sizing
from gyges.config import MIB
from gyges.core import ModelGeometry
from gyges.errors import UserError
from gyges.kv_cache.layouts import LAYOUTS


def test_every_shape_says_where_it_was_read_and_can_be_merged_to_tp4():
    assert {"tiny", "small", "llama2-7b", "llama3-8b", "qwen2.5-32b", "qwen3-32b"} <= set(SHAPES.names())
    for name, shape in SHAPES.items():
        assert shape.is_preset or "/" in shape.source, f"{name} has no hub id"
        assert shape.geometry.tp_degree_error(4) is None
        assert shape.geometry.item_size == (4 if shape.is_preset else 2)


def test_kv_bytes_per_token_are_those_that_are_known_of_the_models():
    # The paper: 256 KiB per token for Qwen2.5-32B; Llama 2 7B is known for 512 KiB, Llama 3 8B for 128 KiB.
    known = {"llama2-7b": 512, "llama3-8b": 128, "qwen2.5-32b": 256, "qwen3-32b": 256}
    assert {name: SHAPES.get(name).geometry.kv_bytes_per_token // 1024 for name in known} == known


def test_padding_of_one_piece_per_shard_by_hand():
    # 27648 / 4 rows x 5120 x 2 bytes x 3 matrices = 101.25 pages of 2 MiB, so 0.75 page for each of 64 layers x 4 shards.
    found = padding_memory("qwen2.5-32b", 4)
    assert found["padding_bytes"] == 64 * 4 * CUDA_PAGE * 3 // 4
    assert found["ffn_bytes"] == 64 * 3 * 5120 * 27648 * 2
    assert found["share_of_ffn"] == pytest.approx(0.75 / 101.25)
    # Rows of 10 KiB: 1024 of them are the least that ends on a page, and 6912 rows become 7168.
    assert found["by_matrix_share_of_ffn"] == pytest.approx(256 / 6912)
    # 14336 / 4 rows x 4096 x 2 bytes = 14 pages: nothing to pad either way.
    assert padding_memory("llama3-8b", 4)["padding_bytes"] == padding_memory("llama3-8b", 4)["by_matrix_bytes"] == 0


def test_one_piece_never_costs_more_than_each_matrix_by_itself():
    for name, shape in SHAPES.items():
        for degree in MAX_DEGREES:
            if shape.geometry.tp_degree_error(degree) is None and not shape.is_preset:
                found = padding_memory(name, degree)
                assert 0 <= found["padding_bytes"] <= found["by_matrix_bytes"]
                assert found["share_of_weights"] < found["share_of_ffn"] or not found["padding_bytes"]


def test_matrices_are_aligned_by_whole_rows():
    # Rows of 12 bytes on pages of 16: only 4 rows (48 bytes) end on a page. 5 rows a shard become 8.
    geometry = ModelGeometry(2, 3, 1, 1, 2, 10, 8, 4, False)
    assert matrix_padding(geometry, 2, 16) == 3 * 2 * 2 * (3 * 12)


@pytest.mark.parametrize("name", SHAPES.names())
def test_devices_hold_every_layout_with_padding_and_without(name):
    size = sizing(name, 4)
    for layout in LAYOUTS.names():
        for padding in (True, False):
            host = size.host(4, layout, padding=padding)
            assert min(host.max_groups(degree) for degree in (1, 4)) >= 1
    assert 4 * size.device_pages * size.page_bytes < 8 << 30
    assert 1 <= size.model.num_layers <= SHAPES.get(name).geometry.num_layers


def test_a_budget_is_kept_and_one_that_cannot_do_is_refused():
    size = sizing("llama3-8b", 2, device_memory=768 * MIB)
    assert (size.device_pages, size.page_bytes) == (384, CUDA_PAGE)
    with pytest.raises(UserError, match=r"one layer of qwen3-32b .* raise --device-memory"):
        sizing("qwen3-32b", 4, device_memory=512 * MIB)
    with pytest.raises(UserError, match="give a larger --page-size"):
        sizing("tiny", 4, device_memory=2048 * MIB)
