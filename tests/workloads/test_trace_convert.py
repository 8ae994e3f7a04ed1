"""What is written is read back equal, and the chain to the source does not break."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gyges.errors import UnknownNameError, UserError
from workloads import Provenance, Trace, TraceOptions, TraceRequest, load_trace
from workloads.convert import WRITERS, convert

MakeTrace = Callable[..., Trace]

hashed = st.tuples(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=5).map(tuple), st.integers(1, 4096))
words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


@st.composite
def requests(draw: st.DrawFn) -> TraceRequest:
    hashes, block = draw(st.one_of(st.just((None, None)), hashed))
    return TraceRequest(
        draw(st.floats(0, 1e9)),
        draw(st.integers(1, 10**9)),
        draw(st.integers(1, 10**9)),
        draw(st.one_of(st.none(), words)),
        hashes,
        block,
        draw(st.one_of(st.none(), words)),
    )


@pytest.mark.parametrize("container", WRITERS.names())
@settings(max_examples=60, deadline=None)
@given(rows=st.lists(requests(), min_size=1, max_size=6))
def test_a_converted_trace_reads_back_equal(container: str, rows: list[TraceRequest]) -> None:
    trace = Trace("t", tuple(sorted(rows, key=lambda row: row.arrival_s)), Provenance("t", "test", "0"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"t.{container}"
        manifest = convert(trace, path)
        back = load_trace(str(path))
    assert back.requests == trace.requests
    assert back.content_sha256 == trace.content_sha256 == manifest["content_sha256"]
    assert back.provenance.format == container
    assert back.provenance.sha256 == manifest["file_sha256"]


def test_the_provenance_survives_conversion_and_only_of_these_bytes(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    convert(load_trace("default", TraceOptions(limit=3, seed=5)), path)
    origin = load_trace(str(path)).provenance.details["converted_from"]
    assert origin["format"] == "synthetic"
    assert origin["details"]["seed"] == 5
    assert origin["transforms"][0]["name"] == "limit"
    path.write_bytes(path.read_bytes() + b"\n")
    assert "converted_from" not in load_trace(str(path)).provenance.details


def test_an_unwritable_output_leaves_nothing_behind(tmp_path: Path, make_trace: MakeTrace) -> None:
    with pytest.raises(UserError, match="no folder"):
        convert(make_trace((0.0, 1, 1)), tmp_path / "absent" / "t.csv")
    with pytest.raises(UnknownNameError, match="csv, jsonl, parquet"):
        convert(make_trace((0.0, 1, 1)), tmp_path / "t.xlsx")
    with pytest.raises(UserError, match="no character"):
        convert(make_trace(TraceRequest(0.0, 1, 1, text="\ud800")), tmp_path / "t.csv")
    assert list(tmp_path.iterdir()) == []


def test_the_manifest_is_json_beside_the_file(tmp_path: Path, make_trace: MakeTrace) -> None:
    manifest = convert(make_trace((0.5, 3, 4)), tmp_path / "data", "csv")
    assert json.loads((tmp_path / "data.manifest.json").read_text()) == manifest
    assert load_trace(str(tmp_path / "data")).requests[0].arrival_s == 0.5  # arrival_s is not shifted
