"""The ablation around its cells: what runs when, what is kept, and what the figures say."""

import csv
import io
import json
import math

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from cli.bench_ablation import ablation_command, render
from gyges.bench.ablation import engine
from gyges.bench.ablation.backend import CellError, CellTask
from gyges.bench.ablation.plot import write_plots
from gyges.bench.ablation.run import plan
from gyges.bench.ablation.table import columns, footnotes, latex, markdown, write_tables
from gyges.bench.ablation.work import read_work, write_work
from gyges.config import EngineConfig
from gyges.metrics.results import load_manifest

from .ablations import LENGTHS, config_of, make_work, run_made_up, the_backend


@pytest.fixture
def backend():
    yield the_backend()
    the_backend()


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    the_backend()
    root = tmp_path_factory.mktemp("ablation")
    return root, run_made_up(root, config_of())[1]


def by_name(document):
    return {cell["name"]: cell for cell in document["cells"]}


def test_repeats_are_interleaved(backend, tmp_path):
    run_made_up(tmp_path, config_of(kinds=("on", "off")))
    assert backend.ran == ["all on 1", "all off 1", "all on 2", "all off 2"]


def test_what_is_done_is_kept_and_what_changed_is_run_again(backend, tmp_path):
    run_made_up(tmp_path, config_of(kinds=("on", "off")))
    backend.ran = []
    run_made_up(tmp_path, config_of(kinds=("on", "off"), repeats=3))
    assert backend.ran == ["all on 3", "all off 3"]
    backend.ran = []
    run_made_up(tmp_path, config_of(kinds=("on", "off"), slo="ttft=9"))  # decides what counts, not what happens
    assert backend.ran == []
    other = config_of(kinds=("on", "off"))
    run_made_up(tmp_path, other, base=other.base.with_(max_seqs=7))
    assert len(backend.ran) == 4


def test_a_run_that_did_not_end_is_not_kept(backend, tmp_path):
    planned, _ = run_made_up(tmp_path, config_of(kinds=("on",), repeats=1))
    manifest = planned[0].folder(tmp_path, 1) / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"complete"', '"failed"'))
    backend.ran = []
    run_made_up(tmp_path, config_of(kinds=("on",), repeats=1))
    assert backend.ran == ["all on 1"]


def test_a_failed_cell_is_reported_and_the_others_go_on(backend, tmp_path):
    backend.broken = {"without layout"}
    _, document = run_made_up(tmp_path, config_of())
    cells = by_name(document)
    assert cells["without layout"]["repeats"] == []
    assert all(len(cell["repeats"]) == 2 for name, cell in cells.items() if name != "without layout")
    assert any("without layout" in note and "worker 1 died" in note for note in footnotes(document))
    assert "without layout *" in markdown(document)
    write_plots(tmp_path / "plots", document, tmp_path)


def test_a_replay_that_fell_behind_is_marked_invalid(backend, tmp_path):
    backend.late = {"all on 2"}
    _, document = run_made_up(tmp_path, config_of(kinds=("on", "off")))
    cells = by_name(document)
    assert (list(cells["all on"]["invalid"]), cells["all off"]["invalid"]) == (["2"], {})
    assert [note for note in footnotes(document) if "INVALID, repeat 2" in note and "fell behind" in note]
    assert "all on *" in markdown(document)


def test_an_engine_that_cannot_work_is_a_failed_cell_that_is_never_started(backend, tmp_path):
    _, document = run_made_up(tmp_path, config_of({"device-memory": ("1MiB", "16MiB")}, kinds=("on",)))
    cells = by_name(document)
    assert cells["device-memory=1MiB"]["error"]
    assert backend.ran == ["device-memory=16MiB 1", "device-memory=16MiB 2"]


def test_long_is_the_same_for_all_cells_that_are_compared():
    memories = {"device-memory": ("16MiB", "24MiB")}
    planned = plan(config_of(memories), make_work)
    limits = {(each.cell.environment["device-memory"], each.long_over) for each in planned}
    assert len(limits) == 2
    assert len({limit for _, limit in limits}) == 2
    # With one combination of toggles, these two are compared with each other.
    assert len({each.long_over for each in plan(config_of(memories, kinds=("on",)), make_work)}) == 1


def test_every_run_is_a_result_folder_that_says_how_it_came_about(done):
    root, document = done
    manifest = load_manifest(root / "cells" / "without-padding" / "r2")
    assert manifest["state"] == "complete"
    assert manifest["configuration"]["engine"]["padding"] is False
    assert manifest["ablation"]["key"] == by_name(document)["without padding"]["key"]
    assert manifest["command"] == "gyges bench ablation"


def test_changes_are_against_everything_off(done):
    cells = by_name(done[1])
    only = cells["only layout"]["figures"]["short_ttft_p50_s"]
    # First tokens of the three short requests after 0.1 s, or 0.05 s, + 0.01 s x repeat x place: median of six.
    assert only["value"] == pytest.approx(0.05 + (0.02 + 0.04) / 2, abs=0.011)
    assert only["change"]["difference"]["value"] == pytest.approx(-0.05)
    assert only["change"]["difference"]["low"] == pytest.approx(-0.05)
    assert only["change"]["difference"]["clear"]
    assert cells["all off"]["figures"]["short_ttft_p50_s"]["change"] is None
    assert cells["all off"]["reference"] is None
    difference = cells["only layout"]["per_request"]["ttft_s"]
    assert difference["requests"] == 3
    assert difference["difference"]["value"] == pytest.approx(-0.05)
    assert difference["slower"] == 0


