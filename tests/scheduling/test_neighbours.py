"""Rules of other systems: merge for memory, for a prompt, for latency."""

from dataclasses import replace

import pytest
from scheduling.hosts import HOST, LONG, MIDDLE, SHORT, ask, views

from gyges.errors import UserError
from gyges.scheduling.pressure import short_of_memory
from gyges.scheduling.routing import Merge, Reject, Send, Split, Wait
from gyges.scheduling.specification import make_policy


def queueing(view, tokens=60, free=10):
    """A request of ``tokens`` waits, and ``free`` tokens are free."""
    return replace(view, waiting=1, waiting_tokens=tokens, free_tokens=free)


def with_(instances, index, view):
    return [view if i == index else each for i, each in enumerate(instances)]


@pytest.mark.parametrize("name", ["pressure", "elastic", "by-load"])
def test_what_fits_somewhere_goes_to_the_least_work_and_what_can_never_run_is_rejected(name):
    policy = make_policy(name)
    assert policy.route(ask(SHORT), views(1, 1, 1, 1, load=(9, 3, 7, 5)), HOST, 0.0) == Send(1)
    assert isinstance(policy.route(ask(LONG + 1), views(1, 1, 1, 1), HOST, 0.0), Reject)
    assert isinstance(policy.route(ask(LONG), views(1, 1), HOST, 0.0), Reject), "two devices are no TP4"
    merge = policy.route(ask(MIDDLE), views(1, 1, 1, 1, load=(9, 3, 7, 5)), HOST, 0.0)
    assert isinstance(merge, Merge)
    assert len(merge.indices) == 2
    coming = views(1, 1, 1, 1, becoming={0: (2,), 1: (2,)})
    if name != "elastic":
        assert policy.route(ask(MIDDLE), coming, HOST, 0.0) == Wait()


def test_requests_that_wait_for_anything_but_blocks_are_no_shortage():
    (view,) = views(1)
    assert not short_of_memory(view)
    assert short_of_memory(queueing(view))
    assert not short_of_memory(queueing(view, free=60)), "they are only not yet admitted"
    assert not short_of_memory(replace(view, free_tokens=0, prefill_tokens=90)), "a prompt that has its blocks"


def test_pressure_merges_who_is_short_of_memory_with_the_smallest_other():
    policy = make_policy("pressure")
    instances = views(1, 2, 1, 1, held=(90, 150, 40, 20))
    assert policy.review(instances, HOST, 0.0) == []
    (merge,) = policy.review(with_(instances, 0, queueing(instances[0])), HOST, 0.0)
    assert merge.indices == (0, 3), "the least held of the narrowest"
    busy = views(1, 1, 2, held=(0, 0, 150), becoming={1: (2,)})
    assert policy.review(with_(busy, 0, queueing(busy[0])), HOST, 0.0) == [], "TP3 is none, the other is busy"


def test_two_that_are_short_of_memory_do_not_ask_for_the_same_device():
    instances = [queueing(view) for view in views(1, 1, 1)]
    (merge,) = make_policy("pressure").review(instances, HOST, 0.0)
    assert merge.indices == (0, 1)


def test_pressure_splits_below_half_of_what_the_devices_hold_apart():
    policy = make_policy("pressure")  # two TP1 hold 200
    assert policy.review(views(2, held=(100,)), HOST, 0.0) == []
    assert policy.review(views(2, held=(99,)), HOST, 0.0) == [Split(0, (1, 1), "less than 50% of the KV cache is used")]
    assert policy.review(views(2, held=(50,), longest=(101,)), HOST, 0.0) == [], "one of them needs the room"
    waiting = replace(HOST, pending=1)
    assert policy.review(views(2, held=(0,)), waiting, 0.0) == [], "somebody waits for devices"
    assert make_policy("pressure+restore=0.2").review(views(2, held=(50,)), HOST, 0.0) == []
    for wrong in ("0", "1.5"):
        with pytest.raises(UserError, match="above 0 and at most 1"):
            make_policy(f"pressure+restore={wrong}")


def test_elastic_gives_a_prompt_as_many_devices_as_it_is_long():
    policy = make_policy("elastic+share=25")
    instances = views(1, 1, 1, 1, held=(9, 0, 5, 7))
    assert policy.route(ask(49), instances, HOST, 0.0) == Send(0), "one share, first of equals"
    assert policy.route(ask(50), instances, HOST, 0.0).indices == (1, 2), "two shares, the least to move"
    assert policy.route(ask(100), instances, HOST, 0.0).indices == (0, 1, 2, 3)
    assert policy.route(ask(100), views(4, 1), HOST, 0.0) == Send(0)


def test_elastic_takes_no_device_that_computes_a_prompt_and_fewer_where_there_are_not_enough():
    policy = make_policy("elastic+share=25")
    instances = views(1, 1, 1, 1)
    busy = with_(instances, 0, replace(instances[0], running=1, prefill_tokens=40, remaining_tokens=40))
    assert policy.route(ask(100), busy, HOST, 0.0).indices == (1, 2)
    later = replace(HOST, ahead=1)
    assert isinstance(policy.route(ask(100), busy, later, 0.0), Send), "who came first may need them"


def test_elastic_splits_into_what_its_requests_need_once_no_prompt_is_computed():
    policy = make_policy("elastic")
    prefilling = replace(views(4, held=(60,), longest=(80,))[0], prefill_tokens=40)
    assert policy.review([prefilling], HOST, 0.0) == []
    decoding = replace(prefilling, prefill_tokens=1, remaining_tokens=20)
    assert policy.review([decoding], HOST, 0.0) == [Split(0, (1, 1, 1, 1), "the prompts are computed")]
    growing = replace(decoding, remaining_tokens=50)
    assert policy.review([growing], HOST, 0.0) == [Split(0, (2, 1, 1), "the prompts are computed")]
    full = replace(decoding, remaining_tokens=500)
    assert policy.review([full], HOST, 0.0) == []


def test_by_load_merges_all_when_calm_and_splits_when_requests_queue():
    policy = make_policy("by-load+calm=1+queue=1+dwell=10")
    assert policy.review(views(1, 1, 1, 1), HOST, 0.0) == [], "nobody would gain"
    (merge,) = policy.review(views(1, 1, 1, 1, requests=(1, 1, 1, 1)), HOST, 1.0)
    assert merge.indices == (0, 1, 2, 3)
    (wide,) = views(4, requests=(8,))
    assert policy.review([replace(wide, waiting=4)], HOST, 20.0) == []
    assert policy.review([replace(wide, waiting=5)], HOST, 20.0) == [Split(0, (1, 1, 1, 1), "requests queue")]
    assert policy.review(views(4, requests=(8,), longest=(101,)), HOST, 40.0) == []


def test_by_load_changes_no_sooner_than_it_says_and_asks_to_be_woken_then():
    policy = make_policy("by-load+calm=1+queue=1+dwell=10")
    calm = views(1, 1, 1, 1, requests=(1, 0, 0, 0))
    assert policy.review(calm, HOST, 5.0)
    assert policy.review(calm, HOST, 9.0) == []
    assert policy.wake_s == 15.0
    assert policy.review(calm, HOST, 15.0)
    assert policy.wake_s is None


def test_by_load_leaves_a_host_alone_that_is_changing_or_whose_devices_somebody_waits_for():
    policy = make_policy("by-load")
    assert policy.review(views(1, 1, 1, 1, requests=(1, 0, 0, 0), becoming={0: (2,), 1: (2,)}), HOST, 0.0) == []
    assert policy.review(views(1, 1, requests=(1, 0)), replace(HOST, pending=1), 0.0) == []
