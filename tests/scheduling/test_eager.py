"""``rr`` and ``llf``: whenever a long request arrives, instances merge."""

from scheduling.hosts import HOST, LONG, MIDDLE, SHORT, ask, views

from gyges.scheduling.routing import Reject, Send, Wait
from gyges.scheduling.specification import make_policy


def route(policy, length, instances):
    return policy.route(ask(length), instances, HOST, 0.0)


def test_a_long_request_merges_others_although_a_wide_instance_could_hold_it():
    for name in ("rr", "llf"):
        assert route(make_policy(name), LONG, views(4, 1, 1, 1, 1)).indices == (1, 2, 3, 4)
        assert route(make_policy(name), LONG, views(4, 1, 1)) == Send(0), "too few are left"
        assert route(make_policy(name), LONG, views(*[1] * 5, becoming=dict.fromkeys(range(4), (4,)))) == Wait()
        assert isinstance(route(make_policy(name), LONG + 1, views(4, 1)), Reject)


def test_llf_takes_the_least_work_per_device():
    policy = make_policy("llf")
    assert route(policy, SHORT, views(1, 2, 1, load=(5, 8, 5))) == Send(1)
    assert route(policy, MIDDLE, views(1, 1, 1, load=(5, 1, 2))).indices == (1, 2)


def test_rr_goes_round_by_devices_whatever_merges_meanwhile():
    policy = make_policy("rr")
    assert [route(policy, SHORT, views(1, 1, 1)).index for _ in range(4)] == [0, 1, 2, 0]
    assert route(policy, SHORT, views(1, 2, 1)) == Send(1)
    assert route(policy, SHORT, views(1, 2, 1)) == Send(2), "devices 1 and 2 are one instance"
    assert route(policy, MIDDLE, views(1, 1, 1, 1)).indices == (0, 1), "from the next device on"


def test_both_split_as_soon_as_no_long_request_is_left():
    for name in ("rr", "llf"):
        policy = make_policy(name)
        assert [w.index for w in policy.review(views(4, 2, longest=(50, 200)), HOST, 0.0)] == [0]


def test_one_request_makes_one_merge_however_often_it_is_asked_for():
    for name in ("rr", "llf"):
        policy = make_policy(name)
        assert route(policy, MIDDLE, views(*[1] * 6)).indices == (0, 1)
        merging = views(*[1] * 6, becoming={0: (2,), 1: (2,)})
        assert route(policy, MIDDLE, merging) == Wait()
        assert route(policy, MIDDLE, views(2, 1, 1, 1, 1)) == Send(0)
        assert route(policy, MIDDLE, views(2, 1, 1, 1, 1)).indices == (1, 2), "the next one"
