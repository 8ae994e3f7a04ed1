"""What operators do today, and what knowing the trace would be worth."""

import pytest
from scheduling.hosts import HOST, LONG, MIDDLE, SHORT, ask, views

from gyges.errors import UserError
from gyges.scheduling.routing import Merge, Reject, Restart, Send, Split
from gyges.scheduling.specification import make_policy

PRICE = 0.1


def route(policy, length, instances, at=0.0):
    return policy.route(ask(length, at), instances, HOST, at)


def test_a_restart_is_asked_for_by_what_fits_nowhere_at_the_lowest_degree_that_holds_it():
    policy = make_policy("restart")
    assert route(policy, SHORT, views(1, 1, load=(5, 2))) == Send(1)
    decided = route(policy, MIDDLE, views(*[1] * 8))
    assert isinstance(decided, Restart)
    assert decided.degrees == (2, 2, 2, 2)
    assert route(policy, LONG, views(2, 2)).degrees == (4,)
    assert isinstance(route(policy, LONG + 1, views(1, 1, 1, 1)), Reject)
    assert isinstance(route(policy, LONG, views(1, 1)), Reject), "two devices are no TP4"


def test_it_goes_back_when_nobody_has_needed_more_for_a_while():
    policy = make_policy("restart+hold=10")
    assert route(policy, LONG, views(4), 3.0) == Send(0)
    assert policy.review(views(4, longest=(500,)), HOST, 5.0) == []
    assert policy.review(views(4), HOST, 8.0) == []
    assert policy.wake_s == 15.0
    (wish,) = policy.review(views(4), HOST, 15.0)
    assert wish.degrees == (1, 1, 1, 1)
    assert policy.review(views(1, 1, 1, 1), HOST, 99.0) == []
    with pytest.raises(UserError, match="0 or more seconds"):
        make_policy("restart+hold=-1")


def oracle(*arrivals, **options):
    policy = make_policy("oracle" + "".join(f"+{name}={value}" for name, value in options.items()))
    policy.foresee([ask(length, at, f"r{at}") for at, length in arrivals])
    return policy


def test_the_oracle_has_merged_by_the_time_a_long_request_arrives():
    policy = oracle((5.0, SHORT), (20.0, LONG), lead=3)
    instances = views(1, 1, 1, 1, load=(1, 1, 1, 1))
    assert policy.review(instances, HOST, 1.0) == []
    assert policy.wake_s == pytest.approx(20 - 3 * PRICE)
    (merge,) = policy.review(instances, HOST, policy.wake_s)
    assert isinstance(merge, Merge)
    assert merge.indices == (0, 1, 2, 3)
    assert policy.review(views(4), HOST, 19.9) == [], "it is there"


def test_the_oracle_keeps_a_drained_instance_only_for_one_that_comes_soon():
    busy = views(4, 1, load=(0, 90))
    assert oracle((3.0, LONG), gap=20).review(busy, HOST, 1.5) == [], "in 1.5 s: within 20 prices"
    for policy in (oracle((3.0, LONG), gap=20), oracle((9.0, SHORT)), oracle((9.0, LONG + 1)), oracle()):
        (wish,) = policy.review(busy, HOST, 0.5)
        assert isinstance(wish, Split)


def test_the_oracle_without_a_trace_routes_like_gyges():
    assert route(make_policy("oracle"), LONG, views(1, 1, 1, 1)).indices == (0, 1, 2, 3)
