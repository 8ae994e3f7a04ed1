"""Made-up traces and the way to real ones."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from workloads.schema import Provenance, Trace, TraceRequest

MakeTrace = Callable[..., Trace]


@pytest.fixture(scope="session")
def shared_trace() -> Callable[[str], Path]:
    """The path of a real trace file, or a skip: they are data beside the checkout, not part of it."""

    def find(name: str) -> Path:
        shared = Path(os.environ.get("GYGES_SHARED") or Path(__file__).parents[2].parent / "shared")
        path = shared / "traces" / name
        if not path.is_file():
            pytest.skip(f"real trace {name} is not here; set GYGES_SHARED to the folder that holds traces/{name}")
        return path

    return find


@pytest.fixture(scope="session")
def make_trace() -> MakeTrace:
    """A trace from (arrival, prompt, output) triples or whole requests."""

    def make(*rows: tuple[float, int, int] | TraceRequest) -> Trace:
        requests = tuple(row if isinstance(row, TraceRequest) else TraceRequest(*row) for row in rows)
        return Trace("made", requests, Provenance(source="made", format="test", sha256="0" * 64))

    return make


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    """Write a small file and return its path."""

    def write_text(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8", newline="")
        return path

    return write_text
