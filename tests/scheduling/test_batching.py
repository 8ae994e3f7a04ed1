"""Batching: budget, order, blocks and progress hold on any workload."""

from hypothesis import given, settings
from hypothesis import strategies as st

from gyges.kv_cache.blocks import BlockAllocator
from gyges.scheduling.batching import Batcher, BatchLimits, Sequence


def sequence(order: int, prompt: int, output: int) -> Sequence:
    return Sequence(order=order, prompt_tokens=prompt, max_tokens=output, known=prompt)


def run(batcher: Batcher, arrivals: dict[int, list[Sequence]], check=lambda plan: None, limit: int = 20_000):
    """Steps until all is done; arrivals: step -> sequences. Returns (ends in order, plans)."""
    ended, plans, step = [], [], 0
    pending = sum(map(len, arrivals.values()))
    while len(ended) < pending:
        for each in arrivals.get(step, []):
            batcher.add(each)
        plan = batcher.schedule()
        step += 1
        assert step < limit, "no progress"
        if plan is None:
            continue
        check(plan)
        plans.append(plan)
        for each in batcher.advance(plan):
            if each.sampled == each.max_tokens:
                batcher.finish(each)
                ended.append(each)
    return ended, plans


workloads = st.lists(st.tuples(st.integers(0, 20), st.integers(1, 40), st.integers(1, 20)), min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@given(workloads, st.integers(1, 24), st.integers(1, 6), st.integers(1, 5), st.integers(0, 8))
def test_everyone_ends_and_nothing_leaks(workload, budget, max_seqs, block_size, slack):
    longest = max(prompt + output - 1 for _, prompt, output in workload)
    total = -(-longest // block_size) + slack
    batcher = Batcher(BatchLimits(budget, max_seqs, block_size), BlockAllocator.of_blocks(total))
    arrivals: dict[int, list[Sequence]] = {}
    everyone = []
    for order, (at, prompt, output) in enumerate(sorted(workload)):
        everyone.append(sequence(order, prompt, output))
        arrivals.setdefault(at, []).append(everyone[-1])

    def check(plan):
        assert 1 <= plan.tokens <= budget
        assert len({row.sequence.order for row in plan.rows}) == len(plan.rows) <= max_seqs
        held = [b for s in batcher.running for b in s.blocks]
        assert len(held) == len(set(held)) == batcher.allocator.num_held
        for row in plan.rows:
            assert row.start == row.sequence.computed
            assert (row.start + row.count) <= len(row.sequence.blocks) * block_size, "a token without a block"
            assert row.samples == (row.start + row.count == row.sequence.known)
        for waiting in batcher.waiting:
            assert not waiting.blocks

    run(batcher, arrivals, check)
    assert all(s.sampled == s.max_tokens for s in everyone)
    assert batcher.allocator.num_held == 0
    assert not batcher.running
    assert not batcher.waiting


@settings(max_examples=60, deadline=None)
@given(workloads, st.integers(2, 16), st.integers(1, 3))
def test_the_oldest_is_never_preempted_and_always_in_the_step(workload, budget, slack):
    longest = max(prompt + output - 1 for _, prompt, output in workload)
    batcher = Batcher(BatchLimits(budget, 8, 1), BlockAllocator.of_blocks(longest + slack))
    arrivals = {0: [sequence(i, p, o) for i, (_, p, o) in enumerate(workload)]}

    def check(plan):
        oldest = min(batcher, key=lambda s: s.order)
        assert oldest not in plan.preempted
        assert oldest in [row.sequence for row in plan.rows]

    run(batcher, arrivals, check)


def test_a_decode_is_never_starved_by_a_prefill():
    batcher = Batcher(BatchLimits(8, 8, 4), BlockAllocator.of_blocks(100))
    first, long = sequence(0, 2, 10), sequence(1, 60, 1)
    _, plans = run(batcher, {0: [first], 1: [long]})
    during = [plan for plan in plans if any(row.sequence is long for row in plan.rows)]
    assert len(during) > 5
    assert all(any(r.sequence is first for r in plan.rows) for plan in plans[:10])


def test_prefill_is_cut_at_the_token_budget():
    batcher = Batcher(BatchLimits(16, 8, 4), BlockAllocator.of_blocks(100))
    _, plans = run(batcher, {0: [sequence(0, 40, 1)]})
    assert [(r.start, r.count, r.samples) for p in plans for r in p.rows] == [
        (0, 16, False),
        (16, 16, False),
        (32, 8, True),
    ]


def test_running_out_of_blocks_preempts_the_latest_which_starts_over():
    batcher = Batcher(BatchLimits(64, 8, 1), BlockAllocator.of_blocks(12))
    old, young = sequence(0, 4, 6), sequence(1, 4, 6)
    ended, _ = run(batcher, {0: [old, young]})
    assert ended == [old, young]
    assert old.preemptions == 0
    assert young.preemptions >= 1
