"""Triton's paged attention against its twin, in every KV layout: under Triton's interpreter, or natively where there is a GPU."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paged import ALL, BLOCKS, DIM, Cache

pytest.importorskip("triton")

from gyges.kernels import reference
from gyges.kernels.triton import interpreting, why_not
from gyges.kernels.triton.decode import DecodeTuning, choose_splits, decode_attention
from gyges.kernels.triton.prefill import prefill_attention

DEVICE = torch.device("cpu" if interpreting() else "cuda")
pytestmark = pytest.mark.skipif(bool(why_not(DEVICE)), reason=why_not(DEVICE))
SCALE = 0.25


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    """The interpreter multiplies in float32; tensor cores round weights to the cache's dtype."""
    if dtype == torch.float32 or interpreting():
        return {"atol": 2e-6, "rtol": 1e-5}
    return {"atol": 2e-2, "rtol": 2e-2}


def random(*shape: int, dtype: torch.dtype, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def decode(cache: Cache, q: torch.Tensor, tables: np.ndarray, lengths: np.ndarray, **tuning: int) -> torch.Tensor:
    out = torch.full(q.shape, torch.nan, device=DEVICE)
    decode_attention(
        q.to(DEVICE), cache.on(DEVICE), cache.base, torch.from_numpy(tables).to(DEVICE),
        torch.from_numpy(lengths).to(DEVICE), SCALE, out, tuning=DecodeTuning(**tuning),
    )  # fmt: skip
    return out.cpu()


def tables_of(cache: Cache, lengths: list[int]) -> tuple[np.ndarray, np.ndarray]:
    block = cache.geometry.block_size
    tables = np.full((len(lengths), max(1, -(-max(lengths) // block))), -(10**12), np.int64)
    for row, length in enumerate(lengths):
        used = -(-length // block)
        tables[row, :used] = np.roll(cache.offsets, -4 * row)[:used]
    return tables, np.array(lengths, np.int64)


def expected(cache: Cache, q_KGD: torch.Tensor, table: np.ndarray, length: int) -> torch.Tensor:
    flat = q_KGD.reshape(1, -1, q_KGD.shape[-1])
    return reference.attend(flat, cache.context(table, length), length - 1, SCALE).view(q_KGD.shape)


def check_decode(cache: Cache, lengths: list[int], group: int, dtype: torch.dtype, **tuning: int) -> None:
    tables, counts = tables_of(cache, lengths)
    q = random(len(lengths), len(cache.heads), group, cache.dim, dtype=dtype)
    out = decode(cache, q, tables, counts, **tuning)
    for row, length in enumerate(lengths):
        want = expected(cache, q[row], tables[row], length) if length else torch.zeros_like(out[row])
        torch.testing.assert_close(out[row], want, **tolerance(dtype))


@pytest.mark.parametrize(("layout", "dtype"), ALL)
@pytest.mark.parametrize(
    ("shards", "per_shard", "group", "splits"), [(range(4), 1, 3, 1), (range(1, 2), 2, 1, 4), (range(2, 3), 1, 8, 4)]
)
def test_decode_attention_equals_the_twin(layout, dtype, shards, per_shard, group, splits):
    """41 tokens are 3 tiles: one of 4 splits stays empty, and for the short rows three."""
    cache = Cache(layout, dtype, shards=shards, heads_per_shard=per_shard)
    check_decode(cache, [1, 16, 41], group, dtype, tile=16, splits=splits)


@pytest.mark.parametrize(("dim", "group", "block"), [(128, 4, 16), (128, 5, 16), (80, 17, 5), (64, 32, 1)])
def test_decode_attention_takes_heads_of_any_size_and_number(dim, group, block):
    cache = Cache("header-centric", torch.bfloat16, shards=range(1), block=block, dim=dim)
    check_decode(cache, [min(23, BLOCKS * block)], group, torch.bfloat16, tile=16, splits=2)


def test_a_row_without_tokens_is_zeros_and_reads_no_block():
    check_decode(Cache("shard-pages", torch.float32), [0, 9], 2, torch.float32, tile=16, splits=2)


def test_the_result_comes_in_the_dtype_of_the_output():
    cache = Cache("token-first", torch.bfloat16, shards=range(1))
    tables, lengths = tables_of(cache, [30])
    q = random(1, 1, 2, DIM, dtype=torch.bfloat16)
    out = torch.empty(q.shape, dtype=torch.bfloat16, device=DEVICE)
    arrays = (torch.from_numpy(x).to(DEVICE) for x in (tables, lengths))
    decode_attention(q.to(DEVICE), cache.on(DEVICE), cache.base, *arrays, SCALE, out)
    want = expected(cache, q[0], tables[0], 30)
    torch.testing.assert_close(out[0].cpu().float(), want, atol=1e-2, rtol=2**-7)


@settings(max_examples=12, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 60), min_size=1, max_size=3),
    block=st.integers(3, 19),
    tile=st.sampled_from([16, 32]),
    splits=st.sampled_from([1, 2, 8]),
)
def test_however_the_context_is_cut_the_result_is_the_same(lengths, block, tile, splits):
    cache = Cache("page-friendly", torch.float32, shards=range(1), block=block)
    check_decode(cache, lengths, 3, torch.float32, tile=tile, splits=splits)


@given(st.integers(1, 4096), st.integers(1, 1 << 20), st.integers(1, 200))
def test_splits_are_powers_of_two_that_fill_the_device_and_no_more(pairs, tokens, multiprocessors):
    splits = choose_splits(pairs, tokens, multiprocessors)
    assert splits & (splits - 1) == 0
    assert 1 <= splits <= 64
    assert splits == 1 or splits * 128 < tokens, "a split has enough tokens to be worth it"
    assert splits == 1 or (splits // 2) * pairs < 4 * multiprocessors, "half as many would have left the device idle"


CHUNKS = [(0, 1), (0, 37), (13, 20), (40, 1)]


@pytest.mark.parametrize(("layout", "dtype"), ALL)
@pytest.mark.parametrize(("shards", "per_shard", "group"), [(range(1, 3), 1, 3), (range(3, 4), 2, 1)])
def test_prefill_attention_equals_the_twin_with_and_without_history(layout, dtype, shards, per_shard, group):
    cache = Cache(layout, dtype, shards=shards, heads_per_shard=per_shard)
    table = cache.offsets[:6]
    paged, on_device = cache.on(DEVICE), torch.from_numpy(table).to(DEVICE)
    for start, count in CHUNKS:
        q = random(count, len(cache.heads) * group, DIM, dtype=dtype)
        out = torch.full(q.shape, torch.nan, device=DEVICE)
        prefill_attention(q.to(DEVICE), paged, cache.base, on_device, start, SCALE, out, queries=16, tile=16)
        want = reference.attend(q, cache.context(table, start + count), start, SCALE)
        torch.testing.assert_close(out.cpu(), want, **tolerance(dtype))


@settings(max_examples=10, deadline=None)
@given(start=st.integers(0, 40), count=st.integers(1, 40), tiles=st.sampled_from([(16, 32), (32, 16), (64, 64)]))
def test_a_prompt_in_chunks_attends_as_the_whole_prompt_does(start, count, tiles):
    cache = Cache("header-centric", torch.float32, shards=range(1), block=11)
    table = cache.offsets[:8]
    q = random(start + count, 2, DIM, dtype=torch.float32)
    whole = reference.attend(q, cache.context(table, start + count), 0, SCALE)
    out = torch.empty(count, 2, DIM, device=DEVICE)
    prefill_attention(
        q[start:].contiguous().to(DEVICE), cache.on(DEVICE), cache.base, torch.from_numpy(table).to(DEVICE), start, SCALE,
        out, queries=tiles[0], tile=tiles[1],
    )  # fmt: skip
    torch.testing.assert_close(out.cpu(), whole[start:], atol=2e-6, rtol=1e-5)


def test_the_twin_of_the_second_phase_puts_pieces_together():
    """What phase 2 relies on: attention over a context is the log-weighted sum of attention over its pieces."""
    q, kv = random(1, 2, 8, dtype=torch.float64), random(2, 1, 20, 8, dtype=torch.float64, seed=2)
    whole = reference.attend(q, kv, 19, SCALE)
    pieces = [kv[:, :, :13], kv[:, :, 13:]]
    partial = torch.stack([reference.attend(q, piece, 19, SCALE)[0] for piece in pieces])
    logs = torch.stack([(q[0].float() @ piece[0, 0].float().T * SCALE).logsumexp(-1) for piece in pieces])
    empty = torch.full_like(logs[:1], -torch.inf)
    got = reference.combine(
        torch.cat([partial, torch.zeros_like(partial[:1])]), torch.cat([logs, empty]).to(partial.dtype)
    )
    torch.testing.assert_close(got.float(), whole[0].float(), atol=1e-6, rtol=1e-5)
