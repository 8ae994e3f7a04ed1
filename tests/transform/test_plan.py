"""A plan brings every value where it belongs, within the pages of the device, at any moment."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from transform.content import make_host
from transform.world import World

from gyges.kv_cache.layouts import LAYOUTS
from gyges.transform.ops import Barrier, Settle
from gyges.transform.plan import Moves, PlanImpossible, Planner, back_ids, join_of
from gyges.transform.shape import merge, split

# (devices, degrees of the host, query heads, KV heads), (before, after) of a first transformation
STEPS = [
    ((2, (1, 2), 4, 4), ((1, 1), (2,))),
    ((2, (1, 2), 4, 1), ((1, 1), (2,))),
    ((3, (1, 3), 12, 3), ((1, 1, 1), (3,))),
    ((3, (1, 3), 12, 12), ((1, 1, 1), (3,))),
    ((3, (1, 2, 3), 12, 6), ((2, 1), (3,))),
    ((4, (1, 4), 4, 4), ((1, 1, 1, 1), (4,))),
    ((4, (1, 2, 4), 8, 8), ((1, 1, 1, 1), (4,))),
    ((4, (1, 2, 4), 4, 4), ((2, 2), (4,))),
    ((4, (2, 4), 4, 4), ((2, 2), (4,))),
    ((4, (1, 2, 4), 4, 2), ((2, 2), (4,))),
    ((4, (1, 2, 4), 4, 4), ((2, 1, 1), (4,))),
    ((4, (1, 2, 4), 4, 4), ((4,), (2, 2))),
    ((4, (1, 2, 4), 4, 4), ((4,), (2, 1, 1))),
    ((4, (1, 2, 4), 4, 2), ((4,), (1, 2, 1))),
    ((4, (1, 4), 8, 8), ((4,), (1, 1, 1, 1))),
    ((4, (1, 3, 4), 12, 12), ((3, 1), (4,))),  # these two cannot nest
    ((4, (1, 3, 4), 12, 12), ((4,), (1, 3))),
    ((8, (1, 8), 8, 4), ((1,) * 8, (8,))),
    ((8, (1, 2, 4, 8), 8, 4), ((1,) * 8, (8,))),
    ((8, (1, 2, 4, 8), 8, 4), ((8,), (1,) * 8)),
    ((8, (1, 2, 4, 8), 8, 4), ((8,), (4, 1, 2, 1))),
]
HOMES = ["scattered", "runs", "packed"]
SIZES = st.fixed_dictionaries({
    "page_bytes": st.sampled_from([64, 128, 256, 512, 1024]),
    "block_size": st.integers(1, 4),
    "layers": st.integers(1, 3),
    "head_dim": st.sampled_from([2, 4, 6]),
    "hidden": st.sampled_from([8, 8, 64]),
    "rows_per_shard": st.integers(1, 4),
    "spare_pages": st.one_of(st.just(0), st.integers(0, 60)),
})  # fmt: skip
# A case is small as it comes; making it smaller would take longer than reading it.
QUICK = {"deadline": None, "phases": (Phase.explicit, Phase.reuse, Phase.generate)}

every_kind = pytest.mark.parametrize("padding", [True, False], ids=["padded", "packed"])
every_layout = pytest.mark.parametrize("layout", LAYOUTS.names())


def world_of(step, layout, padding, seed=0, **sizes) -> World:
    (devices, degrees, heads, kv_heads), (before, _) = step
    host = make_host(
        layout, padding, devices=devices, degrees=degrees, heads=heads, kv_heads=kv_heads, **sizes
    )  # fmt: skip
    return World(host, before, random.Random(seed))


def first(world: World, step, homes: str, compose=None):
    after = step[1][1]
    if len(after) == 1:
        return world.merge(world.groups, compose)
    return world.split(world.groups[0], after, homes, compose)


def another(world: World, homes: str) -> None:
    """A random transformation of some of the instances there are."""
    rng, degrees = world.rng, world.host.degrees
    merges = []
    for _ in range(10):
        some = rng.sample(world.groups, rng.randint(1, len(world.groups)))
        if len(some) > 1 and sum(g.degree for g in some) in degrees:
            merges.append(some)
    splits = [(g, parts) for g in world.groups for parts in partitions(g.degree, degrees) if len(parts) > 1]
    if merges and (not splits or rng.random() < 0.5):
        world.merge(merges[0])
    elif splits:
        group, parts = rng.choice(splits)
        world.split(group, rng.sample(parts, len(parts)), homes)


def partitions(total: int, parts: tuple[int, ...], most: int | None = None) -> list[list[int]]:
    if not total:
        return [[]]
    return [
        [part, *rest]
        for part in parts
        if part <= min(total, most or total)
        for rest in partitions(total - part, parts, part)
    ]


@every_kind
@every_layout
@settings(max_examples=20, **QUICK)
@given(
    step=st.sampled_from(STEPS),
    sizes=SIZES,
    fills=st.lists(st.sampled_from([0.0, 0.2, 0.6, 1.0]), min_size=1, max_size=4),
    homes=st.sampled_from(HOMES),
    chain=st.integers(1, 4),
    seed=st.integers(0, 1 << 20),
)
def test_every_value_arrives_and_no_page_is_lost(layout, padding, step, sizes, fills, homes, chain, seed):
    world = world_of(step, layout, padding, seed, **sizes)
    for index, group in enumerate(world.groups):
        world.fill(group, fills[index % len(fills)])
    world.check()
    first(world, step, homes)
    world.check()
    for _ in range(chain - 1):
        for group in world.groups:
            world.fill(group, world.rng.choice(fills))
        another(world, homes)
        world.check()
    world.empty()


@every_kind
@every_layout
def test_with_every_block_in_use_pages_are_exchanged_in_rounds(layout, padding):
    rounds = []
    for step in STEPS[padding::2]:
        world = world_of(step, layout, padding, page_bytes=256, block_size=2, spare_pages=80)
        for group in world.groups:
            world.fill(group, 1.0)
        before = {w: world.rig.mapped_pages(w) for w in world.parity}
        plan = first(world, step, "packed")
        world.check()
        rounds.append(plan.rounds)
        for worker, total in plan.totals.items():
            assert total.start_pages <= before[worker]  # less where the blocks of all do not fit together
            assert max(total.start_pages, total.end_pages) <= total.peak_pages <= world.host.device_pages
    assert max(rounds) > 2


@every_layout
@pytest.mark.parametrize("after", [(1, 3), (3, 1)])
def test_where_ranks_cannot_nest_there_is_room_for_the_units_that_must_be_copied(layout, after):
    """With padding, too: a worker's part of TP4 is not in its part of TP3."""
    step = ((4, (1, 3, 4), 12, 12), ((3, 1), (4,)))
    world = world_of(step, layout, True, page_bytes=256, block_size=1, layers=2, head_dim=2, hidden=64)
    for group in world.groups:
        world.fill(group, 1.0)
    first(world, step, "")
    world.check()
    world.fill(world.groups[0], 1.0)
    world.split(world.groups[0], after, "packed")
    world.check()


