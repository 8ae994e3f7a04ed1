"""From what a user asks for to a simulator: hardware, model, system, policy, instances. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gyges.config import format_instances, parse_instances
from gyges.errors import UserError
from gyges.scheduling.batching import BatchLimits
from gyges.scheduling.routing import RoutingPolicy
from gyges.scheduling.specification import layout_of, make_policy
from gyges.sim.cost.base import CostModel
from gyges.sim.hardware import load_hardware
from gyges.sim.models import sim_model
from gyges.sim.simulator import Simulator
from gyges.sim.system import System, SystemSpec, make_system


@dataclass(frozen=True, slots=True)
class SimSetup:
    """As on the command line; see :func:`prepare`.

    policy: a scheduler; "": the one that the system is meant for.   system: how instances are served and changed; "": `gyges` for
    a policy that merges and splits, `fixed` for others.   instances: "tp2,tp1,tp1"; None: as many as there can be of the lowest
    degree that fits.   tp_degrees: that instances may take; empty: all that fit (policies that transform), or those of the
    instances.   kv_tokens: of KV cache for each device, or of an instance by degree; None: what memory is left over.
    block_size: 0: what the system wants.
    """

    model: str = "Qwen/Qwen2.5-32B"
    hardware: str = "h20x8"
    policy: str = ""
    system: str = ""
    instances: str | None = None
    tp_degrees: tuple[int, ...] = ()
    cost: str = "analytic"
    profile: Path | None = None
    dtype: str = "auto"
    kv_tokens: int | Mapping[int, int] | None = None
    max_batch_tokens: int = 2048
    max_seqs: int = 256
    block_size: int = 0


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a host is made of. ``facts``: for the manifest."""

    system: System
    degrees: tuple[int, ...]
    limits: BatchLimits
    policy: str
    facts: Mapping[str, Any]

    def make_policy(self) -> RoutingPolicy:
        """A new one: a policy has memory, and serves one host."""
        return make_policy(self.policy)

    def simulator(self) -> Simulator:
        return Simulator.of(self.system, self.degrees, self.limits, self.make_policy())

    def notes(self) -> list[str]:
        """What a reader must know after a run: steps beyond what a source of step times has measured."""
        return coverage_notes(self.system.costs)


def prepare(setup: SimSetup) -> Prepared:
    """Raises UserError for what does not go together, and for what a file, a model or a source lacks."""
    hardware, devices = load_hardware(setup.hardware)
    model = sim_model(setup.model, setup.dtype)
    name = setup.policy or "static"
    policy = make_policy(name)
    changes = policy.transforms or bool(setup.system and not setup.policy)
    layout = layout_of(policy, devices)
    if layout and setup.instances:
        raise UserError(f"{name} and --instances both say which instances there are; give one of them")
    given = layout or (parse_instances(setup.instances) if setup.instances else ())
    if sum(given) > devices:
        raise UserError(
            f"{format_instances(given)} take {sum(given)} devices, and {setup.hardware} has {devices}; "
            f"write --hardware {hardware.name}x{sum(given)} for more"
        )
    degrees = setup.tp_degrees or (() if changes else tuple(sorted(set(given))))
    spec = SystemSpec(model, hardware, devices, setup.cost, setup.profile, degrees, setup.kv_tokens)
    if not given and not changes:
        given = (spec.fitting[0],) * (devices // spec.fitting[0])
        spec = SystemSpec(model, hardware, devices, setup.cost, setup.profile, given[:1], setup.kv_tokens)
    restarts = name.partition("+")[0] == "restart"
    system = make_system(setup.system or ("gyges" if policy.transforms and not restarts else "fixed"), spec)
    if not setup.policy and setup.system:
        name = system.policy
        layout = layout_of(make_policy(name), devices)
        given = given or layout
    if make_policy(name).transforms and not restarts:
        _check_that_it_changes(system)
    lowest = system.degrees[0]
    given = given or (lowest,) * (devices // lowest)
    limits = BatchLimits(setup.max_batch_tokens, setup.max_seqs, setup.block_size or system.block_size)
    return Prepared(system, given, limits, name, facts_of(system, name, given, devices, limits, spec))


def _check_that_it_changes(system: System) -> None:
    """Raises the UserError of a system that cannot merge, before anything has been simulated."""
    lowest = system.degrees[0]
    for degree in system.degrees[1:]:
        if degree % lowest == 0:
            system.switch((lowest,) * (degree // lowest), (degree,), (0,) * (degree // lowest))
            return


def facts_of(
    system: System, policy: str, degrees: Sequence[int], devices: int, limits: BatchLimits, spec: SystemSpec
) -> dict[str, Any]:
    """What is assumed, for the manifest."""
    return {
        "system": system.name,
        "policy": policy,
        "instances": list(degrees),
        "devices": devices,
        "block_size": limits.block_size,
        "kv_tokens": {str(degree): system.kv_tokens[degree] for degree in system.degrees},
        "hardware": asdict(spec.hardware),
        "max_position": spec.model.max_position,
    }


def parse_kv_tokens(text: str) -> int | dict[int, int]:
    """``"4000"``, for each device, or ``"tp1=3750,tp2=41250"``, of an instance. Raises UserError."""
    try:
        if "=" not in text:
            found: int | dict[int, int] = int(text)
            least = found
        else:
            pairs = [part.split("=") for part in text.lower().split(",")]
            found = {int(degree.strip().removeprefix("tp")): int(tokens) for degree, tokens in pairs}
            least = min(found.values())
        if least < 1 or (isinstance(found, dict) and min(found) < 1):
            raise ValueError
    except ValueError:
        raise UserError(f"cannot read --kv-tokens {text!r}; write 4000 or tp1=3750,tp2=41250") from None
    return found


def coverage_notes(costs: Mapping[int, CostModel]) -> list[str]:
    """Of every source that counts how many steps lie beyond what it has measured."""
    notes = []
    for degree, cost in costs.items():
        share = cost.coverage()["extrapolated_share"] if hasattr(cost, "coverage") else 0.0
        if share and math.isfinite(share):
            notes.append(f"TP{degree}: {share:.1%} of the steps lie beyond the profile and are extrapolated")
    return notes
