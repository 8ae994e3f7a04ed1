"""The whole benchmark at toy scale: real processes, real engines, a real document."""

import csv
import io
import json
import os
import tempfile
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from cli.bench_transform import degrees, percentages, render
from gyges.bench.transform.micro import PARTS, REST, find_cell
from gyges.bench.transform.plot import write_plots
from gyges.bench.transform.rows import columns, to_csv
from gyges.bench.transform.run import QUICK, TransformConfig, bench_transform, goals
from gyges.errors import UnknownNameError, UserError

CONFIG = TransformConfig(
    models=("tiny",),
    gemm_models=("tiny",),
    layouts=("token-first", "shard-pages"),
    pause_layouts=("shard-pages",),
    fills=(0.3, 0.6),
    degrees=(2,),
    repeats=1,
    device_memory=10 << 20,
    pause_memory=14 << 20,
    copy_bytes=1 << 20,
    gemm_rows=(1,),
    gemm_s=0.01,
)


@pytest.fixture(scope="module")
def document():
    before = set(psutil.Process().children(recursive=True))
    said: list[str] = []
    made = bench_transform(CONFIG, said.append)
    assert {line.split(":")[0] for line in said} == {"micro", "pause", "padding"}
    assert set(psutil.Process().children(recursive=True)) <= before, "no process is left"
    assert [name for name in os.listdir(tempfile.gettempdir()) if name.startswith("gyges-bench-transform")] == []
    return made


@pytest.mark.engine
def test_every_combination_has_a_cell_with_what_moved(document):
    (model,) = document["micro"]["models"]
    assert len(model["cells"]) == 2 * 2 * 2 * 2, "layouts x padding x fills x kinds"
    for cell in model["cells"]:
        assert len(cell["total_s"]["values"]) == 1
        assert set(cell["parts"]) == {*PARTS, REST}
        assert cell["kv_moved_bytes"] == cell["kv_bytes"] // 2
        copied = cell["weights_moved_bytes"] + cell["weights_local_bytes"]
        assert (copied == 0) == (cell["padding"] and cell["kind"] == "merge")
        assert (cell["kv_compacted_bytes"] > 0) == (cell["layout"] == "token-first")
        if cell["layout"] == "shard-pages":
            assert cell["kv_descriptors"] == cell["moved_pairs"]
    low, high = (find_cell(model, layout="shard-pages", padding=True, kind="merge", fill=f) for f in (0.3, 0.6))
    assert 1.8 < high["kv_bytes"] / low["kv_bytes"] < 2.2


@pytest.mark.engine
def test_pauses_are_measured_with_the_overlap_and_without_and_tokens_are_the_same(document):
    (result,) = document["pause"]["models"]
    assert [engine["error"] for engine in result["engines"]] == [None, None]
    assert len(result["cells"]) == 2 * 2 * 2 * 2, "padding x fills x overlap x kinds"
    for cell in result["cells"]:
        assert len(cell["max_gap_s"]["values"]) == 1
        before, longest, pause = (cell[name]["max"] for name in ("before_gap_s", "max_gap_s", "pause_s"))
        assert min(before, longest) > 0
        assert pause == max(0.0, longest - before), "of one repeat"
        if cell["kind"] == "merge":
            assert abs(cell["fill"]["median"] - cell["asked_fill"]) < 0.1
        if not cell["overlap"]:
            assert cell["steps"]["max"] == cell["during_tokens_per_s"]["max"] == 0
        assert cell["kv_peer_bytes"]["min"] > 0
    assert all(engine["preemptions"] == 0 for engine in result["engines"])
    assert result["same_tokens"]["tokens"] > 0.9  # two logits may be closer than rounding


@pytest.mark.engine
def test_padding_is_reported_and_changes_no_result(document):
    padding = document["padding"]
    assert {each["model"] for each in padding["memory"]} == {"llama2-7b", "llama3-8b", "qwen2.5-32b", "qwen3-32b"}
    (measured,) = padding["gemm"]
    assert measured["same_result"]
    assert measured["slowdown"]["min"] <= measured["slowdown"]["median"] <= measured["slowdown"]["max"]


