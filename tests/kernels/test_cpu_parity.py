"""The fast kernels against their readable twins, in every KV layout, with odd sizes, fp32 and bf16."""

import numpy as np
import pytest
import torch
from paged import ALL, DIM, Cache

from gyges.kernels import cpu, reference
from gyges.kernels.cpu_set import raw


@pytest.mark.parametrize(("layout", "dtype"), ALL)
@pytest.mark.parametrize(("shards", "per_shard", "group"), [(range(4), 1, 3), (range(1, 2), 2, 1), (range(2, 4), 1, 8)])
def test_decode_attention_equals_the_twin(layout, dtype, shards, per_shard, group):
    cache = Cache(layout, dtype, shards=shards, heads_per_shard=per_shard)
    lengths = np.array([1, 7, 8, 20, 41], np.int64)
    tables = np.zeros((5, 6), np.int64)
    for row, length in enumerate(lengths):
        used = -(-length // 7)
        tables[row, :used] = cache.offsets[row * 4 : row * 4 + used]
    heads = len(cache.heads)
    q = torch.randn(5, heads, group, DIM, generator=torch.Generator().manual_seed(1))
    out = torch.empty_like(q)
    cpu.decode_attention(
        q.numpy(), raw(cache.flat), cache.base, tables, lengths, cache.heads, *cache.strides, 0.25, out.numpy()
    )
    for row, length in enumerate(lengths):
        kv = cache.context(tables[row], int(length))
        expected = reference.attend(q[row].reshape(1, heads * group, DIM), kv, int(length) - 1, 0.25)
        torch.testing.assert_close(out[row].reshape(1, heads * group, DIM), expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(("layout", "dtype"), ALL)
def test_gather_equals_the_twin(layout, dtype):
    cache = Cache(layout, dtype, shards=range(1, 3))
    table = cache.offsets[:6]
    out = torch.empty(2, 2, 38, DIM, dtype=dtype)
    cpu.gather_context(raw(cache.flat), cache.base, table, 38, cache.heads, *cache.strides, raw(out))
    assert torch.equal(out, cache.context(table, 38))


@pytest.mark.parametrize(("layout", "dtype"), ALL)
def test_rope_write_rotates_and_lands_where_the_layout_says(layout, dtype):
    cache = Cache(layout, dtype, shards=range(2), heads_per_shard=2)
    g = torch.Generator().manual_seed(3)
    n, q_heads = 5, 4
    q, kv = torch.randn(n, q_heads, DIM, generator=g), torch.randn(n, 2, 2, 2, DIM, generator=g)
    cos, sin = torch.rand(50, DIM // 2, generator=g), torch.rand(50, DIM // 2, generator=g)
    positions = np.array([0, 13, 14, 49, 6], np.int64)
    block, token = [3, 5, 5, 0, 9], [0, 6, 2, 3, 6]
    slots = np.array(
        [cache.geometry.block_offset(b) + t * cache.strides[1] for b, t in zip(block, token, strict=True)], np.int64
    )
    before = cache.flat.clone()
    expected_q = reference.rotate(q, cos[positions], sin[positions])
    expected_k = reference.rotate(kv[:, :, 0].reshape(n, 4, DIM), cos[positions], sin[positions])
    cpu.rope_write(
        q.numpy(), kv.numpy(), cos.numpy(), sin.numpy(), positions, slots, raw(cache.flat), cache.base, cache.heads,
        cache.strides[0],
    )  # fmt: skip
    torch.testing.assert_close(q, expected_q, atol=1e-6, rtol=1e-6)
    written = torch.zeros(cache.flat.numel(), dtype=torch.bool)
    for i in range(n):
        for h in range(4):
            for which in range(2):
                at = cache.geometry.address(layer=1, block=block[i], shard=h // 2, head=h % 2, kv=which, token=token[i])
                want = expected_k[i, h] if which == 0 else kv[i, h // 2, 1, h % 2]
                torch.testing.assert_close(cache.flat[at : at + DIM].float(), want.to(dtype).float(), atol=1e-2, rtol=0)
                written[at : at + DIM] = True
    assert torch.equal(cache.flat[~written], before[~written]), "nothing else may change"


def test_splitting_over_threads_changes_nothing():
    cache = Cache("shard-pages", torch.float32)
    lengths = np.full(64, 42, np.int64)
    tables = np.tile(cache.offsets[:6], (64, 1))
    q = torch.randn(64, 4, 2, DIM)
    outs = []
    for threads in (1, 3):
        cpu.set_threads(threads)
        out = torch.empty_like(q)
        cpu.decode_attention(
            q.numpy(), raw(cache.flat), cache.base, tables, lengths, cache.heads, *cache.strides, 0.25, out.numpy()
        )
        outs.append(out)
    cpu.set_threads(1)
    assert torch.equal(*outs)
