"""The whole benchmark at toy scale: real engine, real transformers, real document."""

import io
import json
import os
import tempfile
from pathlib import Path

import pytest
from rich.console import Console

from cli.bench_peers import render
from gyges.bench.mixes import MIXES, Mix
from gyges.bench.plot import write_plot
from gyges.bench.run import PeersConfig, bench_peers

pytestmark = pytest.mark.engine

TOY_MIX = "toy"


@pytest.fixture(scope="module")
def document():
    if TOY_MIX not in MIXES:
        MIXES.add(TOY_MIX, Mix(prompt=(4, 40), output=(2, 12)))
    before = set(os.listdir(tempfile.gettempdir()))
    said: list[str] = []
    config = PeersConfig("tiny", (TOY_MIX,), requests=4, repeats=1, skip=("all-reduce", "start-up"))
    made = bench_peers(config, said.append)
    assert any("engine" in line for line in said)
    left = set(os.listdir(tempfile.gettempdir())) - before
    assert [name for name in left if name.startswith("gyges-bench-")] == []
    return made


def test_every_peer_has_figures_and_all_generate_the_same_tokens(document):
    peers = document["mixes"][TOY_MIX]["peers"]
    assert list(peers) == ["engine", "generate", "generate_batch"]
    for name, result in peers.items():
        assert result["error"] is None, f"{name}: {result['error']}"
        for figure in ("wall_s", "tokens_per_s", "share_of_floor"):
            assert 0 < result[figure]["min"] <= result[figure]["median"] <= result[figure]["max"]
        # fp32 on both sides; where two logits are closer than rounding a token may differ, not most of them.
        assert all(same["tokens"] > 0.9 for same in result["agreement_with"].values())
        assert len(result["agreement_with"]) == len(result["ratio_to"]) == 2
        assert document["peers"][name]["end"]["peak_rss_bytes"] > 1 << 20


def test_the_engine_tells_its_steps_and_overhead(document):
    (details,) = document["mixes"][TOY_MIX]["peers"]["engine"]["details"]
    assert details["steps"] >= document["mixes"][TOY_MIX]["cost"]["steps"]
    assert 0 < details["controller_overhead_per_step_s"] < 0.1
    assert 0 < details["worker_share_of_wall"] <= 1
    assert details["preemptions"] == 0


def test_rates_are_stated_before_and_after_every_round(document):
    (round_,) = document["rates"]["rounds"]
    for rates in (round_["before"], round_["after"]):
        assert rates["gemm_flops_per_s"] == max(rates["gemm_shapes"].values()) > 1e8
        assert rates["copy_bytes_per_s"] > 1e8


def test_the_document_is_plain_json_and_its_tables_fit_80_columns(document):
    json.dumps(document, allow_nan=False)
    assert all(goal["met"] in (True, False, None) for goal in document["goals"])
    console = Console(width=80, record=True, file=io.StringIO())
    render(console, spread_out(document))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    for word in ("this engine", "generate_batch", "% of floor", "met"):
        assert word in text


def spread_out(value):
    """The document as if its repeats had differed: a median with extremes takes the most room."""
    if isinstance(value, dict):
        wide = {"min": 0.5, "max": 1.5} if {"median", "min", "max"} <= set(value) else {}
        return {k: v * wide[k] if k in wide else spread_out(v) for k, v in value.items()}
    return [spread_out(each) for each in value] if isinstance(value, list) else value


def test_the_plot_is_written_as_png_and_svg(document, tmp_path: Path):
    png, svg = write_plot(tmp_path / "plots", document)
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "useful tokens/s" in svg.read_text() or "<path" in svg.read_text()
