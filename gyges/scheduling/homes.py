"""Which narrow instance each request of a split goes to. Plain Python, deterministic."""

from __future__ import annotations

from collections.abc import Sequence

from gyges.scheduling.batching import Sequence as Seq


def choose_homes(sequences: Sequence[Seq], capacities: Sequence[int], block_size: int) -> dict[Seq, int] | None:
    """Sequence -> index of its home. ``capacities``: blocks that each home can hold.

    The largest first, each to the home with the most room left (longest processing time first, Graham 1969). None where it
    does not fit: a sequence that is, or will be, too long for any home, or more blocks in use than there is room for.
    """
    room = list(capacities)
    homes: dict[Seq, int] = {}
    for sequence in sorted(sequences, key=lambda s: (-len(s.blocks), s.order)):
        need = -(-sequence.max_length // block_size)
        fitting = [i for i in range(len(room)) if capacities[i] >= need and room[i] >= len(sequence.blocks)]
        if not fitting:
            return None
        home = max(fitting, key=lambda i: (room[i], -i))
        homes[sequence] = home
        room[home] -= len(sequence.blocks)
    return homes
