"""Every way of serving, driven by its own policy, brings a mixed trace to its end."""

import numpy as np
import pytest

from gyges.scheduling.batching import BatchLimits
from gyges.scheduling.specification import layout_of, make_policy
from gyges.sim import systems  # noqa: F401 - registers them
from gyges.sim.hardware import load_hardware
from gyges.sim.models import sim_model
from gyges.sim.simulator import SimRequest, Simulator
from gyges.sim.system import SYSTEMS, SystemSpec, make_system

SPEC = SystemSpec(sim_model("Qwen/Qwen2.5-32B"), load_hardware("h20")[0], 8)
LIMITS = BatchLimits(2048, 64, 16)
LONG, IMPOSSIBLE = 100_000, 10_000_000  # tokens: one device holds 72,000


def mixed(seed: int = 0, rate: float = 4.0, count: int = 240) -> list[SimRequest]:
    """Short requests, bursts of 40 at once, a long one every now and then, and one that fits nowhere."""
    random = np.random.default_rng(seed)
    times = np.cumsum(random.exponential(1 / rate, count))
    times[80:120] = times[80]
    prompts, outputs = random.integers(20, 4000, count), random.integers(2, 300, count)
    prompts[[30, 31, 90, 200]] = LONG
    prompts[150] = IMPOSSIBLE
    return [SimRequest(float(t), int(p), int(n)) for t, p, n in zip(times, prompts, outputs, strict=True)]


def run(name: str, requests: list[SimRequest], policy: str = ""):
    system = make_system(name, SPEC)
    chosen = make_policy(policy or system.policy)
    degrees = layout_of(chosen, 8) or (system.degrees[0],) * (8 // system.degrees[0])
    return Simulator.of(system, degrees, LIMITS, chosen).run(requests)


@pytest.mark.parametrize("name", sorted(SYSTEMS.names()))
def test_every_request_ends_or_is_rejected_with_a_reason_and_twice_the_same(name):
    requests = mixed()
    first, second = run(name, requests), run(name, requests)
    for record, request in zip(first.records, requests, strict=True):
        if record.status == "rejected":
            assert request.prompt_tokens >= LONG, record.reason
            assert "tokens of KV cache" in record.reason
        else:
            assert record.status == "completed"
            assert record.output_tokens == request.output_tokens
            assert np.all(np.diff(record.token_times) > 0)
            assert record.token_times[0] > request.arrival_s
    assert first.records[150].status == "rejected"
    if name not in ("fixed",):
        assert first.records[30].status == "completed", "what it is for"
    assert first.end_s == second.end_s
    for one, other in zip(first.records, second.records, strict=True):
        np.testing.assert_array_equal(one.token_times, other.token_times)


@pytest.mark.parametrize("name", ["kunserve", "loongserve", "flying", "pipelive", "seesaw"])
def test_those_that_transform_do_and_the_record_says_what_it_took(name):
    result = run(name, mixed())
    assert result.transformations
    system = make_system(name, SPEC)
    for event in result.transformations:
        assert event.pause_s >= 0
        assert sum(event.before) == sum(event.after)
        assert {*event.before, *event.after} <= set(system.degrees)


def test_a_burst_that_fills_the_memory_makes_kunserve_drop_layers_and_go_back():
    """300 requests of 4,000 tokens on 8 x 72,000 tokens; no request is long."""
    requests = [SimRequest(0.0, 4000, 400) for _ in range(300)] + [SimRequest(500.0, 100, 10)]
    result = run("kunserve", requests)
    kinds = [len(event.after) > 1 for event in result.transformations]
    assert not kinds[0]
    assert kinds[-1]
    apart = run("fixed", requests, "static")
    waits = [max(r.first_scheduled_s for r in each.records[:300]) for each in (result, apart)]
    assert waits[0] < waits[1], "nobody waits for memory as long as without"


def test_loongserve_computes_a_long_prompt_on_all_devices_and_decodes_it_on_few():
    result = run("loongserve", [SimRequest(0.0, 60_000, 50), *(SimRequest(1.0 + i, 200, 20) for i in range(20))])
    assert result.transformations[0].after == (8,)
    assert max(result.transformations[1].after) < 8
    alone = run("loongserve", [SimRequest(0.0, 60_000, 50)], "static")
    assert result.records[0].token_times[0] < 0.3 * alone.records[0].token_times[0]


def test_flying_is_wide_when_calm_and_narrow_when_requests_queue():
    calm = run("flying", [SimRequest(2.0 * i, 500, 20) for i in range(5)])
    assert calm.transformations[0].after == (8,)
    crowd = [SimRequest(0.0, 500, 20)] + [SimRequest(20.0, 3000, 200) for _ in range(600)]
    assert any(len(event.after) == 8 for event in run("flying", crowd).transformations)


def test_what_is_under_way_is_computed_anew_where_a_system_does_not_keep_it():
    requests = [SimRequest(0.0, 3000, 400) for _ in range(8)] + [SimRequest(1.0, LONG, 10)]
    again, kept = (run(name, requests, "on-demand") for name in ("flying", "flying+keep=on"))
    assert again.transformations
    assert kept.transformations
    assert max(r.preemptions for r in again.records) > 0
    assert max(r.preemptions for r in kept.records) == 0