@pytest.mark.engine
def test_the_document_is_plain_json_and_a_table_of_all_cells(document):
    json.dumps(document, allow_nan=False)
    rows = list(csv.DictReader(io.StringIO(to_csv(document))))
    assert list(rows[0]) == columns()
    assert len(rows) == 16 + 16 + len(document["padding"]["memory"]) + 1
    by_part = {part: [row for row in rows if row["part"] == part] for part in ("micro", "pause", "padding")}
    assert all(row["kv_s"] and row["layout"] and row["part_copy_s"] for row in by_part["micro"])
    assert all(float(row["max_gap_s_min"]) <= float(row["max_gap_s"]) for row in by_part["pause"])


@pytest.mark.engine
def test_goals_are_judged_by_the_worst_model(document):
    found = {goal["name"]: goal for goal in document["goals"]}
    assert found["FFN bytes copied, merge, padded"]["met"] is True
    assert found["KV: copies per (block, shard)"]["met"] is True
    assert found["KV: header-centric / token-first"]["met"] is None, "it was not measured"
    assert found["same tokens in all cells"]["where"] == "tiny"
    (model,) = document["micro"]["models"]
    worse = json.loads(json.dumps(model)) | {"model": "small"}
    for cell in worse["cells"]:
        cell["kv_descriptors"] *= 3
    changed = document | {"micro": {"models": [model, worse]}}
    (goal,) = [goal for goal in goals(changed) if goal["name"] == "KV: copies per (block, shard)"]
    assert (goal["reached"], goal["where"], goal["met"]) == (3.0, "small", False)
    assert goal["each"]["tiny"]["median"] == 1.0


@pytest.mark.engine
def test_its_tables_fit_80_columns(document):
    console = Console(width=80, record=True, file=io.StringIO())
    render(console, widened(document))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    for word in ("token-first", "shard-pages", "memcpy", "overlap", "llama2-7b", "met"):
        assert word in text


def widened(value):
    """The document as if on a slow machine whose repeats differ: figures that take the most room."""
    if isinstance(value, dict):
        if {"median", "min", "max"} <= set(value):
            return value | {"median": 1.234, "min": 0.1111, "max": 22.22}
        return {k: 123_456_789 if k == "kv_descriptors" else widened(v) for k, v in value.items()}
    return [widened(each) for each in value] if isinstance(value, list) else value


@pytest.mark.engine
def test_plots_are_written_as_png_and_svg(document, tmp_path: Path):
    written = write_plots(tmp_path / "plots", document)
    names = {path.name for path in written}
    assert names == {f"{n}.{s}" for n in ("parts-tiny", "fill", "pause-tiny") for s in ("png", "svg")}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written if path.suffix == ".png")


def test_a_document_of_one_part_has_no_figures_of_the_others(tmp_path: Path):
    empty = {"micro": None, "pause": None, "padding": None}
    assert goals(empty) == []
    assert to_csv(empty).count("\n") == 1
    assert write_plots(tmp_path / "plots", empty) == []
    assert not (tmp_path / "plots").exists()


def test_what_cannot_be_measured_is_refused_before_anything_starts():
    with pytest.raises(UnknownNameError, match=r"unknown model shape 'gpt'; known: .*llama2-7b"):
        TransformConfig(models=("gpt",))
    with pytest.raises(UnknownNameError, match="unknown part 'all'; known: micro, padding, pause"):
        TransformConfig(parts=("all",))
    with pytest.raises(UserError, match="above 0 and up to 100"):
        TransformConfig(fills=(1.5,))
    with pytest.raises(UserError, match="at least 2"):
        TransformConfig(degrees=(1,))
    with pytest.raises(UserError, match="give --fills of 92 or less"):
        bench_transform(TransformConfig(fills=(1.0,), parts=("pause",)), print)
    with pytest.raises(UserError, match="small cannot be merged to TP5"):
        bench_transform(TransformConfig(models=("small",), degrees=(5,), parts=("micro",)), print)
    with pytest.raises(UserError, match="write for example 10,50,90"):
        percentages("ten")
    with pytest.raises(UserError, match="write for example 2,4"):
        degrees("TP4")
    assert (percentages("90, 10"), degrees("4,2")) == ((0.1, 0.9), (2, 4))
    TransformConfig(**QUICK)
