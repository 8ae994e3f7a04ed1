"""Shards cover the model exactly once at every degree."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gyges.core import ModelGeometry
from gyges.errors import UserError
from gyges.parallel.sharding import ParallelLayout, ShardCount, ffn_shard_rows
from gyges.parallel.weight_layout import WeightLayout


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


@given(degree=st.sampled_from([1, 2, 4]), padding=st.booleans(), page=st.sampled_from([64, 512, 4096]))
def test_weights_never_overlap_and_lie_on_mapped_pages(degree, padding, page):
    g = geometry(8, 4)
    shards = ShardCount.for_degrees(g, [1, 2, 4])
    resident = [("a", (7, 32)), ("b", (5,)), ("c", (3, 3, 3))]
    for rank in range(degree):
        layout = ParallelLayout(degree, rank, shards)
        w = WeightLayout.build(g, resident, layout, padding=padding, page_bytes=page)
        spans = []
        for offset, shape in w.resident.values():
            size = 4
            for n in shape:
                size *= n
            spans.append((offset, offset + size))
        spans += [(u.offset, u.offset + 3 * len(u.rows) * 32 * 4) for u in w.units]
        spans.sort()
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
        mapped = set(w.slots)
        assert all(p in mapped for a, b in spans for p in range(a // page, -(-b // page)))
        assert max(mapped) < w.range_pages
        assert {(u.layer, u.shard) for u in w.units} == {(la, s) for la in range(3) for s in layout.ffn_shards}
        assert w.padding_bytes >= 0


@pytest.mark.parametrize("page", [64, 512, 4096])
def test_with_padding_a_shard_owns_its_pages_and_keeps_its_address(page):
    g = geometry(8, 4)
    shards = ShardCount.for_degrees(g, [1, 4])
    resident = [("a", (7, 32))]
    whole = WeightLayout.build(g, resident, ParallelLayout(1, 0, shards), padding=True, page_bytes=page)
    home = {(u.layer, u.shard): u.offset for u in whole.units}
    seen: set[int] = set()
    for rank in range(4):
        part = WeightLayout.build(g, resident, ParallelLayout(4, rank, shards), padding=True, page_bytes=page)
        assert all(home[u.layer, u.shard] == u.offset for u in part.units)
        own = set(part.slots) - set(range(part.resident_pages))
        assert not (own & seen)
        seen |= own
    assert seen | set(range(whole.resident_pages)) == set(whole.slots)
