"""``gyges bench compare`` and ``gyges report`` as commands, on committed results."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from command import gyges

RESULTS = Path(__file__).parents[2] / "results"
RUN = RESULTS / "mixed-long-on-demand"


@pytest.mark.parametrize("width", ["80", "120"])
def test_a_run_against_itself_differs_in_nothing(capfd, monkeypatch, tmp_path, width):
    monkeypatch.setenv("COLUMNS", width)
    out = tmp_path / "out"
    done = gyges(capfd, monkeypatch, "bench", "compare", RUN, RUN, "--out", out, "--json")
    assert done.code == 0, done.err
    (found,) = done.document["comparisons"]
    assert found["requests"]["paired"] == 70
    for metric in found["metrics"].values():
        assert (metric["difference_s"]["value"], metric["slower"], metric["faster"]) == (0.0, 0, 0)
    assert json.loads((out / "compare.json").read_text())["metric"] == "e2e"
    assert max(map(len, done.err.split("results:")[0].splitlines()[2:])) <= int(width)


def test_traces_that_differ_end_with_what_to_do(capfd, monkeypatch, tmp_path):
    done = gyges(capfd, monkeypatch, "bench", "compare", RUN, RESULTS / "serve-default", "--out", tmp_path / "out")
    assert (done.code, "--any-trace" in done.err) == (2, True)
    assert not (tmp_path / "out").exists()


def test_a_report_of_a_committed_run_is_written_where_told(capfd, monkeypatch, tmp_path):
    done = gyges(capfd, monkeypatch, "report", RUN, "--out", tmp_path / "page.html", "--json")
    assert done.code == 0, done.err
    assert done.document == {"report": str(tmp_path / "page.html")}
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    assert gyges(capfd, monkeypatch, "report", RESULTS / "peers").code == 2
