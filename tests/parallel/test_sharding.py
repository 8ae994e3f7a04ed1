"""Shards cover the model exactly once at every degree."""

import itertools
import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gyges.core import ModelGeometry
from gyges.errors import UserError
from gyges.parallel.sharding import ParallelLayout, ShardCount, ffn_shard_rows
from gyges.parallel.weight_layout import FFNLayout, ResidentLayout


def geometry(heads: int, kv_heads: int, ffn: int = 48) -> ModelGeometry:
    return ModelGeometry(3, 32, heads, kv_heads, 8, ffn, 101, 4, False)


@given(
    model=st.sampled_from([(12, 12), (12, 4), (8, 2), (6, 3), (4, 1), (24, 8)]),
    degrees=st.sets(st.sampled_from([1, 2, 3, 4, 6, 8]), min_size=1, max_size=3),
)
def test_ranks_cover_heads_rows_and_vocabulary_once(model, degrees):
    g = geometry(*model)
    possible = {d for d in degrees if g.tp_degree_error(d) is None}
    if not possible:
        return
    shards = ShardCount.for_degrees(g, possible)
    for degree in possible:
        ranks = [ParallelLayout(degree, r, shards) for r in range(degree)]
        assert [h for r in ranks for h in r.query_heads(g)] == list(range(g.num_heads))
        assert [v for r in ranks for v in r.vocab_rows(g)] == list(range(g.vocab_size))
        assert [f for r in ranks for f in r.ffn_shards] == list(range(shards.ffn))
        assert {s for r in ranks for s in r.kv_shards} == set(range(shards.kv))
        per_shard = g.num_heads // shards.kv
        for r in ranks:
            # Each worker holds exactly the KV heads that its query heads look at.
            assert {h // per_shard for h in r.query_heads(g)} == set(r.kv_shards)


@given(rows=st.integers(1, 200), shards=st.integers(1, 12))
def test_ffn_rows_are_cut_without_gap_or_overlap(rows, shards):
    cut = [list(ffn_shard_rows(rows, shards, s)) for s in range(shards)]
    assert [row for part in cut for row in part] == list(range(rows))


def test_an_impossible_degree_says_why_and_what_is_possible():
    with pytest.raises(UserError, match=r"TP degree 3 is impossible: 8 query heads.*\[1, 2, 4, 8\]"):
        ShardCount.for_degrees(geometry(8, 4), [1, 3])


def pages_of(start: int, stop: int, page: int) -> set[int]:
    return set(range(start // page, -(-stop // page)))


@given(
    page=st.sampled_from([64, 512, 4096]),
    shapes=st.lists(st.sampled_from([(7, 32), (5,), (3, 3, 3), (64,)]), max_size=5),
)
def test_resident_weights_never_overlap_and_lie_on_their_pages(page, shapes):
    named = [(f"w{i}", shape) for i, shape in enumerate(shapes)]
    w = ResidentLayout.build(named, 4, page)
    assert [(name, shape) for name, (_, shape) in w.tensors.items()] == named
    sizes = [4 * math.prod(shape) for shape in shapes]
    spans = [(offset, offset + size) for (offset, _), size in zip(w.tensors.values(), sizes, strict=True)]
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(sorted(spans)))
    assert all(a % 64 == 0 for a, _ in spans), "a tensor starts on a cache line"
    assert w.used_bytes == sum(sizes)
    touched = set().union(*(pages_of(a, b, page) for a, b in spans))
    assert touched <= set(range(w.pages))
    assert w.pages * page < sum(sizes) + 64 * len(spans) + page


@given(
    degree=st.sampled_from([1, 2, 4]),
    padding=st.booleans(),
    page=st.sampled_from([64, 512, 4096]),
    ffn=st.sampled_from([48, 44]),
)
def test_ffn_units_never_overlap_and_lie_on_mapped_pages(degree, padding, page, ffn):
    g = geometry(8, 4, ffn)
    shards = ShardCount.for_degrees(g, [1, 2, 4])
    for rank in range(degree):
        layout = ParallelLayout(degree, rank, shards)
        w = FFNLayout.build(g, layout, padding=padding, page_bytes=page)
        held = {(layer, shard) for layer in range(3) for shard in layout.ffn_shards}
        assert w.units.keys() == held
        assert [row for rows in w.rows for row in rows] == list(range(ffn))
        assert w.sizes == (3 * (ffn // 4) * 32 * 4,) * 4
        spans = sorted((at, at + w.sizes[shard]) for (_, shard), at in w.units.items())
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
        touched = Counter(p for a, b in spans for p in pages_of(a, b, page))
        slots, users = w.slots(w.units)
        assert dict(zip(slots.tolist(), users.tolist(), strict=True)) == touched
        assert w.pages == len(touched)
        assert max(touched) < w.range_pages
        assert w.used_bytes == sum(b - a for a, b in spans)
        assert w.padding_bytes == len(touched) * page - w.used_bytes >= 0
        if not padding:
            assert w.padding_bytes < page + 64 * len(spans), "packed: no holes but alignment"
        some = [unit for unit in w.units if unit[0] == 1]
        slots, users = w.slots(some)
        expected = Counter(p for unit in some for p in pages_of(w.units[unit], w.units[unit] + w.sizes[unit[1]], page))
        assert dict(zip(slots.tolist(), users.tolist(), strict=True)) == expected
        assert len(w.slots([])[0]) == 0


@pytest.mark.parametrize("page", [64, 512, 4096])
def test_with_padding_a_shard_owns_its_pages_and_keeps_its_address(page):
    g = geometry(8, 4)
    shards = ShardCount.for_degrees(g, [1, 4])
    whole = FFNLayout.build(g, ParallelLayout(1, 0, shards), padding=True, page_bytes=page)
    seen: set[int] = set()
    for rank in range(4):
        part = FFNLayout.build(g, ParallelLayout(4, rank, shards), padding=True, page_bytes=page)
        assert all(whole.units[unit] == at for unit, at in part.units.items())
        slots, users = part.slots(part.units)
        assert (users == 1).all()
        assert not (set(slots.tolist()) & seen)
        seen |= set(slots.tolist())
    assert seen == set(whole.slots(whole.units)[0].tolist())