def test_rejected_requests_stay_in_the_figures(done):
    cells = by_name(done[1])
    assert cells["all off"]["figures"]["not_completed"]["values"] == [1.0, 1.0]
    assert cells["all off"]["figures"]["long_ttft_p99_s"]["infinite"]
    assert cells["all off"]["figures"]["goodput"]["value"] == 0.0
    # With everything on: 0.05 + 0.01 x repeat x place within 0.085 s holds for three, then for one.
    assert cells["all on"]["figures"]["goodput"]["values"] == [0.75, 0.25]
    change = cells["all on"]["figures"]["long_ttft_p99_s"]["change"]["relative"]
    assert change["value"] == -1.0


def test_transformations_are_counted_with_what_they_took(done):
    figures = by_name(done[1])["all on"]["figures"]
    assert figures["transformations"]["value"] == 1.0
    assert figures["transformation_s"]["value"] == 0.25
    assert figures["pause_max_s"]["value"] == 0.03
    assert figures["extra_bytes_max"]["value"] == 1 << 20
    assert by_name(done[1])["all off"]["figures"]["pause_max_s"]["value"] is None


def test_tables_agree_with_the_document(done, tmp_path):
    document = done[1]
    write_tables(tmp_path, document)
    rows = list(csv.DictReader((tmp_path / "ablation.csv").open()))
    table = pq.read_table(tmp_path / "ablation.parquet").to_pylist()
    assert len(rows) == len(table) == len(document["cells"])
    for cell, text, row in zip(document["cells"], rows, table, strict=True):
        assert cell["name"] == text["cell"] == row["cell"]
        for key, figure in cell["figures"].items():
            value = math.inf if figure["infinite"] else figure["value"]
            assert row[key] == value
            assert (text[key] == "") if value is None else (float(text[key]) == value)
    lines = markdown(document).splitlines()
    assert {line.count("|") for line in lines[: 2 + len(rows)]} == {len(columns(document)) + 2}
    assert latex(document).count(r"\\") == 1 + len(rows)
    assert r"\%" in latex(document)


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_the_terminal_and_nothing_is_cut(done, width):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    render(console, done[1])
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for column in columns(done[1]):
        for value in column.text:
            assert value in text


def test_one_repeat_has_no_interval_where_it_tells_nothing(backend, tmp_path):
    _, document = run_made_up(tmp_path, config_of(kinds=("on", "off"), repeats=1))
    rate = by_name(document)["all on"]["figures"]["output_tokens_per_s"]
    assert rate["low"] is None
    assert rate["change"]["relative"]["low"] is None
    assert any("one repeat" in note for note in footnotes(document))


def test_every_plot_is_written(done, tmp_path):
    root, document = done
    names = {path.name for path in write_plots(tmp_path, document, root)}
    assert names == {f"{n}.{s}" for n in ("bars", "contributions", "latency_cdf", "timeline") for s in ("png", "svg")}


def test_cells_that_are_compared_with_nothing_share_a_plot(backend, tmp_path):
    _, document = run_made_up(tmp_path, config_of({"rate": ("1", "2")}, kinds=("on",), repeats=1))
    assert [cell["reference"] for cell in document["cells"]] == [None, None]
    names = {path.stem for path in write_plots(tmp_path / "plots", document, tmp_path)}
    assert names == {"bars", "latency_cdf", "timeline"}


def test_requests_come_back_from_their_file_as_they_were(tmp_path):
    items = make_work({}, None).items
    write_work(tmp_path / "work.parquet", items)
    assert read_work(tmp_path / "work.parquet") == list(items)
    assert len(items) == len(LENGTHS)


def test_ctrl_c_keeps_what_is_there_and_the_same_command_goes_on(backend, tmp_path):
    quiet = Console(file=io.StringIO())
    config, out = config_of(kinds=("on", "off")), tmp_path / "out"

    def go():
        return ablation_command(quiet, config=config, make_work=make_work, out=out, dry_run=False)

    backend.interrupted = "all off 2"
    partial = go()
    assert partial["state"] == "partial"
    assert load_manifest(out)["state"] == "partial"
    assert [cell["repeats"] for cell in json.loads((out / "ablation.json").read_text())["cells"]] == [[1, 2], [1]]
    backend.ran, backend.interrupted = [], ""
    whole = go()
    assert (whole["state"], backend.ran) == ("complete", ["all off 2"])


def test_an_ablation_of_which_every_cell_fails_has_failed(backend, tmp_path):
    backend.broken = {"all on", "all off"}
    config = config_of(kinds=("on", "off"))
    quiet = Console(file=io.StringIO())
    document = ablation_command(quiet, config=config, make_work=make_work, out=tmp_path / "out", dry_run=False)
    assert document["state"] == "failed"
    assert document["plots"] == []


@pytest.mark.parametrize(
    ("target", "scheduler", "said", "lasting"),
    [("os:abort", "llf", "exit code -6", False), (engine._TARGET, "no-such-scheduler", "gyges", True)],
)
def test_a_process_that_dies_or_refuses_is_a_failed_cell(monkeypatch, tmp_path, target, scheduler, said, lasting):
    monkeypatch.setattr(engine, "_TARGET", target)
    task = CellTask(
        EngineConfig(), scheduler, tmp_path / "work", tmp_path / "out", "open", 1, None, {}, {}, timeout_s=60.0
    )
    with pytest.raises(CellError, match=said) as found:
        engine.EngineBackend().run(task)
    assert found.value.lasting == lasting
