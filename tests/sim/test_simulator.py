"""The loop that jumps does exactly what the engine's batcher does step by step, merges and splits included."""

from dataclasses import dataclass
from itertools import pairwise
from random import Random

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gyges.errors import UserError
from gyges.scheduling.batching import BatchLimits
from gyges.scheduling.routing import Policy, Reject, Send, Wait
from gyges.scheduling.specification import make_policy
from gyges.sim.cost.base import StepShape
from gyges.sim.cost.sources import CostSpec, cost_model
from gyges.sim.hardware import load_hardware
from gyges.sim.models import sim_model
from gyges.sim.sequence import Pace
from gyges.sim.simulator import SimRequest, Simulator

from .flat import Flat, Restless
from .stepwise import Stepwise


@dataclass(frozen=True)
class Linear:
    """A step time that depends on everything that a shape says, so that a wrong one shows."""

    degree: int = 1

    def step_s(self, shape: StepShape) -> float:
        prefill = sum(0.003 * chunk + 0.0001 * chunk * before for chunk, before in shape.prefills)
        return (
            0.01
            + 0.001 * shape.decodes
            + 1e-5 * shape.decode_context
            + 1e-4 * shape.decode_longest
            + 1e-6 * shape.sampled
            + prefill
        ) / self.degree

    def decode_steps_s(self, decodes, context, longest, steps):
        shapes = (StepShape(decodes, context + i * decodes, longest + i, (), decodes) for i in range(steps))
        return np.array([self.step_s(shape) for shape in shapes])


class InTurn(Policy):
    """Long queues on some instances while others stand idle."""

    def __init__(self):
        self.calls = 0

    def route(self, ask, instances, host, now):
        self.calls += 1
        fitting = [i for i, view in enumerate(instances) if view.max_tokens >= ask.length]
        return Send(fitting[self.calls % len(fitting)]) if fitting else Reject("no room: tokens of KV cache")


STANDING = {"in-turn": InTurn, "static": lambda: make_policy("static")}
CHANGING = {
    "restless": Restless,
    "on-demand": lambda: make_policy("on-demand"),
    "gyges": lambda: make_policy("gyges+dwell=1"),
    "gyges:paper": lambda: make_policy("gyges:paper"),
    "llf": lambda: make_policy("llf"),
    "rr": lambda: make_policy("rr"),
    "oracle": lambda: make_policy("oracle"),
    "restart": lambda: make_policy("restart+hold=1"),
    "pressure": lambda: make_policy("pressure"),
    "elastic": lambda: make_policy("elastic+share=8"),
    "by-load": lambda: make_policy("by-load+dwell=1"),
}
POLICIES = STANDING | CHANGING
COSTS = {degree: Linear(degree) for degree in (1, 2, 3, 4)}
VIEWED = (
    "name", "degree", "devices", "max_tokens", "free_tokens", "running", "waiting", "remaining_tokens", "longest_tokens",
    "transforming", "prefill_tokens", "waiting_tokens", "held_tokens", "long_requests", "becoming",
)  # fmt: skip


