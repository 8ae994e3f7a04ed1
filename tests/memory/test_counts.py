"""Page counts against a dictionary: a page is mapped while it has a user, and only then."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gyges.memory.counts import PageCounts

SLOTS = 8
slots = st.sets(st.integers(0, SLOTS - 1), max_size=SLOTS)


class Model:
    def __init__(self):
        self.users: dict[int, int] = {}

    def hold(self, users: dict[int, int]) -> set[int]:
        new = users.keys() - self.users.keys()
        for slot, count in users.items():
            self.users[slot] = self.users.get(slot, 0) + count
        return new

    def drop(self, users: dict[int, int]) -> set[int]:
        for slot, count in users.items():
            self.users[slot] -= count
        gone = {slot for slot, count in self.users.items() if not count}
        for slot in gone:
            del self.users[slot]
        return gone


def arrays(users: dict[int, int]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(list(users), np.int64), np.array(list(users.values()), np.int64)


def same(counts: PageCounts, model: Model) -> None:
    assert counts.mapped == len(model.users)
    assert set(np.flatnonzero(counts.is_mapped(np.arange(SLOTS)))) == model.users.keys()


@given(st.data())
def test_counts_follow_the_model(data):
    counts, model = PageCounts(SLOTS), Model()
    for _ in range(data.draw(st.integers(1, 12))):
        if data.draw(st.booleans()):
            users = {slot: data.draw(st.integers(1, 3)) for slot in data.draw(slots)}
            where, many = arrays(users)
            wanted = counts.would_map(where)
            new = counts.hold(where, many)
            assert len(new) == wanted
            assert sorted(new) == sorted(model.hold(users))
        else:
            users = {slot: data.draw(st.integers(1, n)) for slot, n in model.users.items() if data.draw(st.booleans())}
            gone = counts.drop(*arrays(users))
            assert sorted(gone) == sorted(model.drop(users))
        same(counts, model)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3)), min_size=1, max_size=4, unique_by=lambda t: t[0]))
def test_rows_of_slots_with_their_own_number_of_users(rows):
    """As blocks hold pages: [groups, pages of a group], users by group."""
    counts, model = PageCounts(SLOTS), Model()
    where = np.array([[2 * row, 2 * row + 1] for row, _ in rows])
    many = np.array([users for _, users in rows])[:, None]
    expected = {2 * row + side: users for row, users in rows for side in (0, 1)}
    assert sorted(counts.hold(where, many)) == sorted(model.hold(expected))
    same(counts, model)
    assert sorted(counts.hold(where)) == []
    assert sorted(counts.drop(where, many)) == []
    assert sorted(counts.drop(where)) == sorted(expected)
    assert counts.mapped == 0


def test_a_copy_goes_its_own_way():
    counts = PageCounts(SLOTS)
    counts.hold(np.array([1, 2]))
    twin = counts.copy()
    twin.hold(np.array([3]))
    twin.drop(np.array([1]))
    assert counts.mapped == twin.mapped == 2
    assert counts.is_mapped(np.array([1, 2, 3])).tolist() == [True, True, False]
    assert twin.is_mapped(np.array([1, 2, 3])).tolist() == [False, True, True]


def test_giving_up_what_was_not_held_is_noticed():
    counts = PageCounts(SLOTS)
    counts.hold(np.array([1]), 2)
    with pytest.raises(AssertionError, match="did not hold"):
        counts.drop(np.array([1]), 3)
