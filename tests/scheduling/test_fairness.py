"""Nobody starves, behind long requests, later ones or transformations; and the same calls give the same answers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scheduling.abstract_host import MAX_TOKENS, AbstractHost, Fate

from gyges.scheduling.specification import make_policy

TRANSFORMING = ["gyges", "gyges:paper", "on-demand", "rr", "llf", "pressure", "elastic+share=8", "by-load+dwell=5"]
GYGES = [
    "gyges",
    "gyges:paper",
    "gyges+cost=off",
    "gyges+reserve=off+hysteresis=off",
    "gyges+partial=off",
    "gyges+relief=off",
]
LONGEST = max(MAX_TOKENS.values())

# Bursts: (ticks since the one before, how many, prompt tokens, output tokens).
bursts = st.lists(
    st.tuples(
        st.integers(0, 12),
        st.integers(1, 6),
        st.sampled_from([3, 12, 30, 50, 90, 150, 210, 300]),
        st.integers(1, 12),
    ),
    min_size=1,
    max_size=14,
)


def trace_of(drawn: list[tuple[int, int, int, int]]) -> dict[int, list[tuple[int, int]]]:
    arrivals: dict[int, list[tuple[int, int]]] = {}
    tick = 0
    for gap, count, prompt, output in drawn:
        tick += gap
        arrivals.setdefault(tick, []).extend([(prompt, output)] * count)
    return arrivals


def run(policy: str, arrivals: dict[int, list[tuple[int, int]]], devices: int = 4, limit: int = 20_000) -> AbstractHost:
    host = AbstractHost(make_policy(policy), devices)
    host.run(arrivals, limit)
    return host


@settings(max_examples=60, deadline=None)
@given(bursts, st.sampled_from(TRANSFORMING), st.sampled_from([4, 8]))
def test_every_request_ends_and_only_what_no_degree_holds_is_rejected(drawn, policy, devices):
    for fate in run(policy, trace_of(drawn), devices).fates:
        if fate.length > LONGEST:
            assert fate.rejected
        else:
            assert fate.ended is not None, (policy, fate)


@settings(max_examples=80, deadline=None)
@given(bursts, st.sampled_from(GYGES), st.sampled_from([4, 8]))
def test_a_request_waits_for_no_transformation_but_those_before_it(drawn, policy, devices):
    """The bound of gyges.scheduling.gyges. Doubling without ``partial`` takes steps: each at most one fewer instance."""
    steps = devices - 1 if policy in ("gyges:paper", "gyges+partial=off") else 1
    for fate in run(policy, trace_of(drawn), devices).fates:
        own = steps - 1 if steps > 1 else 0
        assert fate.passed <= fate.under_way + fate.ahead * steps + own, (policy, fate)


@settings(max_examples=60, deadline=None)
@given(bursts, st.sampled_from(GYGES))
def test_a_request_ends_after_the_work_before_it_and_its_own(drawn, policy):
    """In steps: one token of somebody who came no later is computed in each, or a transformation is under way."""
    host = run(policy, trace_of(drawn))
    before = 0
    for fate in host.fates:
        if fate.rejected:
            continue
        before += fate.work * (1 + fate.preemptions)
        pauses = host.transformation_ticks * host.transformations
        assert fate.ended is not None
        assert fate.ended - fate.arrived <= before + pauses, (policy, fate)


@pytest.mark.parametrize("policy", GYGES)
def test_a_long_request_ends_while_others_never_stop_coming(policy):
    """The adversary sends a short request in every tick and one that makes two instances merge in every fifth, for good."""
    arrivals = {tick: [(6, 2)] + [(50, 2)] * (tick % 5 == 0) for tick in range(1500)}
    arrivals[40] = [*arrivals[40], (200, 10)]
    number = sum(len(arrivals[tick]) for tick in range(41)) - 1
    host = AbstractHost(make_policy(policy))
    host.run(arrivals, 1500)
    fate: Fate = host.fates[number]
    assert fate.length > 200
    assert fate.ended is not None, "starved"


@pytest.mark.parametrize("policy", GYGES)
def test_short_requests_end_while_long_ones_never_stop_coming(policy):
    arrivals = {tick: [(200, 4)] for tick in range(0, 1500, 4)}
    arrivals[100] = [*arrivals[100], (5, 3)]
    number = len([t for t in arrivals if t <= 100])
    host = AbstractHost(make_policy(policy), devices=8)
    host.run(arrivals, 3000)
    assert host.fates[number].work == 8
    assert host.fates[number].ended is not None, "starved"


@settings(max_examples=30, deadline=None)
@given(bursts, st.sampled_from(TRANSFORMING))
def test_the_same_trace_gives_the_same_decisions(drawn, policy):
    first, second = run(policy, trace_of(drawn)), run(policy, trace_of(drawn))
    assert first.decisions == second.decisions
    assert first.fates == second.fates
