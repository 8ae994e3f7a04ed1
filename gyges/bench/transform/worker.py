"""A process that owns one device of the micro-benchmark, without a model. ``python -m gyges.bench.transform.worker ...``

Arguments: socket, worker, workers, descriptor and buffer bytes of the collectives' memory. Answers tasks until its socket hangs
up, and exits then, even from inside a barrier.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from gyges.bench.transform.content import Content
from gyges.bench.transform.tasks import (
    Answer,
    AnyTask,
    Check,
    Meet,
    MemCopy,
    Open,
    Prepare,
    Run,
    decode_task,
    encode,
)
from gyges.engine.process import receive_descriptors, send_descriptors
from gyges.kernels import copy as copy_kernel
from gyges.memory.cpu import CpuPagePool, CpuPeerMemory
from gyges.parallel.arena import SharedArena
from gyges.parallel.comm import SOLO, Comm
from gyges.parallel.sharding import ParallelLayout
from gyges.parallel.shm import ShmComm
from gyges.transform.device import Device
from gyges.transform.interpreter import Effect
from gyges.transform.ops import FFN, Barrier, FFNRelease, Join, Release, Settle, Transfer, unpack_ids

BARRIER_TIMEOUT_S = 60.0
_STAGES = {FFN: "weights", FFNRelease: "weights", Transfer: "kv", Release: "kv"}


class BenchWorker:
    def __init__(self, worker: int, workers: int, arena: SharedArena) -> None:
        self.worker, self.workers, self.arena = worker, workers, arena
        self._pool: CpuPagePool | None = None
        self.peers: dict[int, CpuPeerMemory] = {}
        self.device: Device | None = None
        self.content: Content | None = None
        self._buffers: tuple[np.ndarray, np.ndarray] | None = None
        copy_kernel.warm()

    def open(self, task: Open) -> dict[str, Any]:
        for peer in self.peers.values():
            peer.close()
        self.peers, self.device = {}, None
        if self._pool is not None:
            self._pool.close()
        self._pool = pool = CpuPagePool(task.device_pages, task.page_bytes, f"gyges-bench-{self.worker}")
        # Touched once, so that no cell pays for it.
        pool.map(pool.reserve("all", task.device_pages), np.arange(task.device_pages))
        pool.clear()
        return {}

    def meet(self, descriptors: tuple[int, ...]) -> dict[str, Any]:
        pool = self.pool
        for worker in range(self.workers):
            own = descriptors[2 * worker : 2 * worker + 2]
            self.peers[worker] = CpuPeerMemory(own, pool.capacity, pool.page_bytes)
        for fd in descriptors:
            os.close(fd)
        return {}

    def mem_copy(self, task: MemCopy) -> dict[str, Any]:
        if self._buffers is None or len(self._buffers[0]) != task.buffer_bytes:
            self._buffers = (np.ones(task.buffer_bytes, np.uint8), np.ones(task.buffer_bytes, np.uint8))
        if self.worker not in task.members:
            return {"seconds": 0.0}
        source, target = self._buffers
        np.copyto(target, source)
        self._comm(task.members).barrier()
        began = time.perf_counter()
        for _ in range(task.times):
            np.copyto(target, source)
        return {"seconds": time.perf_counter() - began}

    def prepare(self, task: Prepare) -> dict[str, Any]:
        host = task.case.host()
        pool = self.pool
        pool.clear()
        if self.content is None or self.content.seed != task.seed or self.content.host != host:
            self.content = Content(host, task.seed)
        device = self.device = Device(host, self.worker, ParallelLayout(1, 0, host.shards), pool=pool)
        device.peers = self.peers
        blocks = unpack_ids(task.blocks)
        device.carry_out(Effect(map=[device.book.kv.hold(blocks)]))
        self.content.write_kv(device, self.worker, blocks)
        self.content.write_ffn(device)
        return {}

    def run(self, task: Run) -> dict[str, Any]:
        """``at_once_pages``: what would be mapped if all KV blocks were copied before any is given up, not in rounds."""
        device = self.device
        assert device is not None, "Prepare comes first"
        comm: Comm = SOLO
        stages = {"weights_stage_s": 0.0, "kv_stage_s": 0.0}
        stage = ""
        pages_before_kv = kv_pages = 0
        self._comm(tuple(range(self.workers))).barrier()
        began = time.perf_counter()
        for op in task.ops:
            mapped = device.spent.mapped_pages
            if isinstance(op, Transfer) and not pages_before_kv:
                pages_before_kv = device.book.mapped_pages
            before = time.perf_counter()
            device.apply(op, comm.barrier)
            if isinstance(op, Join):
                comm = self._joined(op, device)
            elif isinstance(op, Settle):
                comm = SOLO
            if isinstance(op, Transfer):
                kv_pages += device.spent.mapped_pages - mapped
            stage = stage if isinstance(op, Barrier) else _STAGES.get(type(op), "")
            if stage:
                stages[f"{stage}_stage_s"] += time.perf_counter() - before
        total_s = time.perf_counter() - began
        device.pool.check()
        at_once = {"at_once_pages": pages_before_kv + kv_pages}
        return {"total_s": total_s, **stages, **at_once, **device.spent.to_dict()}

    def _joined(self, op: Join, device: Device) -> Comm:
        """The wide instance's communicator, made as the engine makes it."""
        began = time.perf_counter()
        comm = self._comm(op.wide)
        comm.barrier()
        device.spent.communicator_s += time.perf_counter() - began
        return comm

    def check(self, task: Check) -> dict[str, Any]:
        device, content = self.device, self.content
        assert device is not None, "Prepare comes first"
        assert content is not None
        wrong = sum(content.wrong_kv(device, narrow, unpack_ids(ids), task.sample) for narrow, ids in task.blocks)
        return {"wrong_blocks": wrong, "wrong_units": content.wrong_ffn(device)}

    def _comm(self, members: tuple[int, ...]) -> Comm:
        return ShmComm(self.arena, members, self.worker, BARRIER_TIMEOUT_S) if len(members) > 1 else SOLO

    @property
    def pool(self) -> CpuPagePool:
        assert self._pool is not None, "Open comes first"
        return self._pool