@st.composite
def cases(draw, policies=STANDING):
    """(system, degrees, limits, requests, name of a policy)."""
    size = draw(st.sampled_from([1, 2, 4, 16]))
    seqs = draw(st.integers(1, 6))
    limits = BatchLimits(draw(st.integers(seqs, 24)), seqs, size)
    changes = policies is CHANGING
    room = size * draw(st.integers(max(2, (48 if changes else 24) // size), max(4, (120 if changes else 80) // size)))
    degrees = draw(st.sampled_from([(1, 1), (2, 1), (1, 1, 1), (1, 1, 1, 1)] if changes else [(1,), (2, 1), (1, 1, 1)]))
    known = [d for d in (1, 2, 3, 4) if d <= sum(degrees) and (changes or d in degrees)]
    # A wide instance holds more than its parts together, as its weights take less of every device.
    kv = {degree: degree * room + (degree - 1) * size * draw(st.integers(0, 2)) for degree in known}
    system = Flat({d: COSTS[d] for d in known}, kv)
    if changes:
        system.pause_s = draw(st.sampled_from([0.0, 0.013, 0.21]))
        system.beside_s = draw(st.sampled_from([0.0, 0.31, 1.7]))
        system.slowdown = draw(st.sampled_from([1.0, 1.37]))
        system.token_s = draw(st.sampled_from([0.0, 1e-3]))
        system.keeps_kv = draw(st.sampled_from([True, True, False]))
        system.pace = draw(st.sampled_from([None, Pace(1, 0.0, 0.004), Pace(7, 0.003, 0.02), Pace(40, 0.01, 0.0071)]))
    if changes:  # long requests among many short ones, so that something runs wherever instances merge and split
        random, gaps = Random(draw(st.integers(0, 2**32))), [0.0, 0.0, 0.01, 0.0137, 0.05, 0.4]
        long = lambda: random.randint(room - 30, 2 * room)  # noqa: E731
        rows = [
            (random.choice(gaps), random.choice((long(), *[random.randint(1, 16)] * 5)), random.randint(1, 40))
            for _ in range(draw(st.integers(1, 24)))
        ]
    else:
        gaps = st.sampled_from([0.0, 0.0, 0.01, 0.02, 0.0137, 0.3, 3.0])
        rows = draw(st.lists(st.tuples(gaps, st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=14))
    at, requests = 0.0, []
    for gap, prompt, output in rows:
        at += gap
        requests.append(SimRequest(at, prompt, output))
    return system, degrees, limits, requests, draw(st.sampled_from(sorted(policies)))


PREEMPTING = [SimRequest(0.0, 9, 30), SimRequest(0.0, 9, 30), SimRequest(0.1, 9, 30), SimRequest(0.5, 20, 3)]
PREEMPTS = (Flat({1: COSTS[1]}, {1: 48}), (1,), BatchLimits(8, 4, 2), PREEMPTING, "static")


def same(case):
    """Runs both, and returns them once every request has had every token at the same time in both."""
    system, degrees, limits, requests, policy = case
    slow = Stepwise(system, degrees, limits, POLICIES[policy]())
    times = slow.run(requests)
    result = Simulator.of(system, degrees, limits, POLICIES[policy]()).run(requests)
    for number, record in enumerate(result.records):
        if number not in slow.preemptions:
            assert record.status in ("rejected", "failed")
            assert number not in slow.rejected or "tokens of KV cache" in record.reason
            continue
        assert record.status == "completed"
        np.testing.assert_allclose(record.token_times, times[number], rtol=0, atol=1e-9)
        assert record.preemptions == slow.preemptions[number]
        assert record.first_scheduled_s == pytest.approx(slow.admitted[number], abs=1e-9)
    return slow, result


@settings(max_examples=250, deadline=None)
@given(case=cases())
@example(case=PREEMPTS)
def test_jumping_and_stepping_give_every_token_the_same_time(case):
    same(case)


@settings(max_examples=250, deadline=None)
@given(case=cases(CHANGING))
def test_jumping_and_stepping_carry_out_the_same_merges_and_splits_at_the_same_times(case):
    slow, result = same(case)
    made = [(event.kind, event.start_s, event.end_s) for event in result.transformations]
    assert len(made) == len(slow.made)
    for (kind, start_s, end_s), (wanted, *times) in zip(made, sorted(slow.made, key=lambda each: each[2]), strict=True):
        assert wanted in (kind, "restart")
        np.testing.assert_allclose((start_s, end_s), times, rtol=0, atol=1e-9)


def test_the_example_preempts():
    system, degrees, limits, requests, policy = PREEMPTS
    result = Simulator.of(system, degrees, limits, POLICIES[policy]()).run(requests)
    assert sum(record.preemptions for record in result.records) > 0


@pytest.mark.parametrize("policies", [STANDING, CHANGING])
def test_a_policy_sees_of_the_simulator_what_it_sees_of_the_engine(policies):
    @settings(max_examples=100, deadline=None)
    @given(case=cases(policies))
    def check(case):
        system, degrees, limits, requests, policy = case

        class Watching(Policy):
            transforms = policies is CHANGING

            def __init__(self):
                self.seen, self.inner = [], POLICIES[policy]()

            @property
            def wake_s(self):
                return self.inner.wake_s

            def note(self, instances, host, now):
                views = [tuple(getattr(view, key) for key in VIEWED) for view in instances]
                self.seen.append((round(now, 9), views, host.pending, host.ahead, host.pending_tokens, host.max_tokens))

            def route(self, ask, instances, host, now):
                self.note(instances, host, now)
                return self.inner.route(ask, instances, host, now)

            def review(self, instances, host, now):
                if self.transforms:  # the simulator asks no others
                    self.note(instances, host, now)
                return self.inner.review(instances, host, now)

        fast, slow = Watching(), Watching()
        Stepwise(system, degrees, limits, slow).run(requests)
        Simulator.of(system, degrees, limits, fast).run(requests)
        assert fast.seen == slow.seen

    check()


@settings(max_examples=100, deadline=None)
@given(case=cases(CHANGING))
def test_when_all_is_done_no_block_and_no_work_is_left(case):
    system, degrees, limits, requests, policy = case
    simulator = Simulator.of(system, degrees, limits, POLICIES[policy]())
    result = simulator.run(requests)
    done = [record for record in result.records if record.status == "completed"]
    (host,) = simulator.hosts
    assert sum(hosted.sim.output_tokens for hosted in host.ever) == sum(r.target_output_tokens for r in done)
    for hosted in host.instances:
        assert hosted.requests == hosted.remaining_tokens == hosted.held_tokens == hosted.long_requests == 0
    assert all(0 <= sample.kv_used_blocks <= sample.kv_total_blocks for sample in result.samples)
    assert {d for hosted in host.instances for d in hosted.devices} <= set(range(sum(degrees)))


def test_a_real_cost_model_gives_the_same_times_too():
    model, card = sim_model("Qwen/Qwen2.5-32B"), load_hardware("h20")[0]
    costs = {degree: cost_model("analytic", CostSpec(model, card, degree)) for degree in (1, 2)}
    random = np.random.default_rng(3)
    arrivals = np.cumsum(random.exponential(0.2, 60))
    lengths = random.integers(1, 900, (60, 2))
    requests = [SimRequest(float(t), int(p), int(n)) for t, (p, n) in zip(arrivals, lengths, strict=True)]
    same((Flat(costs, {1: 4096, 2: 8192}), (1, 2), BatchLimits(512, 16, 16), requests, "static"))


def test_a_request_that_the_policy_holds_back_is_asked_for_again_when_another_ends():
    class OneAtATime(Policy):
        def route(self, ask, instances, host, now):
            return Wait() if instances[0].running + instances[0].waiting else Send(0)

    requests = [SimRequest(0.0, 4, 3) for _ in range(3)]
    system = Flat({1: COSTS[1]}, {1: 64})
    records = Simulator.of(system, (1,), BatchLimits(8, 4, 4), OneAtATime()).run(requests).records
    assert [record.status for record in records] == ["completed"] * 3
    assert records[0].end_s == records[1].first_scheduled_s
    assert records[1].end_s == records[2].first_scheduled_s


def test_what_cannot_be_simulated_is_refused_by_name():
    limits, system = BatchLimits(8, 4, 4), Flat({1: COSTS[1]}, {1: 64})
    with pytest.raises(UserError, match="can take only TP1 on 1 devices"):
        Simulator.of(system, (1,), limits, make_policy("gyges"))
    with pytest.raises(UserError, match="can take TP1 here"):
        Simulator.of(system, (2,), limits, make_policy("static"))
    with pytest.raises(UserError, match="has no room for 9 decodes"):
        Simulator.of(system, (1,), BatchLimits(8, 9, 4), make_policy("static"))
    with pytest.raises(UserError, match="less than one block of 4"):
        Simulator.of(Flat({1: COSTS[1]}, {1: 3}), (1,), limits, make_policy("static"))


def test_progress_never_goes_back_and_ends_where_the_run_does():
    system = Flat({d: COSTS[d] for d in (1, 2)}, {1: 64, 2: 160}, pause_s=0.01, beside_s=0.5)
    requests = [SimRequest(0.2 * i, 100 if i % 5 == 2 else 9, 20) for i in range(20)] + [SimRequest(9.0, 500, 5)]
    seen = []
    simulator = Simulator.of(system, (1, 1), BatchLimits(32, 4, 4), make_policy("on-demand"))
    result = simulator.run(requests, sample_s=0.1, on_progress=seen.append)
    counts = [(each.now_s, each.sent, each.completed, each.rejected, each.output_tokens) for each in seen]
    assert all(x <= y for before, after in pairwise(counts) for x, y in zip(before, after, strict=True))
    assert counts[-1] == (result.end_s, 21, 20, 1, 400)
    assert any("merge" in each.transforming.values() for each in seen)
