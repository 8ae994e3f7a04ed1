"""What is there: one line per finding, each with the remedy where something is amiss. Nothing is kept, nothing is measured.

    machine   system, processor, memory and the limits that the kernel and the container set
    python    this interpreter, the packages that the project names, and its extras
    engine    what CPU devices are made of: memfd, huge pages, pidfd, descriptors over sockets
    gpu       driver, devices, peer access, virtual memory management, torch's and Triton's view of them, NCCL

A group is probed by one function; what a probe cannot find out is a finding too, never an exception.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from gyges.registry import Registry

State = Literal["good", "note", "warn", "missing"]


@dataclass(frozen=True, slots=True)
class Fact:
    """``state``: good; note: neither good nor bad; warn: works, but worse; missing: something does not work without it.

    ``value`` is for people, ``data`` for programs (JSON types).   remedy: what to do, where ``state`` is warn or missing.
    """

    group: str
    name: str
    value: str
    state: State = "good"
    remedy: str = ""
    data: Any = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


Probe = Callable[[], Iterable[Fact]]

PROBES: Registry[Probe] = Registry("group of facts")
_ORDER = ("machine", "python", "engine", "gpu")  # in which they are shown; others behind them


def gather(groups: Iterable[str] | None = None) -> list[Fact]:
    """The facts of these groups, all if None. Raises UnknownNameError for other names."""
    # The probes register themselves.
    from gyges.doctor import cuda_facts, machine_facts, package_facts  # noqa: F401

    if groups is None:
        groups = dict.fromkeys((*_ORDER, *PROBES.names()))
    return [fact for name in groups for fact in _facts_of(name)]


def _facts_of(group: str) -> Iterator[Fact]:
    probe = PROBES.get(group)
    try:
        yield from probe()
    except Exception as error:
        yield Fact(group, "probe", f"could not be finished: {type(error).__name__}: {error}", "warn", "report this")


def find(facts: Iterable[Fact], group: str, name: str) -> Fact | None:
    """The first fact of this name; None if it was not found out."""
    return next((fact for fact in facts if (fact.group, fact.name) == (group, name)), None)


def data_of(facts: Iterable[Fact], group: str, name: str) -> Any:
    """The ``data`` of a fact, None where there is no such fact."""
    fact = find(facts, group, name)
    return None if fact is None else fact.data


def to_document(facts: Iterable[Fact]) -> list[dict[str, Any]]:
    return [fact.to_dict() for fact in facts]


def from_document(rows: Iterable[Mapping[str, Any]]) -> list[Fact]:
    return [Fact(**row) for row in rows]
