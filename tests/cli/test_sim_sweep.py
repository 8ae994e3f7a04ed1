"""gyges sim sweep: the same cells whoever runs them, and nothing is run twice."""

import json

import pytest
from command import gyges

from cli import sim_sweep
from gyges.errors import EngineError

TRACE = ("--trace", "synthetic:poisson?rate=4&prompt=300&output=20&duration=5", "--hardware", "h20x2")


class Here:
    """Runs the cells in this process; ``after``: loses the process after so many."""

    def __init__(self, after=None):
        self.ran, self.after = [], after

    def run(self, run_cell, cells):
        for index, cell in enumerate(cells):
            if self.after == len(self.ran):
                raise EngineError("a process of the sweep died")
            self.ran.append(cell)
            yield index, run_cell(cell)


@pytest.fixture
def sweep(monkeypatch, tmp_path):
    from rich.console import Console

    monkeypatch.setattr("gyges.metrics.plots.write_plots", lambda *args, **more: [])  # most of a short run's time

    def run(executor, *sets, rest=TRACE, out=tmp_path / "sweep"):
        return sim_sweep.sweep_command(Console(stderr=True), sets, rest, executor, out)

    return run


@pytest.mark.engine
def test_two_processes_come_to_what_one_comes_to_and_the_folders_are_those_of_runs(sweep, tmp_path, capfd, monkeypatch):
    arguments = ("--jobs", "2", "--out", tmp_path / "two")
    two = gyges(capfd, monkeypatch, "sim", "sweep", *TRACE, "--set", "policy=static,static:tp2", *arguments, "--json")
    assert two.code == 0, two.err
    one = sweep(Here(), "policy=static,static:tp2")
    assert one["cells"] == two.document["cells"] == json.loads((tmp_path / "two" / "sweep.json").read_text())["cells"]
    assert [cell["settings"]["policy"] for cell in two.document["cells"]] == ["static", "static:tp2"]
    for cell in two.document["cells"]:
        assert cell["figures"]["completed"] == cell["figures"]["offered"] > 10
        summary = json.loads((tmp_path / "two" / cell["folder"] / "summary.json").read_text())
        assert summary["requests"]["completed"] == cell["figures"]["completed"]
        assert (tmp_path / "two" / cell["folder"] / "plots" / "latency_cdf.png").is_file()


def test_a_sweep_that_broke_goes_on_where_it_was_and_runs_nothing_twice(sweep):
    sets = ("policy=static,static:tp2", "limit=5,6")
    first = Here(after=3)
    with pytest.raises(EngineError):
        sweep(first, *sets)
    second = Here()
    document = sweep(second, *sets)
    assert (len(first.ran), len(second.ran)) == (3, 1)
    assert [cell["figures"]["completed"] for cell in document["cells"]] == [5, 6, 5, 6]
    third = Here()
    assert sweep(third, "policy=static,static:tp2", "limit=5,6,7")["state"] == "complete"
    assert len(third.ran) == 2  # the new value, with both policies


def test_a_trace_that_changed_is_another_cell(sweep, tmp_path):
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n0,100,5\n")
    rest = ("--trace", str(trace), "--hardware", "h20")
    sweep(Here(), "policy=static", rest=rest)
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n0,100,5\n1,100,5\n")
    again = Here()
    document = sweep(again, "policy=static", rest=rest)
    assert len(again.ran) == 1
    assert document["cells"][0]["figures"]["offered"] == 2


def test_a_cell_that_cannot_be_run_says_why_and_the_others_go_on(sweep):
    document = sweep(Here(), "kv-tokens=10,1000", "limit=3")
    assert [bool(cell["error"]) for cell in document["cells"]] == [True, False]
    assert "less than one block of 16" in document["cells"][0]["error"]
    assert document["state"] == "complete"


@pytest.mark.parametrize(
    ("sets", "rest", "said"),
    [
        ((), (), "nothing varies"),
        (("policy",), (), "write for example --set policy=static,gyges"),
        (("polcy=static",), (), "policy"),
        (("out=a,b",), (), "unknown option of gyges sim run"),
        (("policy=static,static",), (), "twice"),
        (("policy=static",), ("--nonsense", "1"), "--nonsense"),
        (("max-seqs=many",), (), "--max-seqs"),
    ],
)
def test_what_gyges_sim_run_does_not_know_is_refused_before_anything_runs(
    tmp_path, capfd, monkeypatch, sets, rest, said
):
    chosen = [part for each in sets for part in ("--set", each)]
    outcome = gyges(capfd, monkeypatch, "sim", "sweep", *chosen, *rest, "--out", tmp_path / "out")
    assert outcome.code == 2
    assert said in " ".join(outcome.err.split())
    assert not (tmp_path / "out").exists()
