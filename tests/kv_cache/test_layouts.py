"""A layout is a bijection from (layer, block, shard, head, kv, token, dim) into the pages it claims."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gyges.core import ModelGeometry
from gyges.errors import UnknownNameError
from gyges.kv_cache.layouts import LAYOUTS, KVGeometry, choose_block_size

PAGE = 512


def geometry(layers: int = 2, kv_heads: int = 4, head_dim: int = 4) -> ModelGeometry:
    return ModelGeometry(layers, 16, kv_heads, kv_heads, head_dim, 16, 32, 4, False)


def build(name: str, *, shards: int, local: int, blocks: int, block_size: int, page: int = PAGE, **model) -> KVGeometry:
    return KVGeometry.build(
        LAYOUTS.get(name), geometry(**model), block_size=block_size, num_shards=shards, local_shards=local,
        num_blocks=blocks, page_bytes=page,
    )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(LAYOUTS.names()),
    shards=st.sampled_from([1, 2, 4]),
    degree=st.sampled_from([1, 2, 4]),
    blocks=st.integers(1, 9),
    block_size=st.integers(1, 7),
    layers=st.integers(1, 3),
    page=st.sampled_from([64, 512, 4096]),
)
def test_every_value_has_an_address_of_its_own_inside_its_groups_pages(
    name, shards, degree, blocks, block_size, layers, page
):
    if shards % degree:
        return
    local = shards // degree
    g = build(name, shards=shards, local=local, blocks=blocks, block_size=block_size, page=page, layers=layers)
    held = range(local, 2 * local) if degree > 1 else range(local)
    elements = page // 4
    seen = set()
    for block in range(blocks):
        pages = set(g.group_pages([block // g.blocks_per_group], held).ravel().tolist())
        assert len(pages) == g.pages_per_group
        for layer, shard, head, kv, token in product(
            range(layers), held, range(g.heads_per_shard), range(2), range(block_size)
        ):
            at = (
                layer * g.strides["layer"]
                + g.block_offset(block)
                + g.head_offsets(range(shard, shard + 1))[head]
                + (0 if g.layout.shards_leave_whole else (shard - held.start) * g.strides["shard"])
                + kv * g.strides["kv"]
                + token * g.strides["token"]
            )
            for value in range(at, at + 4):
                assert value not in seen
                seen.add(value)
                assert value // elements in pages
    assert max(seen) < g.range_pages * elements


@pytest.mark.parametrize("name", LAYOUTS.names())
def test_groups_never_share_a_page(name):
    g = build(name, shards=4, local=4, blocks=40, block_size=2)
    pages = g.group_pages(range(g.num_groups), range(4)).ravel().tolist()
    assert len(pages) == len(set(pages))
    assert max(pages) < g.range_pages


@pytest.mark.parametrize("name", ["header-centric", "shard-pages"])
def test_a_shard_leaves_whole_pages_and_keeps_its_addresses(name):
    whole = build(name, shards=4, local=4, blocks=8, block_size=2)
    merged = build(name, shards=4, local=1, blocks=8, block_size=2)
    assert whole.strides == merged.strides
    by_shard = [set(whole.group_pages([0], [s]).ravel().tolist()) for s in range(4)]
    assert all(not (a & b) for i, a in enumerate(by_shard) for b in by_shard[:i])
    assert merged.pages_per_group * 4 == whole.pages_per_group


@pytest.mark.parametrize("name", ["token-first", "page-friendly"])
def test_stock_layouts_scatter_a_shard_over_every_page(name):
    g = build(name, shards=4, local=4, blocks=8, block_size=2)
    for shard in range(4):
        offset = g.head_offsets(range(4))[shard]
        page_of = {
            (g.block_offset(0) + layer * g.strides["layer"] + kv * g.strides["kv"] + offset) // (PAGE // 4)
            for layer in range(2)
            for kv in range(2)
        }
        assert page_of == set(g.group_pages([0], range(4)).ravel().tolist())


def test_shard_pages_block_fills_one_page():
    model = geometry(layers=2, kv_heads=4, head_dim=4)
    # 2 layers x 1 head x 2 x 4 x 4 B = 64 B per token and shard; 1024 B hold 16 tokens.
    assert choose_block_size(LAYOUTS.get("shard-pages"), model, 4, 1024) == 16
    g = build("shard-pages", shards=4, local=4, blocks=3, block_size=16, page=1024)
    assert (g.blocks_per_group, g.pages_per_cell, g.pages_per_group) == (1, 1, 4)


def test_unknown_layout_lists_the_known_ones():
    with pytest.raises(UnknownNameError, match="header-centric, page-friendly, shard-pages, token-first"):
        LAYOUTS.get("row-major")
