"""What a transformation asks of its workers: a short program of operations, the same for every worker of the wide instance.

Each worker carries out what concerns it (gyges.transform.interpreter). *Front* is the state before, *back* the state after.

    merge, one stop     Join  FFN..  FFNRelease..  [Transfer  Barrier  Release]*  Switch..  Settle
    merge, overlapped   Join + all FFN   | step |  Release Transfer  | step |  Release Transfer Switch  | step | ... Settle
    split, overlapped   Join   | step |  Release Transfer Switch  | step | ...  FFN FFNRelease  | step | ...  Settle

Who reads a peer's pages is done before it leaves the next Barrier, or this step (in which all workers meet, too); who gives pages
up does it after. Block ids travel as int32 bytes.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import numpy as np

from gyges.parallel.sharding import ShardCount
from gyges.transform.shape import Transformation


class Op(msgspec.Struct, array_like=True, tag=True, frozen=True):
    """Base of all operations."""


class Join(Op, frozen=True):
    """The workers of ``wide`` begin to step together. ``parity``: of each worker of ``wide``, how many transformations it has
    been through, modulo 2 (which of its two address ranges is the front).   ``homes``: (slot, narrow instance) for a split."""

    kind: str
    wide: tuple[int, ...]
    narrow: tuple[tuple[int, ...], ...]
    shards: tuple[int, int]
    parity: tuple[int, ...]
    homes: list[tuple[int, int]] = []

    def shape(self) -> Transformation:
        return Transformation(self.kind, self.wide, self.narrow, ShardCount(*self.shards))  # type: ignore[arg-type]


class Transfer(Op, frozen=True):
    """Blocks ``src`` (front ids) of requests of narrow instance ``narrow`` are copied to ``dst`` (back ids)."""

    narrow: int
    src: bytes
    dst: bytes


class Release(Op, frozen=True):
    """Blocks of narrow instance ``narrow`` are given up: at the front, or (``back``) copies that are not needed after all."""

    narrow: int
    ids: bytes
    back: bool = False


class Switch(Op, frozen=True):
    """The sequence in ``slot`` is attended to from the back from now on; ``ids``: its blocks there."""

    slot: int
    narrow: int
    ids: bytes


class FFN(Op, frozen=True):
    """FFN units of layers ``first`` .. ``stop`` are brought to where the back wants them."""

    first: int
    stop: int


class FFNRelease(Op, frozen=True):
    """The front's units of these layers are given up."""

    first: int
    stop: int


class Barrier(Op, frozen=True):
    """No worker goes on before all have come."""


class Settle(Op, frozen=True):
    """The transformation is over: the back becomes the front, and its instances step on their own."""


AnyOp = Join | Transfer | Release | Switch | FFN | FFNRelease | Barrier | Settle


def pack_ids(ids: Iterable[int] | np.ndarray) -> bytes:
    return np.asarray(ids if isinstance(ids, np.ndarray) else list(ids), dtype="<i4").tobytes()


def unpack_ids(data: bytes) -> np.ndarray:
    return np.frombuffer(data, dtype="<i4").astype(np.int64)
