"""From what a user asks for to a simulator: hardware, model, system, policy, instances. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gyges.config import format_instances, parse_instances
from gyges.errors import UserError
from gyges.scheduling.batching import BatchLimits
from gyges.scheduling.routing import RoutingPolicy
from gyges.scheduling.specification import layout_of, make_policy
from gyges.sim.cluster.cluster import Cluster
from gyges.sim.cluster.failures import Failure, parse_failure
from gyges.sim.cluster.host import ClusterHost
from gyges.sim.cluster.routers import make_router
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
    block_size: 0: what the system wants.   hosts: of this hardware each, behind a router (gyges.sim.cluster.routers), which says
    nothing where there is one.   failures: "120s:host3" (gyges.sim.cluster.failures).
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
    hosts: int = 1
    router: str = "least-loaded"
    failures: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a host, and a cluster of such hosts, is made of. ``facts``: for the manifest."""

    system: System
    degrees: tuple[int, ...]
    limits: BatchLimits
    policy: str
    facts: Mapping[str, Any]
    hosts: int = 1
    router: str = ""
    failures: tuple[Failure, ...] = ()

    def make_policy(self) -> RoutingPolicy:
        """A new one: a policy has memory, and serves one host."""
        return make_policy(self.policy)

    def simulator(self) -> Simulator:
        """Raises UserError for what cannot be simulated together."""
        if self.hosts == 1 and not self.failures:
            return Simulator.of(self.system, self.degrees, self.limits, self.make_policy())
        hosts = [
            ClusterHost(self.system, self.degrees, self.limits, self.make_policy(), index)
            for index in range(self.hosts)
        ]
        return Simulator(hosts, Cluster(hosts, make_router(self.router), self.failures))

    def notes(self) -> list[str]:
        """What a reader must know after a run: steps beyond what a source of step times has measured."""
        return coverage_notes(self.system.costs)


def prepare(setup: SimSetup) -> Prepared:
    """Raises UserError for what does not go together, and for what a file, a model or a source lacks."""
    hardware, devices = load_hardware(setup.hardware)
    model = sim_model(setup.model, setup.dtype)
    name = setup.policy or ("" if setup.system else "static")  # "": the system says
    degrees = _instances(setup, name, hardware.name, devices)
    standing = bool(name) and not make_policy(name).transforms
    needed = setup.tp_degrees or (tuple(sorted(set(degrees))) if standing else ())
    spec = SystemSpec(model, hardware, devices, setup.cost, setup.profile, needed, setup.kv_tokens)
    if standing and not degrees:
        degrees = _all_of(spec.fitting[0], devices)
        spec = replace(spec, degrees=degrees[:1])
    system = make_system(setup.system or _default_system(name), spec)
    name = name or system.policy
    if make_policy(name).transforms and not _restarts(name):
        _check_that_it_changes(system)
    degrees = degrees or _instances(setup, name, hardware.name, devices) or _all_of(system.degrees[0], devices)
    limits = BatchLimits(setup.max_batch_tokens, setup.max_seqs, setup.block_size or system.block_size)
    if setup.hosts < 1:
        raise UserError(f"a cluster has at least one host, got {setup.hosts}")
    make_router(setup.router)
    failures = tuple(parse_failure(text) for text in setup.failures)
    facts = facts_of(system, name, degrees, devices, limits, spec)
    if setup.hosts > 1 or failures:
        facts |= {"hosts": setup.hosts, "router": setup.router, "failures": [str(failure) for failure in failures]}
    return Prepared(system, degrees, limits, name, facts, setup.hosts, setup.router, failures)


def _instances(setup: SimSetup, policy: str, hardware: str, devices: int) -> tuple[int, ...]:
    """TP degrees that the policy or the user says; empty: nobody does."""
    layout = layout_of(make_policy(policy), devices) if policy else ()
    if layout and setup.instances:
        raise UserError(f"{policy} and --instances both say which instances there are; give one of them")
    degrees = layout or (parse_instances(setup.instances) if setup.instances else ())
    if sum(degrees) > devices:
        raise UserError(
            f"{format_instances(degrees)} take {sum(degrees)} devices, and {setup.hardware} has {devices}; "
            f"write --hardware {hardware}x{sum(degrees)} for more"
        )
    return degrees


def _all_of(degree: int, devices: int) -> tuple[int, ...]:
    return (degree,) * (devices // degree)


def _restarts(policy: str) -> bool:
    return policy.partition("+")[0] == "restart"


def _default_system(policy: str) -> str:
    return "gyges" if make_policy(policy).transforms and not _restarts(policy) else "fixed"


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
