"""The contract of gyges.memory.base on the real thing: values, budget, peers, conservation."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from gyges.memory.base import OutOfPages, PagePool, PeerMemory

_PAGES, _SLOTS, _STEPS = 12, 20, 300

OpenPeer = Callable[[PagePool], PeerMemory]


def cpu_pool() -> dict[str, Any]:
    """With pages of two sizes: one system page, and one huge page."""
    from gyges.memory.cpu import CpuPagePool, CpuPeerMemory

    figures: dict[str, Any] = {}
    for page_bytes in (4096, 2 << 20):
        pool = CpuPagePool(_PAGES, page_bytes, "gyges-doctor")
        try:
            contract(pool, lambda p: CpuPeerMemory(p.export(), p.capacity, p.page_bytes))
            figures[f"huge_bytes_of_{page_bytes}"] = pool.huge_bytes
        finally:
            pool.close()
    steps = f"{_STEPS} random maps and unmaps"
    return {"figures": figures, "summary": f"values, budget, peers and {steps}, with pages of 4 KiB and 2 MiB"}


def contract(pool: PagePool, open_peer: OpenPeer) -> None:
    """Raises AssertionError with a sentence. ``pool``: empty, of at least 12 pages; it is left with every page free."""
    import torch

    weights, kv = pool.reserve("weights", _SLOTS), pool.reserve("kv", _SLOTS)
    page = pool.page_bytes

    def cell(where: Any, slot: int) -> torch.Tensor:
        return where.tensor(torch.int32, (page // 4,), slot * page)

    half = pool.capacity // 2
    for where, sign in ((weights, 1), (kv, -1)):
        pool.map(where, range(half))
        for slot in range(half):
            cell(where, slot).fill_(sign * (slot + 1))
    for where, sign in ((weights, 1), (kv, -1)):
        for slot in range(half):
            assert bool((cell(where, slot) == sign * (slot + 1)).all()), (
                f"slot {slot} of {where.name!r} lost its values"
            )
    _refuses_more(pool, kv)
    _peers_read(pool, open_peer, weights, kv, half)
    pool.unmap(weights, range(half))
    pool.unmap(kv, range(half))
    assert pool.free_pages == pool.capacity, "pages leaked"
    _conserves(pool, kv, cell)


def _refuses_more(pool: PagePool, kv: Any) -> None:
    half, left = pool.capacity // 2, pool.free_pages
    try:
        pool.map(kv, range(half, half + left + 1))
    except OutOfPages:
        assert pool.free_pages == left, "a map that was refused took pages"
    else:
        raise AssertionError("more pages were mapped than the budget has")


def _peers_read(pool: PagePool, open_peer: OpenPeer, weights: Any, kv: Any, half: int) -> None:
    import torch

    peer = open_peer(pool)
    try:
        for where, sign in ((weights, 1), (kv, -1)):
            pages = peer.pages(where)
            assert (pages[half:] == -1).all(), "a peer sees pages where none are mapped"
            for slot in range(half):
                got = int(peer.tensor().view(torch.int32)[int(pages[slot]) * pool.page_bytes // 4])
                assert got == sign * (slot + 1), f"a peer reads {got} in slot {slot} of {where.name!r}"
    finally:
        peer.close()


def _conserves(pool: PagePool, kv: Any, cell: Callable[[Any, int], Any]) -> None:
    draw, held, stamp = random.Random(7), dict[int, int](), 0
    for _ in range(_STEPS):
        slots = draw.sample(range(_SLOTS), draw.randint(1, 6))
        if draw.random() < 0.5:
            new = [slot for slot in slots if slot not in held][: pool.free_pages]
            pool.map(kv, new)
            for slot in new:
                stamp += 1
                cell(kv, slot).fill_(stamp)
                held[slot] = stamp
        else:
            gone = [slot for slot in slots if slot in held]
            pool.unmap(kv, gone)
            for slot in gone:
                del held[slot]
        pool.check()
        assert pool.free_pages + len(held) == pool.capacity, "pages leaked"
        for slot, value in held.items():
            assert int(cell(kv, slot)[-1]) == value, f"slot {slot} lost its values when others were mapped"
    pool.unmap(kv, list(held))
