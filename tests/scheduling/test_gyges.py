"""The paper's rules, and for each refinement a case that comes out otherwise without it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from scheduling.hosts import HOST, LONG, MIDDLE, SHORT, ask, views

from gyges.scheduling.routing import InstanceView, Merge, Reject, Send, Split, Wait
from gyges.scheduling.specification import make_policy

PRICE = 0.1  # of any transformation (scheduling.hosts); one device does 100 tokens/s
SPLIT = (1, 1, 1, 1)


def paper():
    return make_policy("gyges:paper")


def only(*switches: str):
    """The paper's rules and these refinements."""
    return make_policy("gyges:paper" + "".join(f"+{switch}=on" for switch in switches))


def without(switch: str):
    return make_policy(f"gyges+{switch}=off")


def route(policy, length: int, instances: list[InstanceView], at: float = 0.0):
    return policy.route(ask(length, at, f"r{at}"), instances, HOST, at)


def splits(policy, instances: list[InstanceView], at: float = 0.0):
    return [(wish.index, wish.degrees) for wish in policy.review(instances, HOST, at)]


# -- the paper's rules (PAPER.md section 5) --------------------------------------------------------------------------------


def test_rule_1_the_least_loaded_instance_that_can_hold_it():
    busy = views(1, 1, 1, requests=(3, 1, 2))
    assert route(paper(), SHORT, busy) == Send(1)
    assert route(paper(), MIDDLE, views(1, 2, 2, requests=(0, 4, 2), longest=(0, 200, 200))) == Send(2)
    assert route(paper(), SHORT, views(1, 4, requests=(2, 4), longest=(9, 500))) == Send(1), (
        "a wide one too, per device"
    )


def test_rule_2_equal_ones_merge_doubling_until_it_fits():
    assert route(paper(), MIDDLE, views(1, 1, 1, 1, requests=(5, 1, 9, 2))).indices == (1, 3)
    assert route(paper(), LONG, views(1, 1, 1, 1)).indices == (0, 1, 2, 3)
    assert route(paper(), LONG, views(2, 2, 1, 1), 0.0).indices == (0, 1), "two TP2 rather than anything else"
    step = route(paper(), LONG, views(1, 1, 2, longest=(0, 0, 200)))
    assert step.indices == (0, 1), "a step on the way: afterwards there are two TP2"
    assert route(paper(), LONG, views(2, 2, longest=(0, 200))).indices == (0, 1)


def test_rule_3_long_ones_in_a_row_take_the_instance_that_is_wide_already():
    assert route(paper(), LONG, views(4, 1, 1, 1, 1, requests=(2, 0, 0, 0, 0), longest=(500, 0, 0, 0, 0))) == Send(0)
    assert route(paper(), LONG, views(4, 1, 1, 1, 1)) == Send(0), "one that drains is wide already"


def test_rule_4_one_that_drains_takes_no_short_ones_and_splits_when_half_of_its_cache_is_free():
    drained = views(4, 1, requests=(1, 9), longest=(50, 50), held=(301, 0))
    assert route(paper(), SHORT, drained) == Send(1)
    assert splits(paper(), drained) == []
    assert splits(paper(), views(4, 1, requests=(1, 9), longest=(50, 50), held=(300, 0))) == [(0, SPLIT)]
    assert splits(paper(), views(4, 1, longest=(101, 0))) == [], "its long request still runs"
    assert route(paper(), SHORT, views(4)) == Send(0), "there is no other"


def test_what_can_never_run_is_rejected_and_what_is_under_way_is_waited_for():
    for policy in (paper(), make_policy("gyges")):
        assert isinstance(route(policy, LONG + 1, views(4, 1)), Reject)
        decided = route(policy, LONG, views(1, 1, 1))
        assert isinstance(decided, Reject)
        assert "only 3 devices" in decided.reason
        merging = views(*[1] * 8, becoming=dict.fromkeys(range(4), (4,)))
        assert route(policy, LONG, merging) == Wait()
        assert route(policy, SHORT, merging) == Send(0)


def test_a_long_request_does_not_wait_for_a_transformation_that_is_of_no_use_to_it():
    for policy in (paper(), make_policy("gyges")):
        assert route(policy, LONG, views(2, 1, 1, 1, 1, becoming={0: (1, 1)})).indices == (1, 2, 3, 4)


# -- refinements ---------------------------------------------------------------------------------------------------------------