def serve(connection: Connection, bench: BenchWorker) -> None:
    while True:
        task: AnyTask = decode_task(connection.recv_bytes())
        if isinstance(task, Meet):
            result = bench.meet(receive_descriptors(connection.fileno(), 2 * bench.workers))
        else:
            does: dict[type, Callable[[Any], dict[str, Any]]] = {
                Open: bench.open,
                MemCopy: bench.mem_copy,
                Prepare: bench.prepare,
                Run: bench.run,
                Check: bench.check,
            }
            result = does[type(task)](task)
        connection.send_bytes(encode(Answer(result)))
        if isinstance(task, Open):
            send_descriptors(connection.fileno(), bench.pool.export())


def _exit_with_caller(fd: int) -> None:
    """Polls for hang-up only: the main thread may be anywhere, in a barrier too."""
    poll = select.poll()
    poll.register(fd, 0)
    poll.poll()
    os._exit(3)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    fd, worker, workers, arena_fd, arena_bytes = map(int, sys.argv[1:6])
    connection = Connection(fd)
    threading.Thread(target=_exit_with_caller, args=(fd,), daemon=True).start()
    try:
        serve(connection, BenchWorker(worker, workers, SharedArena(arena_fd, workers, arena_bytes)))
    except EOFError:
        os._exit(3)  # the caller is gone; nobody is left to tell
    except BaseException as error:
        traceback.print_exc()
        try:
            connection.send_bytes(encode(Answer(error=f"{type(error).__name__}: {error}")))
        finally:
            sys.stderr.flush()
            os._exit(1)


if __name__ == "__main__":
    main()
