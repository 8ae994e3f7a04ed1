"""Instances that are made ready for at the start: those that a host forms, as far as a bound allows."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gyges.parallel.sharding import ShardCount
from gyges.transform.ahead import likely_instances
from gyges.transform.shape import merge, split

SHARDS = ShardCount(4, 4)
SINGLES = [(w,) for w in range(4)]


@settings(max_examples=60)
@given(st.data())
def test_what_merges_and_splits_of_a_small_host_form_is_there_however_they_follow_one_another(data):
    known = set(likely_instances(SINGLES, 4, (1, 2, 4), SHARDS))
    now = list(SINGLES)
    for _ in range(data.draw(st.integers(1, 6))):
        assert known.issuperset(now)
        wide = [members for members in now if len(members) > 1]
        if wide and data.draw(st.booleans()):
            chosen = data.draw(st.sampled_from(wide))
            degrees = data.draw(st.sampled_from([(1, 1)] if len(chosen) == 2 else [(2, 2), (2, 1, 1), (1, 1, 1, 1)]))
            now = [m for m in now if m != chosen] + list(split(chosen, degrees, SHARDS).narrow)
            continue
        homes = [home for home in ({0, 1}, {2, 3}, {0, 1, 2, 3}) if sum(home.issuperset(m) for m in now) > 1]
        homes = [home for home in homes if sum(len(m) for m in now if home.issuperset(m)) == len(home)]
        if homes:
            home = data.draw(st.sampled_from(homes))
            parts = tuple(sorted(m for m in now if home.issuperset(m)))
            now = [m for m in now if m not in parts] + [merge(parts, SHARDS).wide]


@pytest.mark.parametrize("degrees", [(1, 8), (1, 4, 8), (1, 2, 4, 8), (2, 8)])
def test_a_large_host_is_held_within_the_bound_and_has_its_start_and_the_merges_of_neighbours(degrees):
    shards = ShardCount(8, 8)
    start = [tuple(range(first, first + degrees[0])) for first in range(0, 8, degrees[0])]
    found = likely_instances(start, 8, degrees, shards, most=8)
    assert len(found) == len(set(found))
    assert set(start) <= set(found)
    assert all(sum(worker in members for members in found) <= 8 for worker in range(8))
    for degree in degrees[1:]:
        assert {tuple(sorted(m)) for m in found} >= {tuple(range(a, a + degree)) for a in range(0, 8, degree)}


def test_a_host_that_never_changes_has_its_start_alone():
    assert likely_instances([(0, 1), (2, 3)], 4, (2,), SHARDS) == [(0, 1), (2, 3)]
