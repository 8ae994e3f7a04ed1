"""Policies by name, with words and options, and what is said about those that there are not."""

import pytest

from gyges.errors import UnknownNameError, UserError
from gyges.scheduling.routing import POLICIES
from gyges.scheduling.specification import layout_of, make_policy


@pytest.mark.parametrize("name", POLICIES.names())
def test_every_policy_can_be_made_by_its_name_and_is_made_anew(name):
    first, second = make_policy(name), make_policy(name)
    assert first is not second
    assert isinstance(first.transforms, bool)
    assert first.wake_s is None


def test_options_reach_the_policy():
    plain, changed = make_policy("gyges"), make_policy("gyges+reserve=off+dwell=7.5")
    assert (plain.reserve, plain.cost) == (True, True)
    assert (changed.reserve, changed.cost, changed.dwell) == (False, True, 7.5)
    assert make_policy("gyges:paper").cost is False
    assert make_policy("gyges:paper+cost=on").cost is True


def test_a_static_layout_is_repeated_to_fill_the_devices():
    assert layout_of(make_policy("static:tp2+tp1+tp1"), 8) == (2, 1, 1, 2, 1, 1)
    assert layout_of(make_policy("static:4xtp1"), 4) == (1, 1, 1, 1)
    assert layout_of(make_policy("static"), 4) == ()
    assert layout_of(make_policy("gyges"), 4) == ()
    with pytest.raises(UserError, match="takes 4 devices or a multiple of that; there are 6"):
        layout_of(make_policy("static:tp4"), 6)


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("fastest", UnknownNameError, "known: by-load, elastic, gyges, llf"),
        ("gyges:best", UnknownNameError, "known: paper"),
        ("gyges+speed=on", UnknownNameError, "known: choice, cost"),
        ("gyges+cost=maybe", UserError, "a switch is on or off"),
        ("gyges+dwell=long", UserError, "not a number"),
        ("gyges+dwell=-1", UserError, "0 or more"),
        ("static:tpx", UserError, "cannot read instance"),
        ("rr+cost=on", UnknownNameError, "option of policy rr"),
        ("", UserError, "cannot read scheduler"),
        ("gyges+cost", UserError, "write NAME"),
    ],
)
def test_what_is_not_there_is_answered_with_what_is(text, error, says):
    with pytest.raises(error, match=says):
        make_policy(text)
