"""Triton's KV write, page copies and all-reduce against their twins: under the interpreter, or natively where there is a GPU."""

import multiprocessing

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paged import ALL, DIM, Cache

pytest.importorskip("triton")

from gyges.core import ModelGeometry
from gyges.kernels import reference
from gyges.kernels.triton import interpreting, why_not
from gyges.kernels.triton.allreduce import PeerBuffers, all_reduce, signal_count
from gyges.kernels.triton.copy import copy_pages, copy_runs
from gyges.kernels.triton.write import rope_write
from gyges.kv_cache.layouts import LAYOUTS, KVGeometry
from gyges.transform.copies import kv_copies

DEVICE = torch.device("cpu" if interpreting() else "cuda")
pytestmark = pytest.mark.skipif(bool(why_not(DEVICE)), reason=why_not(DEVICE))


# -- KV write ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layout", "dtype"), ALL)
@pytest.mark.parametrize(("shards", "per_shard", "q_heads"), [(range(2), 2, 12), (range(1, 4), 1, 3)])
def test_the_kv_write_rotates_and_lands_where_the_twin_says(layout, dtype, shards, per_shard, q_heads):
    cache = Cache(layout, dtype, shards=shards, heads_per_shard=per_shard)
    g = torch.Generator().manual_seed(3)
    q = torch.randn(6, q_heads, DIM, generator=g).to(dtype)
    kv = torch.randn(6, len(shards), 2, per_shard, DIM, generator=g).to(dtype)
    cos, sin = torch.rand(50, DIM // 2, generator=g), torch.rand(50, DIM // 2, generator=g)
    positions = torch.tensor([0, 13, 14, 49, 6, 20])
    block, token = [3, 5, 5, 0, 9, 0], [0, 6, 2, 3, 6, 0]
    slots = torch.tensor(
        [cache.geometry.block_offset(b) + t * cache.strides[1] for b, t in zip(block, token, strict=True)]
    )
    slots[5] = -1  # a row that a CUDA graph has and the batch has not
    before, want = cache.flat.clone(), torch.full_like(cache.flat, torch.nan)
    angles = cos[positions], sin[positions]
    reference.write_kv(kv, *angles, slots, want, cache.base, torch.from_numpy(cache.heads), cache.strides[0])
    written = ~want.isnan()

    paged, rotated = cache.on(DEVICE), q.clone().to(DEVICE)
    arrays = (x.to(DEVICE) for x in (kv, cos, sin, positions, slots))
    rope_write(rotated, *arrays, paged, cache.base)
    got = paged.values.cpu()
    # The interpreter cuts a float32 to bfloat16 where hardware rounds: one unit in the last place.
    rounding = {"atol": 1e-6, "rtol": 1e-6} if dtype == torch.float32 else {"atol": 1e-6, "rtol": 2**-7}
    torch.testing.assert_close(got[written], want[written], **rounding)
    assert torch.equal(got[~written], before[~written]), "nothing else may change"
    torch.testing.assert_close(rotated.cpu(), reference.rotate(q, *angles).to(dtype), **rounding)


def test_the_twin_of_the_kv_write_puts_every_value_at_its_address():
    cache = Cache("page-friendly", torch.float32, shards=range(2), heads_per_shard=2)
    kv = torch.arange(2 * 2 * 2 * DIM, dtype=torch.float32).view(1, 2, 2, 2, DIM)
    none = torch.ones(1, DIM // 2), torch.zeros(1, DIM // 2)
    slots = torch.tensor([cache.geometry.block_offset(4) + 3 * cache.strides[1]])
    reference.write_kv(kv, *none, slots, cache.flat, cache.base, torch.from_numpy(cache.heads), cache.strides[0])
    for shard in range(2):
        for which in range(2):
            for head in range(2):
                at = cache.geometry.address(layer=1, block=4, shard=shard, head=head, kv=which, token=3)
                assert torch.equal(cache.flat[at : at + DIM], kv[0, shard, which, head])


# -- copies -----------------------------------------------------------------------------------------------------------


def random_bytes(count: int, seed: int) -> torch.Tensor:
    return torch.randint(0, 256, (count,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=30, deadline=None)
@given(data=st.data(), unit=st.sampled_from([1, 2, 4, 8, 16, 24]), tail=st.integers(0, 3))
def test_copied_runs_are_the_twins_and_nothing_else_changes(data, unit, tail):
    """``unit``: bytes that every start, length and stride is a multiple of, from which the copied word follows."""
    runs = data.draw(st.integers(1, 4), "runs")
    lengths = [unit * data.draw(st.integers(0, 40), "length") for _ in range(runs)]
    longest = max(lengths) or unit
    loops = tuple(
        (data.draw(st.integers(1, 3), "count"), longest + unit * data.draw(st.integers(0, 2), "gap"), longest + unit)
        for _ in range(data.draw(st.integers(0, 2), "loops"))
    )
    if len(loops) == 2:  # the outer loop steps over all of the inner one
        (n1, _, _), (n2, s2, d2) = loops
        loops = ((n1, n2 * s2 + unit, n2 * d2), loops[1])
    piece = longest + sum((n - 1) * max(s, d) for n, s, d in loops) + unit
    order = data.draw(st.permutations(range(runs)), "order")
    src_at, dst_at = [piece * i for i in range(runs)], [piece * i for i in order]
    size = piece * runs + tail
    src, dst = random_bytes(size, 1), random_bytes(size, 2)
    want = dst.clone()
    reference.copy_runs(want, src, dst_at, src_at, lengths, loops)
    on_device = dst.to(DEVICE)
    copy_runs(on_device, src.to(DEVICE), *(np.array(x, np.int64) for x in (dst_at, src_at, lengths)), loops)
    assert torch.equal(on_device.cpu(), want)


def test_pages_go_where_the_table_says():
    src, dst = random_bytes(8 * 4096, 1), random_bytes(6 * 4096, 2)
    want = dst.clone().view(6, 4096)
    want[[4, 0, 2]] = src.view(8, 4096)[[1, 7, 6]]
    on_device = dst.to(DEVICE)
    copy_pages(on_device, src.to(DEVICE), np.array([4, 0, 2]), np.array([1, 7, 6]), 4096)
    assert torch.equal(on_device.cpu().view(6, 4096), want)


@pytest.mark.parametrize("layout", LAYOUTS.names())
def test_after_compaction_every_value_of_the_kept_shard_is_at_its_new_address(layout):
    """What a merge does inside a worker where shards share pages: shard 2 of 4 stays, packed into fresh pages."""
    blocks, model = 5, ModelGeometry(2, 64, 8, 4, DIM, 64, 64, 2, False)

    def geometry(local: int) -> KVGeometry:
        return KVGeometry.build(
            LAYOUTS.get(layout),
            model,
            block_size=3,
            num_shards=4,
            local_shards=local,
            num_blocks=blocks,
            page_bytes=4096,
        )

    before, after = geometry(4), geometry(1)
    src, dst = random_bytes(before.range_pages * 4096, 1), random_bytes(after.range_pages * 4096, 2)
    own = 2 if LAYOUTS.get(layout).shards_leave_whole else 0
    ids = np.arange(blocks)
    batch = kv_copies(0, ("front", "back"), (before, after), (2, own), ids, ids)
    on_device = dst.to(DEVICE)
    copy_runs(on_device, src.to(DEVICE), batch.dst, batch.src, batch.lengths, batch.loops)
    front, back = src.view(torch.int16), on_device.cpu().view(torch.int16)
    for layer, block, kv, token in np.ndindex(2, blocks, 2, 3):
        where = {"layer": layer, "block": block, "head": 0, "kv": kv, "token": token}
        a, b = before.address(shard=2, **where), after.address(shard=own, **where)
        assert torch.equal(back[b : b + DIM], front[a : a + DIM])


# -- all-reduce -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("ranks", "count"), [(1, 5), (2, 1024), (3, 2500), (4, 1), (8, 777)])
def test_every_rank_gets_the_twins_sum_to_the_bit(dtype, ranks, count):
    generator = torch.Generator().manual_seed(ranks)
    # Small whole numbers: exact in both dtypes, so that the interpreter's missing rounding does not show.
    parts = [torch.randint(-8, 8, (count,), generator=generator).to(dtype).to(DEVICE) for _ in range(ranks)]
    want = reference.all_reduce([part.cpu() for part in parts])
    for rank in range(ranks):
        out = torch.full((count,), torch.nan, dtype=dtype, device=DEVICE)
        all_reduce(out, PeerBuffers([p.data_ptr() for p in parts], [0] * ranks, rank, DEVICE), synchronize=False)
        assert torch.equal(out.cpu(), want)


def test_the_sum_is_taken_in_rank_order():
    """Of 1e8 + 1 - 1e8 in float32 nothing is left in this order, and 1 in others."""
    parts = [torch.tensor([x], device=DEVICE) for x in (1e8, 1.0, -1e8)]
    out = torch.empty(1, device=DEVICE)
    all_reduce(out, PeerBuffers([p.data_ptr() for p in parts], [0] * 3, 1, DEVICE), synchronize=False)
    assert out.item() == 0.0


RANKS, COUNT, ROUNDS = 2, 1500, 4


def rank_main(rank: int, path: str) -> None:
    """A rank that overwrites its input right after each all-reduce: only the flags keep the peer from reading that."""
    values, signals = shared(path)
    peers = PeerBuffers([v.data_ptr() for v in values], [s.data_ptr() for s in signals], rank, torch.device("cpu"))
    out = torch.empty(COUNT)
    for turn in range(ROUNDS):
        values[rank] = float(10**rank * (turn + 1))
        all_reduce(out, peers, synchronize=True)
        values[rank] = -1e9
        assert (out == 11.0 * (turn + 1)).all(), f"rank {rank}, round {turn}: {out.unique().tolist()}"


def shared(path: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs float32 [ranks, count] and signals int32 [ranks, ...] of a group, in a file."""
    flags = signal_count(RANKS)
    words = torch.from_file(path, shared=True, size=RANKS * (COUNT + flags), dtype=torch.int32)
    return words[: RANKS * COUNT].view(torch.float32).view(RANKS, COUNT), words[RANKS * COUNT :].view(RANKS, flags)


@pytest.mark.skipif(not interpreting(), reason="two ranks that wait for each other need two GPUs")
def test_ranks_that_run_at_the_same_time_meet_before_reading_and_after(tmp_path):
    path = str(tmp_path / "group")
    _, signals = shared(path)
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=rank_main, args=(rank, path), daemon=True) for rank in range(RANKS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * RANKS
    assert not signals.any(), "every flag is down again"
