"""The interchangeable sources of step times, by name. An extension is one file plus one ``register`` here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gyges.errors import UserError
from gyges.registry import Registry
from gyges.sim.cost.base import CostModel
from gyges.sim.hardware import Hardware
from gyges.sim.models import SimModel


@dataclass(frozen=True, slots=True)
class CostSpec:
    """What a source is asked for. ``profile``: folder of a bundle, for sources that read one."""

    model: SimModel
    hardware: Hardware
    degree: int = 1
    profile: Path | None = None


COST_SOURCES: Registry[Callable[[CostSpec], CostModel]] = Registry("cost source")


@COST_SOURCES.register("analytic")
def _analytic(spec: CostSpec) -> CostModel:
    from gyges.sim.cost.analytic import AnalyticCost

    return AnalyticCost(spec.model, spec.hardware, spec.degree)


@COST_SOURCES.register("tables")
def _tables(spec: CostSpec) -> CostModel:
    from gyges.sim.cost.bundle import read_bundle
    from gyges.sim.cost.tables import TableCost

    if spec.profile is None:
        raise UserError(
            "the cost source 'tables' reads a bundle of measured operators; give its folder with --profile DIR"
        )
    return TableCost(read_bundle(spec.profile), spec.model.geometry, spec.degree, spec.hardware)


@COST_SOURCES.register("aic")
def _aic(spec: CostSpec) -> CostModel:
    from gyges.sim.cost.aic import AicCost

    return AicCost(spec.model, spec.hardware, spec.degree)


def cost_model(source: str, spec: CostSpec) -> CostModel:
    """Raises UnknownNameError for a source that is not registered, UserError for what the source lacks."""
    return COST_SOURCES.get(source)(spec)
