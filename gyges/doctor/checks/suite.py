"""Parts of the project's own test suite as checks. On a machine with a GPU the same files test the kernels and the pool on it.

pytest runs in this process, which is the check's own: what ends the check at its deadline ends the tests with it.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[3]


def can_run_tests() -> str:
    """Why not, or ""."""
    if not (_ROOT / "tests" / "memory").is_dir():
        return "needs a checkout of the project: the tests are not part of the installed package"
    missing = [name for name in ("pytest", "pytest_timeout", "hypothesis") if importlib.util.find_spec(name) is None]
    return f"needs {', '.join(missing)}" if missing else ""


def memory() -> dict[str, Any]:
    # The programs of a transformation are messages.
    programs = ["tests/transform/test_device.py"] if importlib.util.find_spec("msgspec") else []
    return run("tests/memory", *programs)


def kernels() -> dict[str, Any]:
    return run("tests/kernels")


class _Counted:
    """A pytest plugin: how many tests ended how, and the first failure in full."""

    def __init__(self) -> None:
        self.counts = {"passed": 0, "failed": 0, "skipped": 0}
        self.first = ""

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.counts[report.outcome] += 1
        if report.failed and not self.first:
            self.first = f"{report.nodeid}\n{report.longreprtext}"

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed and not self.first:
            self.first = f"{report.nodeid}\n{report.longrepr}"


def run(*paths: str, root: Path = _ROOT) -> dict[str, Any]:
    """Raises AssertionError with the first failure if a test failed, or none ran."""
    import pytest

    os.chdir(root)
    counted = _Counted()
    code = pytest.main(["-q", "-p", "no:cacheprovider", *paths], plugins=[counted])
    if code != pytest.ExitCode.OK:
        raise AssertionError(f"pytest ended with {pytest.ExitCode(code).name} ({counted.counts}): {counted.first}")
    said = ", ".join(f"{count} {what}" for what, count in counted.counts.items() if count)
    return {"figures": counted.counts, "summary": f"{said} in {', '.join(paths)}"}
