"""Imports run one way, and what must be light stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# package -> project packages it may import (besides errors, registry, version, core, config)
ALLOWED = {
    "gyges/scheduling": {"gyges.scheduling", "gyges.kv_cache"},
    "gyges/kv_cache": {"gyges.kv_cache", "gyges.memory", "gyges.kernels"},
    "gyges/memory": {"gyges.memory"},
    "gyges/parallel": {"gyges.parallel", "gyges.memory", "gyges.kernels"},
    "gyges/kernels": {"gyges.kernels"},
    "gyges/models": {"gyges.models", "gyges.parallel", "gyges.kv_cache", "gyges.kernels", "gyges.memory"},
    "gyges/transform": {
        "gyges.transform",
        "gyges.kv_cache",
        "gyges.memory",
        "gyges.parallel",
        "gyges.kernels",
        "gyges.models",
    },
    "gyges/metrics": {"gyges.metrics"},
    "workloads": {"workloads"},
}
EVERYWHERE = {"gyges", "gyges.core", "gyges.config", "gyges.errors", "gyges.registry", "gyges.version"}


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return {name for name in names if name.split(".")[0] in ("gyges", "cli", "workloads")}


@pytest.mark.parametrize("package", ALLOWED)
def test_a_package_imports_only_what_lies_below_it(package):
    for path in (ROOT / package).rglob("*.py"):
        for name in imported(path) - EVERYWHERE:
            home = ".".join(name.split(".")[: 1 if name.startswith("workloads") else 2])
            assert home in ALLOWED[package], f"{path.relative_to(ROOT)} imports {name}"


def test_the_library_imports_neither_cli_nor_workloads():
    for path in (ROOT / "gyges").rglob("*.py"):
        for name in imported(path):
            assert name.split(".")[0] == "gyges", f"{path.relative_to(ROOT)} imports {name}"


def test_core_imports_no_sibling_but_errors():
    assert imported(ROOT / "gyges/core.py") == {"gyges.errors"}


TORCH_FREE = [
    "gyges.config", "gyges.core", "gyges.scheduling.batching", "gyges.scheduling.routing", "gyges.kv_cache.layouts",
    "gyges.kv_cache.blocks", "gyges.parallel.sharding", "gyges.parallel.weight_layout", "gyges.parallel.arena",
    "gyges.models.config", "gyges.models.hub", "gyges.models.resident", "gyges.transform.plan", "gyges.engine.placement",
    "gyges.engine.engine", "gyges.metrics.summary", "workloads",
    "gyges.sim.hardware", "gyges.sim.models", "gyges.sim.cost.sources", "gyges.sim.cost.analytic",
    "gyges.sim.cost.tables", "gyges.sim.cost.aic", "gyges.sim.validate", "gyges.sim.executors",
    "gyges.sim.setup", "gyges.sim.of_engine",
    "gyges.figures.catalogue",
]  # fmt: skip


def test_planning_and_control_need_no_torch():
    """The simulator runs where torch is not installed, and the controller process must not pay for it."""
    code = f"import sys, {', '.join(TORCH_FREE)}\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