def test_remaining_counts_the_work_that_is_left_not_requests():
    instances = views(1, 1, load=(90, 10), requests=(1, 3))
    assert route(only("remaining"), SHORT, instances) == Send(1)
    assert route(paper(), SHORT, instances) == Send(0)


def test_cost_merges_others_where_the_line_of_the_wide_one_is_longer_than_that_takes():
    # 4 devices do 400 tokens/s. The line: 200 tokens are 0.5 s, 40 are 0.1 s; merging idle ones and splitting again: 0.2 s.
    def wide(load: int) -> list[InstanceView]:
        return views(4, 1, 1, 1, 1, load=(load, 0, 0, 0, 0), longest=(500, 0, 0, 0, 0))

    assert route(only("cost"), LONG, wide(200)).indices == (1, 2, 3, 4)
    assert route(only("cost"), LONG, wide(40)) == Send(0)
    assert route(paper(), LONG, wide(200)) == Send(0)
    busy = views(4, 1, 1, 1, 1, load=(200, 50, 50, 50, 50), longest=(500, 9, 9, 9, 9))
    assert route(only("cost"), LONG, busy) == Send(0), "what is joined would have to be worked off too"


def test_cost_splits_only_where_somebody_gains():
    # One device does 100 tokens/s, a split takes 0.1 s: 10 tokens of work on the idlest narrow instance are the limit.
    idle, busy = views(4, 1, 1, load=(0, 90, 5)), views(4, 1, 1, load=(0, 90, 15))
    assert splits(only("cost"), idle) == []
    assert splits(only("cost"), busy) == [(0, SPLIT)]
    assert splits(paper(), idle) == [(0, SPLIT)]
    alone = views(4, load=(100,), longest=(50,))
    assert splits(only("cost"), alone) == [(0, SPLIT)], "nobody else is there: its own work gains"


def test_cost_lets_a_drained_instance_take_a_short_request_where_all_others_are_busier():
    policy = make_policy("gyges:paper+cost=on+remaining=on")
    assert route(policy, SHORT, views(4, 1, 1, load=(0, 30, 20))) == Send(0)
    assert route(policy, SHORT, views(4, 1, 1, load=(0, 30, 0))) == Send(2), "one is idle"
    assert route(policy, SHORT, views(4, 1, 1, load=(90, 30, 20))) == Send(2), "22.5 a device"
    assert route(only("remaining"), SHORT, views(4, 1, 1, load=(0, 30, 20))) == Send(2)


def test_spare_leaves_somebody_for_short_requests_while_those_are_served_well():
    def host(*longest: int) -> list[InstanceView]:
        return views(4, *[1] * len(longest), load=(200, *[0] * len(longest)), longest=(500, *longest))

    policy = make_policy("gyges:paper+cost=on+spare=on")
    four = host(9, 0, 0, 0)
    assert route(policy, LONG, four) == Send(0), "all that would be left has a long prompt to compute"
    assert route(only("cost"), LONG, four).indices == (1, 2, 3, 4)
    assert route(policy, LONG, host(0, 0, 0, 0)).indices == (1, 2, 3, 4), "no short request is there"
    assert len(route(policy, LONG, host(9, 0, 0, 0, 0)).indices) == 4, "the fifth is left"
    crowded = [*four[:4], replace(four[4], waiting=1)]
    assert route(policy, LONG, crowded).indices == (1, 2, 3, 4), "who waits there gains room"
    nobody_wide = views(1, 1, 1, 1)
    assert route(policy, LONG, nobody_wide).indices == (0, 1, 2, 3), "it fits nowhere else"


def test_room_splits_where_the_parts_have_half_their_cache_free_for_what_is_there():
    # TP4 holds 600 tokens, four TP1 hold 400 together: 200 may be held, where the paper's rule allows 300.
    def drained(held: int) -> list[InstanceView]:
        return views(4, 1, longest=(90, 0), held=(held, 0))

    assert splits(only("room"), drained(200)) == [(0, SPLIT)]
    assert splits(only("room"), drained(201)) == []
    assert splits(paper(), drained(201)) == splits(paper(), drained(300)) == [(0, SPLIT)]
    wide, narrow = drained(150)
    assert splits(only("room"), [replace(wide, waiting=1, waiting_tokens=51), narrow]) == [], "they need room too"


def crowded(*waiting: int, tokens: int = 20) -> list[InstanceView]:
    """TP1 instances that are full, each with so many requests that wait for KV blocks beside three that run."""
    full = views(
        *[1] * len(waiting), requests=[3] * len(waiting), longest=[50] * len(waiting), held=[95] * len(waiting)
    )
    return [replace(v, waiting=n, waiting_tokens=n * tokens) for v, n in zip(full, waiting, strict=True)]


