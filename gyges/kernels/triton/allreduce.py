"""One-shot all-reduce over peer memory: every rank reads the inputs of all and adds them up in rank order.

So each rank gets the same bits, and a small message costs one pass over NVLink instead of a ring's 2 (R - 1) steps. Inputs lie in
buffers that all ranks have mapped (CUDA VMM or IPC).

    signals of one rank     int32 [programs, ranks]     0: nothing, 1: that rank's program is here

``synchronize`` True: ranks run at the same time on GPUs of their own. A program raises its flag at every peer, waits for the
peers' flags and takes them down, before it reads and again after it has read; then nobody reads what is not written, and nobody
overwrites what is still read. False: the caller orders the ranks (events between processes that share a GPU, where kernels that
wait for one another could wait forever; one process, where ranks run one after the other once all inputs are in place).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

_MAX_PROGRAMS = 32  # few, so that all of them run at once: they wait for their counterparts
_BLOCK = 2048


@triton.jit
def _meet(signals, program, rank, RANKS: tl.constexpr):
    """Returns once this program has been reached on every rank."""
    tl.debug_barrier()
    for peer in range(RANKS):
        flag = tl.load(signals + peer).to(tl.pointer_type(tl.int32)) + program * RANKS + rank
        while tl.atomic_cas(flag, 0, 1, sem="release", scope="sys") != 0:
            pass
    own = tl.load(signals + rank).to(tl.pointer_type(tl.int32)) + program * RANKS
    for peer in range(RANKS):
        while tl.atomic_cas(own + peer, 1, 0, sem="acquire", scope="sys") != 1:
            pass
    tl.debug_barrier()


@triton.jit
def _all_reduce(
    buffers,
    signals,
    out,
    count,
    rank,
    RANKS: tl.constexpr,
    BLOCK: tl.constexpr,
    SYNCHRONIZE: tl.constexpr,
):
    program = tl.program_id(0)
    if SYNCHRONIZE:
        _meet(signals, program, rank, RANKS)
    for start in range(program * BLOCK, count, tl.num_programs(0) * BLOCK):
        i = start + tl.arange(0, BLOCK)
        total = tl.zeros([BLOCK], tl.float32)
        for peer in range(RANKS):
            part = tl.multiple_of(tl.load(buffers + peer).to(out.dtype), 16)
            total += tl.load(part + i, mask=i < count, other=0.0).to(tl.float32)
        tl.store(out + i, total.to(out.dtype.element_ty), mask=i < count)
    if SYNCHRONIZE:
        _meet(signals, program, rank, RANKS)


class PeerBuffers:
    """What one rank knows of a group: the addresses, in its own process, of every rank's input buffer and signals.

    Signals start as zeros and are zeros again after every all-reduce. The caller has mapped the peers' memory; buffers start at a
    multiple of 16 bytes.
    """

    def __init__(self, buffers: Sequence[int], signals: Sequence[int], rank: int, device: torch.device) -> None:
        assert len(buffers) == len(signals), "one buffer and one set of signals per rank"
        assert not any(address % 16 for address in buffers), "a buffer starts at a multiple of 16 bytes"
        self.rank, self.ranks = rank, len(buffers)
        self.buffers = torch.tensor(buffers, dtype=torch.int64, device=device)
        self.signals = torch.tensor(signals, dtype=torch.int64, device=device)


def signal_count(ranks: int) -> int:
    """int32 flags that every rank provides."""
    return _MAX_PROGRAMS * ranks


def all_reduce(out: torch.Tensor, peers: PeerBuffers, *, synchronize: bool) -> None:
    """Adds up the first ``out.numel()`` elements (of ``out``'s dtype) of every rank's buffer, in float32, into ``out``."""
    count = out.numel()
    programs = max(1, min(_MAX_PROGRAMS, triton.cdiv(count, _BLOCK)))
    _all_reduce[(programs,)](
        peers.buffers, peers.signals, out, count, peers.rank, RANKS=peers.ranks, BLOCK=_BLOCK, SYNCHRONIZE=synchronize,
        num_warps=8,
    )  # fmt: skip
