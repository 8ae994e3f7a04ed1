"""The pause of a transformation is an ordinary step and what was measured of its like, whatever the run says it was."""

import json
from dataclasses import replace

import pytest

from gyges.config import EngineConfig
from gyges.engine.placement import Placer
from gyges.errors import UserError
from gyges.metrics.records import TimelineSample, TransformationEvent
from gyges.models.hub import resolve_model
from gyges.sim.pauses import PauseTable, compare_pauses

CONFIG = EngineConfig(model="tiny", instances=(1, 1), tp_degrees=(1, 2), device_memory=24 << 20)
TOKEN_BYTES = 2 * 4 * 4 * 16 * 4  # keys and values, layers, KV heads, head size, fp32
STEP_S = 0.005
MERGE = TransformationEvent("merge", (0, 1), 2.0, 2.1, before=(1, 1), after=(2,), overlap=False, pause_s=0.03)


class Flat:
    degree = 1

    def step_s(self, shape):
        assert shape.decodes == shape.sampled > 0
        return STEP_S


@pytest.fixture(scope="module")
def host():
    config = resolve_model("tiny", weights=False).config
    return Placer(CONFIG, config, config.geometry("float32")).shape


def write_bench(folder, **changes):
    points = {0: 0.010, 1_000_000: 0.020, 2_000_000: 0.040}
    cells = [
        {
            "layout": "shard-pages",
            "padding": True,
            "kind": "merge",
            "overlap": False,
            "kv_peer_bytes": {"median": moved},
            "weights_peer_bytes": {"median": 0},
            "pause_s": {"median": pause},
            **changes,
        }
        for moved, pause in points.items()
    ]
    folder.mkdir(exist_ok=True)
    models = [{"model": "tiny", "degree": 2, "cells": cells}]
    (folder / "transform.json").write_text(json.dumps({"pause": {"models": models}}))
    return folder


def sample(t_s, device, blocks, running=3):
    return TimelineSample(t_s, f"i{device}", (device,), 1, running, 0, blocks, 400)


def test_a_pause_is_a_step_and_what_was_measured_for_as_many_bytes(tmp_path, host):
    table = PauseTable.read([write_bench(tmp_path / "t")], CONFIG, 2)
    # Half of what two TP1 instances hold has to cross: 1,500,000 bytes or so, between two measured points.
    blocks = 1_500_000 // (TOKEN_BYTES * host.block_size)
    samples = [sample(1.9, 0, blocks), sample(1.9, 1, blocks), sample(2.05, 0, 1), sample(0.5, 1, 1)]
    document = compare_pauses([MERGE], samples, host, {1: Flat()}, table)
    (row,) = document["transformations"]
    moved = blocks * host.block_size * TOKEN_BYTES
    assert row["bytes"]["simulated"] == moved
    expected = STEP_S + 0.020 + 0.020 * (moved - 1_000_000) / 1_000_000
    assert row["pause_s"]["simulated"] == pytest.approx(expected)
    assert row["pause_s"]["error"] == pytest.approx(expected / 0.03 - 1)
    assert document["goals"]["merge"]["met"] == (abs(expected / 0.03 - 1) <= 0.2)


def test_the_price_does_not_depend_on_the_measured_pause_and_the_mean_counts(tmp_path, host):
    table = PauseTable.read([write_bench(tmp_path / "t")], CONFIG, 2)
    samples = [sample(1.0, device, 10) for device in (0, 1)]
    events = [replace(MERGE, pause_s=pause) for pause in (0.01, 0.03)]
    document = compare_pauses(events, samples, host, {1: Flat()}, table)
    assert len({row["pause_s"]["simulated"] for row in document["transformations"]}) == 1
    assert document["pauses"]["merge"]["measured"] == pytest.approx(0.02)
    assert document["pauses"]["merge"]["count"] == 2


def test_what_nobody_noticed_is_left_out_and_counted(tmp_path, host):
    table = PauseTable.read([write_bench(tmp_path / "t")], CONFIG, 2)
    idle = [sample(1.0, device, 0, running=0) for device in (0, 1)]
    broken = replace(MERGE, error="a worker died")
    for event, samples in (
        (MERGE, idle),
        (broken, [sample(1.0, 0, 9)]),
        (replace(MERGE, pause_s=0.0), [sample(1.0, 0, 9)]),
    ):
        document = compare_pauses([event], samples, host, {1: Flat()}, table)
        assert (document["unseen"], document["pauses"]) == (1, {})


def test_what_was_not_measured_is_named_with_its_remedy(tmp_path, host):
    with pytest.raises(
        UserError, match=r"has tiny TP2.*--parts pause --pause-models tiny --layouts shard-pages --degrees 4"
    ):
        PauseTable.read([write_bench(tmp_path / "t")], CONFIG, 4)
    with pytest.raises(UserError, match="padding on"):
        PauseTable.read([write_bench(tmp_path / "t", padding=False)], CONFIG, 2)
    with pytest.raises(UserError, match="not a result folder of gyges bench transform"):
        PauseTable.read([tmp_path / "nothing"], CONFIG, 2)
    table = PauseTable.read([write_bench(tmp_path / "t")], CONFIG, 2)
    with pytest.raises(UserError, match="no split was measured with the overlap on"):
        table.pause_s("split", True, 0)


def test_of_several_measurements_the_mean_counts_and_each_has_its_own_bytes(tmp_path):
    first = write_bench(tmp_path / "first")
    cell = {"pause_s": {"median": 0.05}, "kv_peer_bytes": {"median": 500_000}}  # its only point: the same for any bytes
    last = write_bench(tmp_path / "last", **cell)
    table = PauseTable.read([first, last], CONFIG, 2)
    assert table.pause_s("merge", False, 500_000) == pytest.approx((0.015 + 0.05) / 2)
    assert table.pause_s("merge", False, 2_000_000) == pytest.approx((0.040 + 0.05) / 2)


def test_a_kind_that_one_of_several_measurements_lacks_is_refused(tmp_path):
    folders = [write_bench(tmp_path / "both"), write_bench(tmp_path / "one", kind="split")]
    table = PauseTable.read(folders, CONFIG, 2)
    for kind in ("merge", "split"):
        with pytest.raises(UserError, match=f"no {kind} was measured"):
            table.pause_s(kind, False, 0)