def a_few_at_a_time(rng: random.Random):
    """As an overlapped transformation moves them: in any order, while some requests end."""

    def compose(planner: Planner, moves: list[Moves]) -> list[tuple[int, int]]:
        gone = []
        if planner.shape.kind == "merge":
            planner.ffn_stage()
        waiting = [(m.narrow, i) for m in moves for i in range(len(m.src))]
        rng.shuffle(waiting)
        one = lambda n, i: Moves(n, moves[n].src[i : i + 1], moves[n].dst[i : i + 1])  # noqa: E731
        stop = rng.randint(0, len(waiting))
        while len(waiting) > stop:
            moving = [at for at in waiting[-rng.randint(1, 4) :] if rng.random() < 0.9]
            ending = [at for at in waiting if at not in moving and rng.random() < 0.05]
            waiting = [at for at in waiting if at not in moving and at not in ending]
            for at in moving:
                assert planner.fits([one(*at)])
                planner.transfer(one(*at))
            planner.emit(Barrier())
            for at in moving + ending:
                planner.release(at[0], one(*at).src)
                if at in ending:
                    gone.append(at)
                elif rng.random() < 0.2:
                    planner.release(at[0], one(*at).dst, back=True)
                    gone.append(at)
        waiting.sort()
        left = [(m, [i for n, i in waiting if n == m.narrow]) for m in moves]
        planner.kv_stage([Moves(m.narrow, m.src[own], m.dst[own]) for m, own in left])
        if planner.shape.kind == "split":
            planner.ffn_stage()
        planner.emit(Settle())
        return gone

    return compose