def merges(policy, instances: list[InstanceView], at: float):
    return [wish.indices for wish in policy.review(instances, HOST, at)]


def test_relief_merges_once_those_without_room_have_waited_for_what_it_takes_from_all():
    # Two of four, TP2 holds 250 of which they would fill 2 x (95 + 20) = 230, TP4 600 of which four would fill 460: more than
    # half of either, so all four. Two transformations take 2 x 0.1 s from each of 4 x (3 + 1) requests: 3.2 request-seconds.
    policy = only("relief")
    assert merges(policy, crowded(1, 1, 1, 1), 10.0) == [], "who has just begun to wait has waited for nothing"
    assert merges(policy, crowded(1, 1, 1, 1), 10.7) == []
    assert merges(policy, crowded(1, 1, 1, 1), 10.81) == [(0, 1, 2, 3)]
    assert merges(policy, crowded(1, 1, 1, 1), 10.9) == [], "from then on anew"
    assert merges(paper(), crowded(1, 1, 1, 1), 0.0) == merges(paper(), crowded(1, 1, 1, 1), 99.0) == []


def test_relief_forgets_what_was_waited_once_nobody_does():
    policy = only("relief")
    assert merges(policy, crowded(1, 1, 1, 1), 0.0) == []
    assert merges(policy, crowded(0, 0, 0, 0), 0.7) == []
    assert merges(policy, crowded(1, 1, 1, 1), 0.8) == []
    assert merges(policy, crowded(1, 1, 1, 1), 1.5) == [], "2.8 request-seconds since then"


def test_relief_takes_the_lowest_degree_that_gives_room_enough_and_counts_only_who_lacks_blocks():
    policy = only("relief")
    little = [
        replace(v, held_tokens=20, free_tokens=80, waiting_tokens=81 if v.waiting else 0) for v in crowded(1, 0, 0, 0)
    ]
    assert merges(policy, little, 0.0) == []
    assert merges(policy, little, 9.0) == [(0, 1)], "2 x 20 + 81 is less than half of 250"
    last = [replace(v, held_tokens=20 + i) for i, v in enumerate(reversed(little))]
    policy = only("relief", "choice")
    assert merges(policy, last, 0.0) == []
    assert merges(policy, last, 9.0) == [(0, 3)], "the one that lacks it, though it holds most"
    fits = [replace(v, waiting_tokens=80 if v.waiting else 0) for v in little]
    assert merges(only("relief"), fits, 0.0) == []
    policy = only("relief")
    assert merges(policy, fits, 0.0) == merges(policy, fits, 99.0) == [], "there are blocks for it"


def test_hysteresis_keeps_a_drained_instance_for_a_while_and_asks_to_be_woken():
    policy = make_policy("gyges:paper+hysteresis=on+dwell=30")
    instances = views(4, 1)
    assert splits(policy, instances, 10.0) == []
    assert policy.wake_s == pytest.approx(10.0 + 30 * PRICE)
    assert splits(policy, instances, policy.wake_s - 1e-6) == []
    assert splits(policy, instances, policy.wake_s) == [(0, SPLIT)]
    assert splits(paper(), instances, 10.0) == [(0, SPLIT)]


def test_hysteresis_begins_anew_when_a_long_request_has_come_back():
    policy = make_policy("gyges:paper+hysteresis=on+dwell=30")
    assert splits(policy, views(4, 1), 0.0) == []
    assert splits(policy, views(4, 1, longest=(500, 0)), 2.0) == []
    assert policy.wake_s is None
    assert splits(policy, views(4, 1), 2.9) == []
    assert policy.wake_s == pytest.approx(2.9 + 30 * PRICE)


def test_reserve_keeps_one_wide_instance_until_the_next_long_request_is_overdue():
    policy, instances = only("reserve"), views(4, 4, 1)
    for at in (0.0, 5.0, 15.0):  # gaps of 5 and 10 s: their running mean is 6.5 s
        assert route(policy, LONG, views(4, 1), at) == Send(0)
    assert splits(policy, instances, 16.0) == [(1, SPLIT)], "one is enough"
    assert policy.wake_s == pytest.approx(15 + 2 * 6.5)
    assert splits(policy, views(4, 1), policy.wake_s) == [(0, SPLIT)]
    assert splits(paper(), instances, 16.0) == [(0, SPLIT), (1, SPLIT)]


