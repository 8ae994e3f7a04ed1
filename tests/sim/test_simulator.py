"""The loop that jumps does exactly what the engine's batcher does step by step."""

from dataclasses import dataclass

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
from gyges.sim.simulator import SimRequest, Simulator

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


POLICIES = {"in-turn": InTurn, "static": lambda: make_policy("static")}
COSTS = {degree: Linear(degree) for degree in (1, 2, 4)}


@st.composite
def cases(draw):
    size = draw(st.sampled_from([1, 2, 4, 16]))
    seqs = draw(st.integers(1, 6))
    limits = BatchLimits(draw(st.integers(seqs, 24)), seqs, size)
    degrees = draw(st.sampled_from([(1,), (2, 1), (1, 1, 1)]))
    kv = {degree: degree * size * draw(st.integers(max(2, 24 // size), max(4, 80 // size))) for degree in set(degrees)}
    gaps = st.sampled_from([0.0, 0.0, 0.01, 0.02, 0.0137, 0.3, 3.0])
    rows = draw(st.lists(st.tuples(gaps, st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=14))
    at, requests = 0.0, []
    for gap, prompt, output in rows:
        at += gap
        requests.append(SimRequest(at, prompt, output))
    return limits, degrees, kv, requests, draw(st.sampled_from(sorted(POLICIES)))


PREEMPTING = [SimRequest(0.0, 9, 30), SimRequest(0.0, 9, 30), SimRequest(0.1, 9, 30), SimRequest(0.5, 20, 3)]


@settings(max_examples=400, deadline=None)
@given(case=cases())
@example(case=(BatchLimits(8, 4, 2), (1,), {1: 48}, PREEMPTING, "static"))
def test_jumping_and_stepping_give_every_token_the_same_time(case):
    limits, degrees, kv, requests, policy = case
    slow = Stepwise(degrees, COSTS, kv, limits, POLICIES[policy]())
    times = slow.run(requests)
    result = Simulator(degrees, COSTS, kv, limits, POLICIES[policy]()).run(requests)
    for number, record in enumerate(result.records):
        if number in slow.rejected:
            assert record.status == "rejected"
            assert "tokens of KV cache" in record.reason
            continue
        assert record.status == "completed"
        np.testing.assert_allclose(record.token_times, times[number], rtol=0, atol=1e-9)
        assert record.preemptions == slow.preemptions[number]
        assert record.first_scheduled_s == pytest.approx(slow.admitted[number], abs=1e-9)


def test_the_example_preempts():
    result = Simulator((1,), COSTS, {1: 48}, BatchLimits(8, 4, 2), make_policy("static")).run(PREEMPTING)
    assert sum(record.preemptions for record in result.records) > 0


@settings(max_examples=150, deadline=None)
@given(case=cases())
def test_a_policy_sees_of_the_simulator_what_it_sees_of_the_engine(case):
    limits, degrees, kv, requests, _ = case

    class Watching(Policy):
        def __init__(self):
            self.seen = []

        def route(self, ask, instances, host, now):
            keys = ("degree", "max_tokens", "running", "waiting", "remaining_tokens", "longest_tokens", "devices")
            self.seen.append((round(now, 9), [tuple(getattr(view, key) for key in keys) for view in instances]))
            return make_policy("static").route(ask, instances, host, now)

    fast, slow = Watching(), Watching()
    Stepwise(degrees, COSTS, kv, limits, slow).run(requests)
    Simulator(degrees, COSTS, kv, limits, fast).run(requests)
    assert fast.seen == slow.seen


@settings(max_examples=100, deadline=None)
@given(case=cases())
def test_when_all_is_done_no_block_and_no_work_is_left(case):
    limits, degrees, kv, requests, policy = case
    simulator = Simulator(degrees, COSTS, kv, limits, POLICIES[policy]())
    result = simulator.run(requests)
    done = [record for record in result.records if record.status == "completed"]
    last = result.samples[-len(degrees) :]
    assert all(sample.kv_used_blocks == sample.running == sample.waiting == 0 for sample in last)
    assert sum(sample.output_tokens for sample in last) == sum(record.target_output_tokens for record in done)
    assert all(0 <= sample.kv_used_blocks <= sample.kv_total_blocks for sample in result.samples)


def test_a_real_cost_model_gives_the_same_times_too():
    model, card = sim_model("Qwen/Qwen2.5-32B"), load_hardware("h20")[0]
    costs = {degree: cost_model("analytic", CostSpec(model, card, degree)) for degree in (1, 2)}
    random = np.random.default_rng(3)
    arrivals = np.cumsum(random.exponential(0.2, 60))
    lengths = random.integers(1, 900, (60, 2))
    requests = [SimRequest(float(t), int(p), int(n)) for t, (p, n) in zip(arrivals, lengths, strict=True)]
    limits, kv = BatchLimits(512, 16, 16), {1: 4096, 2: 8192}
    times = Stepwise((1, 2), costs, kv, limits, make_policy("static")).run(requests)
    result = Simulator((1, 2), costs, kv, limits, make_policy("static")).run(requests)
    for number, record in enumerate(result.records):
        np.testing.assert_allclose(record.token_times, times[number], rtol=0, atol=1e-9)


def test_a_request_that_the_policy_holds_back_is_asked_for_again_when_another_ends():
    class OneAtATime(Policy):
        def route(self, ask, instances, host, now):
            return Wait() if instances[0].running + instances[0].waiting else Send(0)

    requests = [SimRequest(0.0, 4, 3) for _ in range(3)]
    records = Simulator((1,), COSTS, {1: 64}, BatchLimits(8, 4, 4), OneAtATime()).run(requests).records
    assert [record.status for record in records] == ["completed"] * 3
    assert records[0].end_s == records[1].first_scheduled_s
    assert records[1].end_s == records[2].first_scheduled_s


def test_what_cannot_be_simulated_is_refused_by_name():
    limits = BatchLimits(8, 4, 4)
    with pytest.raises(UserError, match="choose one that keeps them: static"):
        Simulator((1,), COSTS, {1: 64}, limits, make_policy("gyges"))
    with pytest.raises(UserError, match="has no room for 9 decodes"):
        Simulator((1,), COSTS, {1: 64}, BatchLimits(8, 9, 4), make_policy("static"))
    with pytest.raises(UserError, match="less than one block of 4"):
        Simulator((1,), COSTS, {1: 3}, limits, make_policy("static"))
