"""The policy that merges for what fits nowhere and splits afterwards: pure decisions."""

from hypothesis import given
from hypothesis import strategies as st

from gyges.scheduling.on_demand import OnDemand
from gyges.scheduling.routing import POLICIES, HostView, InstanceView, Merge, Reject, Send, Split, Wait

HOST = HostView({1: 100, 2: 250, 4: 600})


def views(*degrees: int, load=(), longest=(), transforming=()) -> list[InstanceView]:
    made, device = [], 0
    for index, degree in enumerate(degrees):
        made.append(
            InstanceView(
                name=f"i{index}",
                degree=degree,
                devices=tuple(range(device, device + degree)),
                max_tokens=HOST.max_tokens[degree],
                free_tokens=50,
                running=1,
                waiting=0,
                remaining_tokens=load[index] if load else 0,
                longest_tokens=longest[index] if longest else 0,
                transforming=index in transforming,
            )
        )
        device += degree
    return made


def route(length: int, instances: list[InstanceView]):
    return OnDemand().route(length, instances, HOST)


def test_it_is_registered_and_says_that_it_transforms():
    assert POLICIES.get("on-demand") is OnDemand
    assert OnDemand.transforms
    assert not any(POLICIES.get(name).transforms for name in ("llf", "rr"))


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
    assert route(101, views(1, 1, 1, 1, transforming=(0, 1))) == Wait()
    assert route(100, views(1, 1, 1, 1, transforming=(0, 1))) == Send(0), "who is not concerned goes on"
    assert route(101, views(2, 1, 1, transforming=(0,))) == Send(0), "a merge that has begun takes requests"


def test_what_can_never_run_is_rejected_and_not_left_waiting():
    for instances in (views(1, 1, 1, 1), views(4), views(2, 1, 1, transforming=(0,))):
        decided = route(601, instances)
        assert isinstance(decided, Reject)
        assert "needs 601 tokens" in decided.reason
    decided = route(251, views(1, 1, 1))
    assert isinstance(decided, Reject), "a worker has died: TP4 cannot come about any more"
    assert "TP4 would hold 600" in decided.reason
    assert "3 devices" in decided.reason


def test_a_wide_instance_splits_as_soon_as_nobody_needs_its_room():
    review = OnDemand().review
    assert review(views(4, longest=(101,)), HOST) == []
    (wish,) = review(views(4, longest=(100,)), HOST)
    assert isinstance(wish, Split)
    assert (wish.index, wish.degrees) == (0, (1, 1, 1, 1))
    assert review(views(1, 1), HOST) == []
    assert [w.index for w in review(views(2, 1, 2, longest=(0, 0, 0), transforming=(0,)), HOST)] == [2]


def test_a_host_whose_model_needs_tp2_splits_to_tp2():
    host = HostView({2: 250, 4: 600})
    (wish,) = OnDemand().review(views(4), host)
    assert wish.degrees == (2, 2)


@given(
    st.lists(st.sampled_from([1, 2, 4]), min_size=1, max_size=8),
    st.integers(1, 700),
    st.data(),
)
def test_every_decision_can_be_carried_out(degrees, length, data):
    busy = data.draw(st.sets(st.integers(0, len(degrees) - 1)))
    instances = views(*degrees, transforming=busy)
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
