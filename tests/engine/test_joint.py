"""What a step of an overlapped transformation copies ahead: never a block that will still be written."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gyges.engine.joint import Joint, Spot
from gyges.scheduling.batching import Sequence
from gyges.transform.ops import Switch

BLOCK = 16


class LittleRoom:
    """A planner whose workers have pages for ``room`` more blocks."""

    def __init__(self, room: int) -> None:
        self.room, self.ops, self.copied = room, [], []

    def fits(self, moves, *, sparing: bool) -> bool:
        return sum(len(move.src) for move in moves) <= self.room

    def transfer(self, moves) -> None:
        self.room -= len(moves.src)
        self.copied += moves.src.tolist()


def joint_of(sequence: Sequence, room: int) -> tuple[Joint, Spot, LittleRoom]:
    blocks = list(range(len(sequence.blocks)))
    spot, planner = Spot(0, blocks, [block + 1000 for block in blocks]), LittleRoom(room)
    joint = object.__new__(Joint)
    joint.blocks, joint.planner, joint.slots, joint._gone = (
        SimpleNamespace(spots={sequence: spot}),
        planner,
        {sequence: 0},
        [],
    )
    joint.host = SimpleNamespace(block_size=BLOCK)
    joint._urgency = lambda each: (each.order,)
    return joint, spot, planner


@given(st.integers(1, 400), st.integers(0, 400), st.integers(0, 30), st.integers(1, 30))
def test_a_block_that_is_still_written_is_copied_only_with_the_switch(known, computed, room, budget):
    computed = min(computed, known - 1)
    sequence = Sequence(order=0, prompt_tokens=known, max_tokens=5, known=known, computed=computed)
    sequence.blocks = list(range(-(-known // BLOCK)))
    joint, spot, planner = joint_of(sequence, room)
    joint._spend([budget], sparing=False)
    assert planner.copied == list(range(len(planner.copied)))
    assert len(planner.copied) <= min(room, budget)
    if spot.switched:
        assert len(planner.copied) == len(sequence.blocks)
        assert isinstance(planner.ops[-1], Switch)
    else:
        assert spot.copied == len(planner.copied) <= computed // BLOCK


@pytest.mark.parametrize(("room", "copied", "switched"), [(13, 13, True), (12, 3, False), (2, 1, False), (0, 0, False)])
def test_where_there_is_room_for_a_part_only_what_is_full_goes_ahead(room, copied, switched):
    """200 tokens are 13 blocks; 48 of them are computed, so 3 blocks are full."""
    sequence = Sequence(order=0, prompt_tokens=200, max_tokens=5, known=200, computed=48, blocks=list(range(13)))
    joint, spot, planner = joint_of(sequence, room)
    joint._spend([64], sparing=False)
    assert (len(planner.copied), spot.switched) == (copied, switched)
