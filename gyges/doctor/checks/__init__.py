"""The checks of ``gyges doctor --full``: a registry. A check is a function in a file of this package plus one :func:`add`.

The function runs in a process of its own, which is ended at the check's deadline. It raises, and then the check has failed, or
returns a mapping, ``{"figures": {name: JSON value}, "goals": [goal, ...], "summary": text}``, of which any key may be absent.
A goal has name, aim, limit, unit, reached and met, as those of the benchmarks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gyges.doctor.facts import Fact, data_of, find
from gyges.registry import Registry

Document = dict[str, Any]
Applies = Callable[[Sequence[Fact]], str]


@dataclass(frozen=True, slots=True)
class Check:
    """``target``: "module:function", imported in the check's process.   cannot: the reason why it cannot run here, or "".

    deadline_s: seconds until its process is ended.
    """

    name: str
    title: str
    target: str
    deadline_s: float
    cannot: Applies


CHECKS: Registry[Check] = Registry("check")


def add(name: str, title: str, target: str, deadline_s: float, cannot: Applies) -> Check:
    return CHECKS.add(name, Check(name, title, f"{__name__}.{target}", deadline_s, cannot))


def load() -> Registry[Check]:
    """All checks, in the order in which they run: what is quick and says most comes first."""
    if not CHECKS.names():
        from gyges.doctor.checks import catalogue  # noqa: F401
    return CHECKS


# -- what a check may need --------------------------------------------------------------------------------------------


def lacks(*packages: str) -> Applies:
    """Packages that must be installed."""

    def cannot(facts: Sequence[Fact]) -> str:
        missing = [name for name in packages if data_of(facts, "python", name) is None]
        return f"needs {', '.join(missing)}" if missing else ""

    return cannot


def cpu_devices(*packages: str) -> Applies:
    """What CPU devices are made of, and these packages."""

    def cannot(facts: Sequence[Fact]) -> str:
        missing = [fact.name for fact in facts if fact.group == "engine" and fact.state == "missing"]
        return f"the kernel refuses {', '.join(missing)}" if missing else lacks(*packages)(facts)

    return cannot


def gpus(count: int = 1, *packages: str) -> Applies:
    """So many visible devices, torch with CUDA, and these packages."""

    def cannot(facts: Sequence[Fact]) -> str:
        there = data_of(facts, "gpu", "devices") or 0
        if there < count:
            return f"needs {count} GPU{'s' * (count > 1)}, {there} visible"
        torch = find(facts, "gpu", "torch")
        if torch is None or torch.data is None:
            return "torch sees no GPU"
        return lacks(*packages)(facts)

    return cannot


def no_gpu(*packages: str) -> Applies:
    """A machine without one, and these packages: where there is a GPU, another check says more."""

    def cannot(facts: Sequence[Fact]) -> str:
        return (
            "there is a GPU: its own checks run instead"
            if data_of(facts, "gpu", "devices")
            else lacks(*packages)(facts)
        )

    return cannot


def test_files(*packages: str) -> Applies:
    """A checkout with its tests, and pytest."""

    def cannot(facts: Sequence[Fact]) -> str:
        from gyges.doctor.checks.suite import can_run_tests

        return can_run_tests() or lacks(*packages)(facts)

    return cannot


def goal(
    name: str, aim: str, limit: float, reached: float | None, *, unit: str = "share", least: bool = True
) -> Document:
    """A goal as the benchmarks write it; ``met`` is None where nothing was reached."""
    met = None if reached is None else (reached >= limit if least else reached <= limit)
    return {"name": name, "aim": aim, "limit": limit, "unit": unit, "reached": reached, "met": met}
