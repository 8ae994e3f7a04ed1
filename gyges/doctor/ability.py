"""What the facts mean for a user: which parts of Gyges work on this machine, and what the others lack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gyges.doctor.facts import Fact, data_of, find


@dataclass(frozen=True, slots=True)
class Ability:
    """``works``: yes or no; ``why``: what it uses, or what is missing and how to get it."""

    name: str
    works: bool
    why: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


_ENGINE = ("torch", "numba", "numpy", "msgspec", "safetensors", "psutil")
_SIMULATOR = ("numpy", "pandas", "pyarrow", "pyyaml")
_TRACES = ("pandas", "pyarrow")


def abilities(facts: Sequence[Fact]) -> list[Ability]:
    """In the order in which a user meets them."""
    devices = data_of(facts, "gpu", "devices") or 0
    return [
        _needs(facts, "engine on CPU devices", "gyges bench run", _ENGINE, groups=("machine", "engine")),
        _needs(facts, "simulator", "gyges sim run, for any hardware file", _SIMULATOR),
        _needs(facts, "trace files", "gyges trace stats", _TRACES),
        _needs(facts, "traces from the hub", "--trace hf:owner/name", ("datasets",)),
        _needs(facts, "Triton kernels", _kernels(devices), ("triton",)),
        _gpu_memory(facts, devices),
        _gpu_engine(facts, devices),
    ]


def _kernels(devices: int) -> str:
    return "compiled for the GPU" if devices else "under Triton's interpreter, slowly: for tests"


def _lacking(facts: Sequence[Fact], packages: Sequence[str], groups: Sequence[str] = ()) -> list[str]:
    missing = [name for name in packages if data_of(facts, "python", name) is None]
    return missing + [fact.name for fact in facts if fact.group in groups and fact.state == "missing"]


def _needs(
    facts: Sequence[Fact], name: str, how: str, packages: Sequence[str], *, groups: Sequence[str] = ()
) -> Ability:
    lacking = _lacking(facts, packages, groups)
    return Ability(name, not lacking, how if not lacking else f"missing: {', '.join(lacking)}")


def _gpu_memory(facts: Sequence[Fact], devices: int) -> Ability:
    name = "memory pool on GPUs"
    if not devices:
        driver = find(facts, "gpu", "driver")
        return Ability(name, False, f"no device; driver: {driver.value if driver else 'not asked'}")
    lacking = _lacking(facts, ("cuda-bindings", "torch"))
    if lacking:
        return Ability(name, False, f"missing: {', '.join(lacking)}; pip install 'gyges[cuda]'")
    without = [str(n) for n in range(devices) if data_of(facts, "gpu", f"device {n} VMM") is None]
    if without:
        return Ability(name, False, f"device {', '.join(without)} cannot map pages or hand them over")
    return Ability(name, True, "pages by CUDA VMM; gyges doctor --full tries it")


def _gpu_engine(facts: Sequence[Fact], devices: int) -> Ability:
    name = "engine on GPUs"
    if not _gpu_memory(facts, devices).works:
        return Ability(name, False, "needs the memory pool on GPUs")
    return _needs(facts, name, "gyges bench run --device cuda; not yet run on hardware", (*_ENGINE, "triton"))
