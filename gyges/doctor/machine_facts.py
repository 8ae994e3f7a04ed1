"""The groups ``machine`` and ``engine``: what Linux, the container and the hardware give to processes on CPU devices."""

from __future__ import annotations

import os
import platform
import resource
from collections.abc import Iterator
from pathlib import Path

from gyges.config import MIB, available_cores, format_bytes
from gyges.doctor.facts import PROBES, Fact
from gyges.metrics.manifest import hardware

_CGROUP = Path("/sys/fs/cgroup")
_MAPPINGS = 65_530  # the kernel's default; a page of a pool may need a mapping of its own
_LITTLE_MEMORY = 2 << 30


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


@PROBES.register("machine")
def machine() -> Iterator[Fact]:
    def fact(name: str, value: str, *args: object, **data: object) -> Fact:
        return Fact("machine", name, value, *args, **data)  # type: ignore[arg-type]

    if platform.system() == "Linux":
        yield fact("system", platform.platform(), data=platform.release())
    else:
        yield fact("system", platform.platform(), "missing", "the engine needs Linux; the simulator runs anywhere")
    yield from _processor()
    yield from _memory()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield fact("open files", f"{_limit(soft)} (limit), {_limit(hard)} (may be raised to)", data=[soft, hard])
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    text = "no limit" if soft == resource.RLIM_INFINITY else format_bytes(soft)
    yield fact("locked memory", f"{text} (not needed on the CPU)", "note", data=soft)
    mappings = _read(Path("/proc/sys/vm/max_map_count"))
    if mappings:
        few = int(mappings) < _MAPPINGS
        remedy = f"sysctl -w vm.max_map_count={_MAPPINGS}, or larger --page-size" if few else ""
        yield fact("memory mappings", f"{mappings} per process", "warn" if few else "good", remedy, data=int(mappings))


def _limit(value: int) -> str:
    return "no limit" if value == resource.RLIM_INFINITY else str(value)


def _processor() -> Iterator[Fact]:
    about, cores = hardware(), available_cores()
    yield Fact("machine", "processor", f"{about['cpu']} ({platform.machine()})", data=about["cpu"])
    machine_cores = about["machine_cores"] or cores
    text = f"{cores} of {machine_cores} usable" if cores != machine_cores else str(cores)
    quota = cpu_quota(_read(_CGROUP / "cpu.max"))
    if quota is not None and quota < cores:
        text += f", and a quota of {quota:g} cores"
        yield Fact(
            "machine", "cores", text, "warn", f"threads beyond the quota are stopped: use taskset -c 0-{max(0, int(quota) - 1)}",
            cores,
        )  # fmt: skip
    else:
        yield Fact("machine", "cores", text, data=cores)
    load = os.getloadavg()[0]
    busy = load > max(0.5, 0.25 * cores)
    remedy = "measure on an idle machine: engine workers and peers share these cores" if busy else ""
    yield Fact("machine", "load", f"{load:.2f} (of the last minute)", "warn" if busy else "good", remedy, load)


def cpu_quota(text: str) -> float | None:
    """Cores that ``cpu.max`` of a control group ("200000 100000") gives; None for no limit."""
    words = text.split()
    if len(words) != 2 or words[0] == "max":
        return None
    return int(words[0]) / int(words[1])


def _memory() -> Iterator[Fact]:
    import psutil

    memory = psutil.virtual_memory()
    free = memory.available
    text = f"{format_bytes(free)} available of {format_bytes(memory.total)}"
    limit = _read(_CGROUP / "memory.max")
    if limit.isdigit() and int(limit) < memory.total:
        text += f", and this container may have {format_bytes(int(limit))}"
        free = min(free, int(limit))
    little = free < _LITTLE_MEMORY
    remedy = "the bundled benchmarks want 2 GiB: give a smaller --device-memory" if little else ""
    yield Fact("machine", "memory", text, "warn" if little else "good", remedy, free)
    shared = Path("/dev/shm")
    if shared.is_dir():
        space = os.statvfs(shared)
        size = space.f_frsize * space.f_blocks
        yield Fact("machine", "/dev/shm", f"{format_bytes(size)} (NCCL uses it; CPU devices do not)", "note", "", size)


@PROBES.register("engine")
def engine() -> Iterator[Fact]:
    """Each facility is used once, for real: versions and configuration say less."""
    yield _tried("memfd", "anonymous shared memory", _try_memfd, "the engine needs Linux 3.17 or newer")
    yield _tried("pidfd", "deaths are noticed at once", _try_pidfd, "the engine needs Linux 5.3 or newer")
    yield _tried(
        "semaphores", "shared between processes", _try_semaphore, "the C library lacks process-shared sem_init"
    )
    try:
        made = _huge_pages()
    except Exception as error:
        yield Fact("engine", "page pool", f"cannot be made: {error}", "missing", "see tests/memory; report this")
        return
    yield Fact("engine", "page pool", "memfd mapped at fixed addresses")
    if made:
        yield Fact("engine", "huge pages", "2 MiB pages of device memory are one page-table entry", data=made)
    else:
        remedy = "Linux 6.1 or newer, and transparent huge pages not set to never"
        yield Fact("engine", "huge pages", "refused: a page takes 60 us to map instead of 1", "warn", remedy, 0)


def _tried(name: str, value: str, attempt: object, remedy: str) -> Fact:
    assert callable(attempt)
    try:
        attempt()
    except Exception as error:
        return Fact("engine", name, f"refused: {error}", "missing", remedy)
    return Fact("engine", name, value)


def _try_memfd() -> None:
    os.close(os.memfd_create("gyges-doctor", os.MFD_CLOEXEC))


def _try_pidfd() -> None:
    os.close(os.pidfd_open(os.getpid()))


def _try_semaphore() -> None:
    from gyges.parallel.arena import SharedArena

    SharedArena.create(2, 4096).close()


def _huge_pages() -> int:
    """Bytes of a small pool that the kernel made of huge pages."""
    from gyges.memory.cpu import CpuPagePool

    pool = CpuPagePool(2, 2 * MIB, "gyges-doctor")
    try:
        where = pool.reserve("probe", 4)
        pool.map(where, [0, 3])
        pool.check()
        return pool.huge_bytes
    finally:
        pool.close()
