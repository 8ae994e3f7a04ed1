"""An engine's configuration, simulated: what `gyges bench run` and `gyges bench ablation` do with ``--backend sim``.

On the CPU's hardware file it is the engine as it stands: its memory budget, pages, shards and KV capacity, to the page. On any
other the model runs on that card: the memory is the card's, pages are CUDA's, and the budget of a device in the configuration is
not looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gyges.config import EngineConfig
from gyges.errors import UserError
from gyges.scheduling.batching import BatchLimits
from gyges.scheduling.specification import layout_of, make_policy
from gyges.sim.hardware import load_hardware
from gyges.sim.models import sim_model
from gyges.sim.setup import Prepared, facts_of
from gyges.sim.simulation import MODES, Simulation
from gyges.sim.simulator import SimRequest
from gyges.sim.system import SystemSpec, make_system
from gyges.sim.systems.gyges import of_engine


def prepare_engine(config: EngineConfig, scheduler: str, simulation: Simulation) -> Prepared:
    """Raises UserError as the engine and :func:`gyges.sim.setup.prepare` do."""
    hardware, _ = load_hardware(simulation.hardware)
    model = sim_model(config.model, config.dtype)
    profile = Path(simulation.profile) if simulation.profile else None
    devices = config.num_devices
    if simulation.on_cpu:
        from gyges.engine.engine import Engine

        engine = Engine(config, scheduler)  # not started: only its sizes are of interest
        degrees = engine.placer.shape.degrees
        spec = SystemSpec(model, hardware, devices, simulation.cost, profile, degrees)
        system: Any = of_engine(engine.config, engine.placer.shape, spec)
        instances, block_size = engine.config.instances, engine.placement.block_size
    else:
        policy = make_policy(scheduler)
        instances = layout_of(policy, devices) or config.instances
        degrees = config.tp_degrees or (() if policy.transforms else tuple(sorted(set(instances))))
        spec = SystemSpec(model, hardware, devices, simulation.cost, profile, degrees)
        switches = {
            name: "on" if on else "off" for name, on in (("padding", config.padding), ("overlap", config.overlap))
        }
        options = {"layout": config.layout} | switches
        system = make_system("+".join(["gyges", *(f"{name}={value}" for name, value in options.items())]), spec)
        block_size = config.block_size or system.block_size
        if missing := set(instances) - set(system.degrees):
            raise UserError(
                f"{config.model} cannot run at TP{min(missing)} on {hardware.name}; its instances can take "
                f"{', '.join(f'TP{d}' for d in system.degrees)}: give --instances"
            )
    limits = BatchLimits(config.max_batch_tokens, config.max_seqs, block_size)
    facts = facts_of(system, scheduler, instances, devices, limits, spec) | {"cost": simulation.cost}
    return Prepared(system, tuple(instances), limits, scheduler, facts)


def requests_of(lengths: Sequence[tuple[float, int, int]], mode: str) -> tuple[list[SimRequest], list[int]]:
    """(arrival_s, prompt tokens, output tokens) of each request -> those in order of arrival, and the index of each.

    Raises UserError for a replay mode that needs a client's clock.
    """
    if mode not in MODES:
        raise UserError(f"the simulator replays {' or '.join(MODES)}, not {mode}; take the engine for a closed loop")
    if mode == "asap":
        lengths = [(0.0, prompt, output) for _, prompt, output in lengths]
    order = sorted(range(len(lengths)), key=lambda index: lengths[index][0])
    return [SimRequest(*lengths[index]) for index in order], order
