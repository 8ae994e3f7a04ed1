"""The policy that merges for what fits nowhere and splits afterwards: pure decisions."""

from hypothesis import given
from hypothesis import strategies as st
from scheduling.hosts import HOST, ask, views

from gyges.scheduling.on_demand import OnDemand
from gyges.scheduling.routing import POLICIES, HostView, InstanceView, Merge, Reject, Send, Split, Wait


def route(length: int, instances: list[InstanceView]):
    return OnDemand().route(ask(length), instances, HOST, 0.0)


def review(instances: list[InstanceView], host: HostView = HOST):
    return OnDemand().review(instances, host, 0.0)


def test_it_is_registered_and_says_that_it_transforms():
    assert POLICIES.get("on-demand") is OnDemand
    assert OnDemand.transforms
    assert not POLICIES.get("static").transforms


def test_a_short_request_goes_to_the_least_loaded_of_the_narrowest_that_hold_it():
    assert route(100, views(1, 2, 1, load=(30, 0, 20))) == Send(2)
    assert route(101, views(1, 2, 1, load=(0, 90, 0))) == Send(1)
    assert route(100, views(4)) == Send(0)


def test_what_fits_nowhere_merges_as_few_of_the_least_loaded_as_it_takes():
    decided = route(101, views(1, 1, 1, 1, load=(5, 1, 9, 2)))
    assert isinstance(decided, Merge)
    assert decided.indices == (1, 3)
    assert "101 tokens" in decided.cause
    assert route(251, views(1, 1, 1, 1)).indices == (0, 1, 2, 3)
    assert route(251, views(1, 2, 1)).indices == (0, 1, 2), "a wide instance is part of a wider one"


def test_degrees_that_only_some_choice_of_instances_adds_up_to_are_found():
    assert route(251, views(1, 2, 2)).indices == (1, 2), "narrowest first would take 1 and 2 and miss 4"


def test_no_second_merge_for_a_request_whose_merge_is_under_way():
    assert route(101, views(1, 1, 1, 1, becoming={0: (2,), 1: (2,)})) == Wait()
    assert route(100, views(1, 1, 1, 1, becoming={0: (2,), 1: (2,)})) == Send(0), "who is not concerned goes on"
    assert route(101, views(2, 1, 1, becoming={0: (2,)})) == Send(0), "a merge that has begun takes requests"


def test_a_transformation_that_will_not_hold_it_is_not_waited_for():
    assert route(251, views(1, 1, 1, 1, 1, 1, becoming={0: (2,), 1: (2,)})).indices == (2, 3, 4, 5)
    assert route(251, views(2, 1, 1, 1, 1, becoming={0: (1, 1)})).indices == (1, 2, 3, 4)
    assert route(251, views(1, 1, 1, 1, becoming={0: (2,), 1: (2,)})) == Wait(), "it has devices that are needed"


def test_what_can_never_run_is_rejected_and_not_left_waiting():
    for instances in (views(1, 1, 1, 1), views(4), views(2, 1, 1, becoming={0: (2,)})):
        decided = route(601, instances)
        assert isinstance(decided, Reject)
        assert "needs 601 tokens" in decided.reason
    decided = route(251, views(1, 1, 1))
    assert isinstance(decided, Reject), "a worker has died: TP4 cannot come about any more"
    assert "TP4 would hold 600" in decided.reason
    assert "3 devices" in decided.reason


def test_a_wide_instance_splits_as_soon_as_nobody_needs_its_room():
    assert review(views(4, longest=(101,))) == []
    (wish,) = review(views(4, longest=(100,)))
    assert isinstance(wish, Split)
    assert (wish.index, wish.degrees) == (0, (1, 1, 1, 1))
    assert review(views(1, 1)) == []
    assert [w.index for w in review(views(2, 1, 2, becoming={0: (1, 1)}))] == [2]


def test_a_host_whose_model_needs_tp2_splits_to_tp2():
    host = HostView({2: 250, 4: 600})
    (wish,) = review(views(4), host)
    assert wish.degrees == (2, 2)


@given(
    st.lists(st.sampled_from([1, 2, 4]), min_size=1, max_size=8),
    st.integers(1, 700),
    st.data(),
)
def test_every_decision_can_be_carried_out(degrees, length, data):
    busy = data.draw(st.sets(st.integers(0, len(degrees) - 1)))
    instances = views(*degrees, becoming=dict.fromkeys(busy, (1,)))
    decided = route(length, instances)
    if isinstance(decided, Send):
        assert instances[decided.index].max_tokens >= length
    elif isinstance(decided, Merge):
        assert len(decided.indices) > 1
        assert len(set(decided.indices)) == len(decided.indices)
        degree = sum(instances[i].degree for i in decided.indices)
        assert HOST.max_tokens[degree] >= length
        assert not any(instances[i].transforming for i in decided.indices)
    elif isinstance(decided, Reject):
        reachable = [tokens for degree, tokens in HOST.max_tokens.items() if degree <= sum(degrees)]
        assert length > max(reachable)
    else:
        assert busy or sum(degrees) > 4, "it waits for something"