@every_kind
@every_layout
@settings(max_examples=8, **QUICK)
@given(
    step=st.sampled_from(STEPS),
    homes=st.sampled_from(HOMES),
    seed=st.integers(0, 1 << 20),
    page=st.sampled_from([128, 512]),
)
def test_blocks_may_move_in_any_order_while_requests_end(layout, padding, step, homes, seed, page):
    world = world_of(step, layout, padding, seed, page_bytes=page, block_size=2, spare_pages=200)
    for group in world.groups:
        world.fill(group, 0)
        world.allocate(group, min(30 // len(world.groups), group.allocator.total))
    first(world, step, homes, a_few_at_a_time(world.rng))
    world.check()
    world.empty()


@every_layout
def test_what_does_not_fit_is_refused_and_takes_nothing(layout):
    host = make_host(layout, True, devices=2, degrees=(1, 2), heads=4, kv_heads=1, page_bytes=256, block_size=1)
    ids = host.host_ids()
    count = len(ids)
    shape = merge(((0,), (1,)), host.shards)
    wide = host.allocator(2, ids)
    # One KV head cannot be shared out: two full instances do not fit one.
    live = [range(wide.total), range(wide.total, wide.total + 1)]
    with pytest.raises(PlanImpossible, match=f"{wide.total + 1} blocks in use do not fit {wide.total}"):
        back_ids(shape, host, live, [wide])
    shape = split((0, 1), (1, 1), host.shards)
    narrow = [host.allocator(1, ids) for _ in range(2)]
    live = [range(narrow[0].total), range(narrow[0].total, 2 * narrow[0].total + 1)]
    with pytest.raises(PlanImpossible):
        back_ids(shape, host, live, narrow)
    assert len(ids) == count
    assert wide.num_held == narrow[0].num_held == narrow[1].num_held == 0


@pytest.mark.parametrize("layout", ["header-centric", "shard-pages"])
@settings(max_examples=25, **QUICK)
@given(seed=st.integers(0, 1 << 20), page=st.sampled_from([128, 1024]), data=st.data())
def test_ids_are_kept_where_addresses_are_the_same(layout, seed, page, data):
    """All of them in a merge, and in a split those of every group that one home has most of."""
    host = make_host(
        layout, True, devices=4, degrees=(1, 4), heads=4, kv_heads=4, page_bytes=page, block_size=1, spare_pages=90
    )
    rng, ids = random.Random(seed), host.host_ids()
    all_ids = len(ids)
    fronts = [host.allocator(1, ids) for _ in range(4)]
    live = [front.allocate(rng.randint(0, front.total)) for front in fronts]
    for front, blocks in zip(fronts, live, strict=True):
        front.release([blocks.pop(rng.randrange(len(blocks))) for _ in range(len(blocks) // 3)])
    wide = host.allocator(4, ids)
    result = back_ids(merge(((0,), (1,), (2,), (3,)), host.shards), host, live, [wide])
    assert [each.tolist() for each in result.ids] == live
    assert not result.ghosts
    assert not result.abandoned

    blocks = sorted(block for own in live for block in own)
    homes = [data.draw(st.integers(0, 3)) for _ in blocks]
    backs = [host.allocator(1, ids) for _ in range(4)]
    per_group, room = backs[0].blocks_per_group, backs[0].total
    shares = [[b for b, home in zip(blocks, homes, strict=True) if home == n][: room // 2] for n in range(4)]
    taken = {b for share in shares for b in share}
    wide.release([b for b in blocks if b not in taken])
    result = back_ids(split((0, 1, 2, 3), (1,) * 4, host.shards), host, shares, backs)
    new = [each.tolist() for each in result.ids]
    blocks_in = [Counter(b // per_group for b in share) for share in shares]
    for home, (share, dst) in enumerate(zip(shares, new, strict=True)):
        for a, b in zip(share, dst, strict=True):
            group = a // per_group
            majority = all(blocks_in[home][group] > blocks_in[n][group] for n in range(4) if n != home)
            if majority and len(blocks_in[home]) <= backs[home].max_groups:
                assert a == b
            assert a == b or b not in taken, "a renamed block would overwrite one that has not moved"
    owners = {(b // per_group, home) for home, dst in enumerate(new) for b in dst}
    assert len({group for group, _ in owners}) == len(owners), "two homes share a group"

    # Until a ghost is forgotten, nobody is given its id.
    for index, back in enumerate(backs):
        rest = back.allocate(back.num_free)
        assert not set(rest) & taken, f"home {index} hands out ids that are still read"
        back.release(rest)
    result.forget(taken)
    for group in result.abandoned:
        ids.give(group)
    for back, dst in zip(backs, new, strict=True):
        assert back.num_held == len(dst)
        back.release(dst)
    assert len(ids) == all_ids


def test_a_planner_goes_back_to_what_it_saved():
    world = world_of(STEPS[0], "header-centric", False, page_bytes=256, block_size=2, spare_pages=20)
    for group in world.groups:
        world.fill(group, 0.5)
    shape = merge(tuple(g.members for g in world.groups), world.host.shards)
    books = {w: world.rig.books[w].copy() for w in shape.wide}
    planner = Planner(world.host, shape, books, join_of(shape, books))
    blocks = np.array(list(world.groups[0].blocks.values()))
    state = lambda: {w: (i.book.mapped_pages, i.book.kv_pages) for w, i in planner.interpreters.items()}  # noqa: E731
    saved, before, ops = planner.save(), state(), list(planner.ops)
    planner.ffn_stage()
    planner.kv_stage([Moves(0, blocks, blocks)])
    assert state() != before
    planner.restore(saved)
    assert state() == before
    assert planner.ops == ops