def test_the_reserve_is_given_up_where_all_others_have_much_to_do():
    policy = make_policy("gyges:paper+reserve=on+patience=5")
    for at in (0.0, 5.0):
        route(policy, LONG, views(4, 1), at)
    assert splits(policy, views(4, 1, 1, load=(0, 200, 49)), 6.0) == [], "0.49 s, below 5 x 0.1 s"
    assert splits(policy, views(4, 1, 1, load=(0, 200, 51)), 6.0) == [(0, SPLIT)]


def test_a_long_request_that_is_asked_for_again_is_no_second_one():
    policy = only("reserve")
    for at in (0.0, 5.0):
        for _ in range(3):
            route(policy, LONG, views(4, 1), at)
    splits(policy, views(4, 1), 6.0)
    assert policy.wake_s == pytest.approx(5 + 2 * 5)


def test_choice_merges_those_with_the_least_to_move():
    instances = views(1, 1, 1, 1, requests=(0, 0, 3, 3), held=(80, 80, 10, 10))
    assert route(only("choice"), MIDDLE, instances).indices == (2, 3)
    assert route(paper(), MIDDLE, instances).indices == (0, 1)


def test_partial_merges_unequal_ones_and_splits_in_part():
    mixed = views(2, 1, 1, longest=(200, 0, 0))
    assert route(only("partial"), LONG, mixed).indices == (0, 1, 2)
    assert route(paper(), LONG, mixed).indices == (1, 2), "two TP2 first"
    middle = views(4, 1, longest=(200, 0), held=(200, 0))
    assert splits(only("partial"), middle) == [(0, (2, 1, 1))]
    assert splits(paper(), middle) == []
    assert splits(only("partial"), views(4, 1, longest=(251, 0))) == []


@pytest.mark.parametrize("switch", ["cost", "hysteresis", "reserve", "partial"])
def test_the_full_policy_differs_from_itself_without_each_refinement_of_transformations(switch):
    cases = {
        "cost": (views(4, 1, load=(0, 0)), 1e6, [], [(0, SPLIT)]),
        "hysteresis": (views(4, 1, load=(0, 90)), 100.0, [], [(0, SPLIT)]),
        "reserve": (views(4, 1, load=(0, 90)), 9.0, [], [(0, SPLIT)]),
        "partial": (views(4, 1, load=(0, 90), longest=(200, 0)), 100.0, [(0, (2, 1, 1))], []),
    }
    instances, at, with_it, without_it = cases[switch]
    for policy, expected in ((make_policy("gyges"), with_it), (without(switch), without_it)):
        for arrival in (0.0, 5.0):
            route(policy, LONG, views(4, 1), arrival)
        if switch != "hysteresis":
            policy.review(instances, HOST, at - 3.0)
        assert splits(policy, instances, at) == expected, switch


def test_it_never_asks_to_be_woken_in_the_past_and_forgets_what_is_gone():
    policy = make_policy("gyges")
    policy.review(views(4, 1), HOST, 50.0)
    assert policy.wake_s > 50.0
    assert policy.review(views(1, 1, 1, 1, 1), HOST, 51.0) == []
    assert policy.wake_s is None


def test_merge_and_split_name_their_cause():
    merge = route(make_policy("gyges"), LONG, views(1, 1, 1, 1))
    assert isinstance(merge, Merge)
    assert "600 tokens" in merge.cause
    (split,) = paper().review(views(4, 1), HOST, 0.0)
    assert isinstance(split, Split)
    assert split.cause


def test_whoever_waits_holds_back_merges_for_later_ones_and_splits():
    policy = make_policy("gyges")
    ahead = replace(HOST, pending=1, ahead=1)
    assert policy.route(ask(LONG), views(1, 1, 1, 1), ahead, 0.0) == Wait()
    assert policy.route(ask(LONG), views(1, 1, 1, 1), replace(HOST, pending=1), 0.0).indices == (0, 1, 2, 3)
    long_line = views(4, 1, 1, 1, 1, load=(900, 0, 0, 0, 0), longest=(500, 0, 0, 0, 0))
    assert policy.route(ask(LONG), long_line, ahead, 0.0) == Send(0), "it may wait inside"
    assert policy.route(ask(SHORT), views(1, 1), ahead, 0.0) == Send(0), "who needs no merge is not held back"
    busy = views(4, 1, load=(0, 90))
    for host, expected in ((replace(HOST, pending=1), []), (HOST, [0])):
        assert [w.index for w in paper().review(busy, host, 0.0)] == expected
