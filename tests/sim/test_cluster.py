"""Clusters: one host behind a router is that host; whatever fails, no request vanishes and no token comes from what is down."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gyges.scheduling.batching import BatchLimits
from gyges.scheduling.specification import make_policy
from gyges.sim.cluster.cluster import Cluster
from gyges.sim.cluster.failures import Failure
from gyges.sim.cluster.host import ClusterHost
from gyges.sim.cluster.routers import ROUTERS, make_router
from gyges.sim.simulator import SimRequest, Simulator

from .flat import Flat, Restless
from .test_simulator import CHANGING, COSTS, POLICIES, STANDING, cases

LIMITS = BatchLimits(64, 8, 4)


def cluster(system, degrees, limits, policy, count, router="round-robin", failures=()):
    hosts = [ClusterHost(system, degrees, limits, policy(), index) for index in range(count)]
    return Simulator(hosts, Cluster(hosts, make_router(router), failures))


def small(count=2, degrees=(1, 1), failures=(), router="round-robin", policy="static", **more):
    system = Flat({d: COSTS[d] for d in (1, 2)}, {1: 64, 2: 160}, block_size=4, **more)
    make = policy if callable(policy) else lambda: make_policy(policy)
    return cluster(system, degrees, LIMITS, make, count, router, failures)


def times_of(result):
    return [np.asarray(record.token_times).tolist() for record in result.records]


@settings(max_examples=60, deadline=None)
@given(case=st.one_of(cases(), cases(CHANGING)), router=st.sampled_from(ROUTERS.names()))
def test_one_host_behind_a_router_serves_as_it_does_alone(case, router):
    system, degrees, limits, requests, policy = case
    alone = Simulator.of(system, degrees, limits, POLICIES[policy]()).run(requests)
    behind = cluster(system, degrees, limits, POLICIES[policy], 1, router).run(requests)
    assert times_of(behind) == times_of(alone)
    assert [record.status for record in behind.records] == [record.status for record in alone.records]
    assert len(behind.transformations) == len(alone.transformations)


@st.composite
def failing(draw, hosts, devices):
    """Failures that do not overlap: one for each host at most, of the whole of it or of one device."""
    failures = []
    for host in draw(st.sets(st.integers(0, hosts - 1))):
        at = draw(st.floats(0.0, 3.0))
        device = draw(st.one_of(st.none(), st.integers(0, devices - 1)))
        back = draw(st.one_of(st.none(), st.floats(0.01, 2.0)))
        failures.append(Failure(at, host, device, back and at + back))
    return failures


@settings(max_examples=250, deadline=None)
@given(data=st.data(), case=st.one_of(cases(), cases(CHANGING)), router=st.sampled_from(ROUTERS.names()))
def test_whatever_fails_nothing_vanishes_and_nothing_is_left_behind(data, case, router):
    system, degrees, limits, requests, policy = case
    count = data.draw(st.integers(1, 3))
    failures = data.draw(failing(count, sum(degrees)))
    simulator = cluster(system, degrees, limits, POLICIES[policy], count, router, failures)
    result = simulator.run(requests)
    assert len(result.records) == len(requests)
    for record, request in zip(result.records, requests, strict=True):
        times = np.asarray(record.token_times)
        assert (np.diff(times) > 0).all()
        assert len(times) == record.output_tokens <= request.output_tokens
        assert not len(times) or times[0] > request.arrival_s
        if record.status == "completed":
            assert len(times) == request.output_tokens
        else:
            assert record.status in ("failed", "rejected")
            assert record.reason
    if all(record.status != "failed" for record in result.records):
        for host in simulator.hosts:
            assert (host.load.requests, host.load.tokens, host.load.long_requests, host.load.long_tokens) == (
                0,
                0,
                0,
                0,
            )
            assert not host.unfinished
            for hosted in host.instances:
                assert hosted.sim.free_blocks == hosted.sim.total_blocks
                assert hosted.sim.remaining_tokens == 0
    for failure in failures:
        for hosted in simulator.hosts[failure.host].ever:
            hit = failure.device is None or simulator.hosts[failure.host].devices[failure.device] in hosted.devices
            ends = np.concatenate([*hosted.sim.ends, np.empty(0)])
            if hit and len(ends) and ends[0] <= failure.at_s:  # it was there before
                assert ends[-1] <= failure.at_s


REQUESTS = [SimRequest(0.06 * i, 8, 20) for i in range(12)]


def test_before_a_failure_everything_is_as_without_it():
    whole = small().run(REQUESTS)
    broken = small(failures=[Failure(0.5, 1)]).run(REQUESTS)
    for a, b in zip(times_of(whole), times_of(broken), strict=True):
        assert [t for t in a if t <= 0.5] == [t for t in b if t <= 0.5]
    assert {record.status for record in broken.records} == {"completed"}
    assert times_of(whole) != times_of(broken)
    moved = [r for r in broken.records if r.preemptions]
    assert moved
    assert all(r.instance.startswith("h0.") for r in moved)


def test_a_request_that_is_computed_anew_keeps_its_tokens_and_stands_still_longest_where_it_broke():
    result = small(failures=[Failure(0.5, 1)]).run(REQUESTS)
    begun = [r for r in result.records if r.preemptions and r.token_times[0] <= 0.5]
    assert begun
    for record in begun:
        longest = int(np.argmax(np.diff(record.token_times)))
        assert record.token_times[longest] <= 0.5 < record.token_times[longest + 1]


def test_a_host_that_is_back_is_what_it_was_and_serves():
    simulator = small(degrees=(2,), failures=[Failure(0.3, 1, None, 0.6)])
    result = simulator.run(REQUESTS)
    assert {record.status for record in result.records} == {"completed"}
    served = [r.instance for r in result.records if r.scheduled_s > 0.6]
    assert any(name.startswith("h1.") for name in served)
    assert [hosted.degree for hosted in simulator.hosts[1].instances] == [2]


def test_while_no_host_is_up_requests_wait_and_where_none_comes_back_they_fail():
    down = [Failure(0.25, 0, None, 5.0), Failure(0.25, 1)]
    result = small(failures=down).run(REQUESTS)
    assert {record.status for record in result.records} == {"completed"}
    assert all(not 0.25 < time < 5.0 for times in times_of(result) for time in times)
    result = small(failures=[Failure(0.25, 0), Failure(0.25, 1)]).run(REQUESTS)
    lost = [record for record in result.records if record.status != "completed"]
    assert lost
    assert {(record.status, record.reason) for record in lost} == {("failed", "no host was up")}


def test_a_device_that_is_back_alone_waits_for_as_many_as_an_instance_needs():
    system = Flat({2: COSTS[2]}, {2: 160}, block_size=4)
    one_by_one = [Failure(0.25, 0, 0, 1.0), Failure(0.25, 0, 1, 2.0)]
    simulator = cluster(system, (2,), LIMITS, lambda: make_policy("static"), 1, failures=one_by_one)
    result = simulator.run(REQUESTS)
    assert {record.status for record in result.records} == {"completed"}
    assert all(not 0.25 < time < 2.0 for times in times_of(result) for time in times)


def test_what_is_left_of_an_instance_serves_at_the_lowest_degree_once_it_has_its_weights():
    class Reading(Flat):
        def restart(self, before, after):
            switch = super().restart(before, after)
            return type(switch)(pause_s=3.0, parts={"weights": 2.0}, keeps_kv=False)

    system = Reading({d: COSTS[d] for d in (1, 2)}, {1: 64, 2: 160}, block_size=4)
    simulator = cluster(system, (2,), LIMITS, lambda: make_policy("static"), 1, failures=[Failure(0.3, 0, 1)])
    result = simulator.run(REQUESTS)
    assert {record.status for record in result.records} == {"completed"}
    assert [(hosted.degree, hosted.devices) for hosted in simulator.hosts[0].instances] == [(1, (0,))]
    assert all(not 0.3 < time < 2.3 for times in times_of(result) for time in times)


def test_a_request_that_is_too_long_for_what_is_left_goes_to_another_host():
    requests = [SimRequest(0.0, 100, 20), SimRequest(0.0, 100, 20)]
    result = small(degrees=(2,), failures=[Failure(0.05, 0, 0)]).run(requests)
    assert [record.status for record in result.records] == ["completed"] * 2
    assert {record.instance for record in result.records} == {"h1.i0"}
    late = small(degrees=(2,), failures=[Failure(0.05, 0, 0)]).run([SimRequest(1.0, 100, 20)] * 2)
    assert {record.instance for record in late.records} == {"h1.i0"}


def test_a_transformation_of_what_fails_is_called_off_and_the_timeline_says_so():
    simulator = small(
        count=1, degrees=(1, 1), policy=lambda: Restless(every=1), pause_s=0.5, failures=[Failure(0.4, 0, 0)]
    )
    result = simulator.run(REQUESTS)
    broken = [event for event in result.transformations if event.error]
    assert [event.error for event in broken] == ["0.4s:host0.dev0 failed"]
    assert {record.status for record in result.records} == {"completed"}


@pytest.mark.parametrize("policy", sorted(STANDING))
def test_hosts_share_nothing(policy):
    """Round robin over two hosts is two hosts with every second request each."""
    system = Flat({1: COSTS[1]}, {1: 64}, block_size=4)
    both = cluster(system, (1,), LIMITS, POLICIES[policy], 2).run(REQUESTS)
    for start in (0, 1):
        alone = Simulator.of(system, (1,), LIMITS, POLICIES[policy]()).run(REQUESTS[start::2])
        assert times_of(alone) == times_of(both)[start::2]
