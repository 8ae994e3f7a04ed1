"""Who runs a benchmark, once, for every command that can be measured or simulated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from gyges.errors import UserError
from gyges.sim.simulation import CPU, Simulation

_PANEL = "Simulating instead of measuring"


def _option(*names: str, help: str, **more: Any) -> Any:
    return typer.Option(*names, rich_help_panel=_PANEL, help=help, **more)


@dataclass(frozen=True, slots=True)
class Runner:
    """``backend``: by name.   simulation: what it has to assume if it simulates."""

    backend: str
    simulation: Simulation


def build_runner(
    *,
    backend: Annotated[
        str, _option("--backend", help="engine, or sim: the same scheduler and batching, simulated.")
    ] = ("engine"),
    hardware: Annotated[
        str,
        _option(
            "--hardware",
            metavar="NAME|FILE",
            help="Of each device. cpu: this engine's own; h20, ...: memory and pages of that card.",
        ),
    ] = CPU,
    cost: Annotated[str, _option("--cost", help="Step times: analytic, tables (with --profile), aic.")] = "analytic",
    profile: Annotated[
        str | None, _option("--profile", metavar="DIR", help="Operator times, for --cost tables.")
    ] = None,
) -> Runner:
    """Raises UserError for options that the backend does not look at."""
    simulation = Simulation(hardware, cost, profile)
    if backend == "engine" and simulation != Simulation():
        raise UserError("--hardware, --cost and --profile are of a simulation; add --backend sim")
    return Runner(backend, simulation)
