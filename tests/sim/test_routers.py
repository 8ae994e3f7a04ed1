"""Routers: what each of them promises, on any cluster; failures as a person writes them."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gyges.errors import UserError
from gyges.scheduling.routing import Ask
from gyges.sim.cluster.failures import Failure, check_failures, parse_failure
from gyges.sim.cluster.routers import ROUTERS, HostLoad

NARROW, WIDE = 100, 500


@st.composite
def loads(draw):
    hosts = []
    for index in draw(st.lists(st.integers(0, 30), min_size=1, max_size=8, unique=True).map(sorted)):
        host = HostLoad(index, draw(st.integers(1, 8)), NARROW, WIDE)
        for length in draw(st.lists(st.integers(1, WIDE), max_size=6)):
            host.count(length, 1)
        hosts.append(host)
    return hosts


@settings(deadline=None)
@given(hosts=loads(), length=st.integers(1, WIDE))
def test_least_loaded_chooses_nobody_who_has_more_to_do_than_another(hosts, length):
    chosen = ROUTERS.get("least-loaded")()(Ask(length), hosts)
    assert all(chosen.tokens * host.devices <= host.tokens * chosen.devices for host in hosts)


@settings(deadline=None)
@given(hosts=loads(), rounds=st.integers(1, 5))
def test_round_robin_gives_every_living_host_as_many(hosts, rounds):
    choose = ROUTERS.get("round-robin")()
    counts = Counter(choose(Ask(1), hosts).index for _ in range(rounds * len(hosts)))
    assert counts == dict.fromkeys((host.index for host in hosts), rounds)


@settings(deadline=None)
@given(hosts=loads(), length=st.integers(NARROW + 1, WIDE))
def test_length_aware_keeps_long_requests_together_while_there_is_room(hosts, length):
    chosen = ROUTERS.get("length-aware")()(Ask(length), hosts)
    room = {host.index for host in hosts if host.long_requests and host.long_tokens + length <= WIDE}
    assert not room or chosen.index in room


@settings(deadline=None)
@given(hosts=loads(), length=st.integers(1, NARROW))
def test_length_aware_sends_nothing_short_to_a_host_with_long_ones_if_another_is_as_free(hosts, length):
    chosen = ROUTERS.get("length-aware")()(Ask(length), hosts)
    if chosen.long_requests and chosen.tokens:
        assert all(host.long_requests or host.per_device > chosen.per_device for host in hosts)


@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, WIDE), max_size=20))
def test_a_load_is_back_where_it_was_when_all_have_left(lengths):
    host = HostLoad(0, 2, NARROW, WIDE)
    for length in lengths:
        host.count(length, 1)
    assert host.per_device == sum(lengths) / 2
    for length in lengths:
        host.count(length, -1)
    assert host == HostLoad(0, 2, NARROW, WIDE)


@pytest.mark.parametrize(
    ("text", "failure"),
    [
        ("120s:host3", Failure(120.0, 3)),
        ("2m:host0.dev2", Failure(120.0, 0, 2)),
        ("500ms:host12:1.5s", Failure(0.5, 12, None, 2.0)),
        (" 60 : HOST0.DEV2 : 30s ", Failure(60.0, 0, 2, 90.0)),
    ],
)
def test_a_failure_is_read_as_it_is_written_and_written_so_that_it_can_be_read(text, failure):
    assert parse_failure(text) == failure
    assert parse_failure(str(failure)) == failure


@pytest.mark.parametrize("text", ["", "host3", "120s", "120s:dev3", "soon:host1", "1s:host1:0s", "-1s:host0"])
def test_what_cannot_be_read_says_how_it_is_written(text):
    with pytest.raises(UserError, match="write for example 120s:host3"):
        parse_failure(text)


def test_failures_of_what_there_is_not_or_is_down_already_are_refused():
    check_failures([Failure(1, 0, None, 2.0), Failure(2, 0, 1), Failure(2, 1)], 2, 2)
    for failures, said in (
        ([Failure(1, 2)], "the last of 2 hosts is host1"),
        ([Failure(1, 0, 2)], "the last of 2 devices of a host is dev1"),
        ([Failure(1, 0), Failure(2, 0, 1)], "it is down already, since 1s:host0"),
        ([Failure(1, 0, 1, 3.0), Failure(2, 0, 1)], "it is down already"),
    ):
        with pytest.raises(UserError, match=said):
            check_failures(failures, 2, 2)
