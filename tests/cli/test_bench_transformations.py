"""``gyges bench run`` while instances merge and split: what it computes, what it records, what it survives.

Every run replays the same requests; its tokens must be those of an instance that is large enough and never changes.
"""

import functools
import json
import os
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from command import gyges as _gyges

import cli.bench_run
import cli.main
from gyges.engine.replay import Replayer
from gyges.metrics.results import different_outputs, load_manifest
from gyges.metrics.tables import read_requests, read_timeline

pytestmark = pytest.mark.engine

LONG = 1500  # tokens; a TP1 instance of this host holds 1,056
HOST = ["--model", "tiny", "--device-memory", "12MiB", "--threads", "1", "--devices", "4"]
SHORT = [(0.12 * i, 30 + 20 * (i % 4), 24 + 9 * (i % 5)) for i in range(26)]
ROWS = sorted([*SHORT, (0.5, LONG, 40)])


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    path = tmp_path_factory.mktemp("trace") / "trace.jsonl"
    path.write_text(
        "".join(json.dumps({"arrival_s": a, "prompt_tokens": p, "output_tokens": o}) + "\n" for a, p, o in ROWS)
    )
    return path


@pytest.fixture
def run(capfd, monkeypatch, tmp_path):
    def go(trace: Path, *options: str):
        folder = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        done = _gyges(capfd, monkeypatch, "bench", "run", "--trace", trace, "--out", folder, "--json", *options)
        assert done.code == 0, done.err
        assert done.document["requests"]["completed"] == done.document["requests"]["offered"]
        return done, folder

    return go


@pytest.fixture(scope="module")
def static(tmp_path_factory, trace):
    """The same requests on one instance that holds each of them, all at once."""
    folder = tmp_path_factory.mktemp("static") / "run"
    words = ["--trace", trace, "--model", "tiny", "--devices", "1", "--threads", "1", "--mode", "asap", "--out", folder]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["gyges", "bench", "run", *map(str, words)])
        with pytest.raises(SystemExit, match="0"):
            cli.main.run()
    return folder


def events_of(folder: Path):
    return read_timeline(folder / "timeline.parquet")[1]


def test_on_demand_merges_for_a_long_request_and_splits_after_it(run, trace, static):
    done, folder = run(trace, *HOST, "--scheduler", "on-demand", "--tp-degrees", "1,4")
    assert different_outputs(folder, static) == []
    events = events_of(folder)
    assert [(e.kind, e.before, e.after) for e in events[:2]] == [
        ("merge", (1, 1, 1, 1), (4,)),
        ("split", (4,), (1, 1, 1, 1)),
    ]
    for event in events:
        assert event.devices == (0, 1, 2, 3)
        assert 0 < event.asked_s <= event.start_s <= event.end_s
        assert event.overlap
        assert not event.error
    assert f"{LONG + 39} tokens" in events[0].cause
    assert sum(e.bytes_moved for e in events) > 0
    changes = done.document["transformations"]
    assert (changes["merges"], changes["splits"]) == (len(events[::2]), len(events[1::2]))
    assert changes["failed"] == 0
    assert changes["bytes_moved"] == sum(e.bytes_moved for e in events)
    samples, _ = read_timeline(folder / "timeline.parquet")
    assert {s.tp for s in samples} == {1, 4}
    manifest = load_manifest(folder)
    assert manifest["configuration"]["engine"]["tp_degrees"] == [1, 4]
    assert manifest["incidents"] == manifest["failed_transformations"] == manifest["by_hand"] == []
    assert "1 merge, 1 split" in done.err or len(events) > 2


def test_without_overlap_everything_happens_in_one_stop_and_the_tokens_are_the_same(run, trace, static):
    _, folder = run(trace, *HOST, "--scheduler", "on-demand", "--no-overlap", "--pages-per-step", "8")
    assert different_outputs(folder, static) == []
    events = events_of(folder)
    assert {e.kind for e in events} == {"merge", "split"}
    assert (events[0].before, events[0].after) == ((1, 1), (2,)), "TP2 is the least that holds it"
    assert not any(e.overlap for e in events)
    assert {e.steps for e in events} == {0}
    engine = load_manifest(folder)["configuration"]["engine"]
    assert (engine["overlap"], engine["pages_per_step"], engine["tp_degrees"]) == (False, 8, [1, 2, 4])


def test_by_hand_a_merge_a_split_and_one_that_makes_no_sense(run, trace, static):
    """A static scheduler; TP2 and TP4 hold the long request, and the host's degrees follow from the commands."""
    done, folder = run(
        trace, *HOST, "--instances", "tp2,tp1,tp1", "--transform", "0.4s split 0-3 tp2,tp1,tp1",
        "--transform", "0.2s merge 0-3", "--transform", "50ms split 2,3 tp1,tp1",
    )  # fmt: skip
    assert different_outputs(folder, static) == []
    manifest = load_manifest(folder)
    assert manifest["configuration"]["engine"]["tp_degrees"] == [1, 2, 4]
    nonsense, merge, split = manifest["by_hand"]
    assert [o["command"] for o in (merge, split)] == ["0.2s merge 0,1,2,3", "0.4s split 0,1,2,3 tp2,tp1,tp1"]
    assert (nonsense["state"], nonsense["attempts"]) == ("refused", 1)
    assert "cannot become" in nonsense["reason"]
    assert "refused: 0.05s split 2,3 tp1,tp1" in " ".join(done.err.split())
    assert [o["state"] for o in (merge, split)] == ["done", "done"]
    merged, parted = events_of(folder)
    assert (merged.before, merged.after) == ((2, 1, 1), (4,))
    assert (parted.before, parted.after) == ((4,), (2, 1, 1))
    assert 0.2 <= merged.asked_s <= merged.end_s <= parted.asked_s, "a command waits for the one before"
    assert (merged.start_s, merged.end_s) == (merge["start_s"], merge["end_s"])
    assert merged.cause == parted.cause == "by hand"
    assert done.document["transformations"]["merges"] == done.document["transformations"]["splits"] == 1


class Watching(Replayer):
    """Strikes a worker of a wide instance that has requests, once; keeps the token counts that the live view is given."""

    def __init__(self, engine, items, *, on_tick, **more):
        self.victim, self.counts = None, []

        def tick(progress):
            on_tick(progress)
            self.counts.append(progress.output_tokens)
            wide = [s for s in engine.status() if s.degree > 1 and s.running and not s.transforming]
            if wide and self.victim is None:
                self.victim = max(wide[0].devices)
                os.kill(engine.workers[self.victim].pid, signal.SIGKILL)

        super().__init__(engine, items, on_tick=tick, tick_s=0.01, **more)


def test_a_worker_killed_on_the_way_costs_no_request_and_the_manifest_says_so(run, trace, static, monkeypatch):
    made = []
    monkeypatch.setattr(cli.bench_run, "Replayer", lambda *a, **k: made.append(Watching(*a, **k)) or made[0])
    done, folder = run(trace, *HOST, "--scheduler", "on-demand")
    assert made[0].victim is not None
    assert different_outputs(folder, static) == []
    manifest = load_manifest(folder)
    assert manifest["state"] == "complete"
    (incident,) = manifest["incidents"]
    assert made[0].victim in incident["workers"]
    assert f"worker {made[0].victim} died (signal 9)" in incident["error"]
    assert incident["requeued"] >= 1
    assert incident["at_s"] > 0
    records = read_requests(folder / "requests.parquet")
    assert sum(r.preemptions for r in records) >= incident["requeued"]
    samples, _ = read_timeline(folder / "timeline.parquet")
    bare = {device for s in samples if not s.tp for device in s.devices}
    assert made[0].victim in bare, "the map shows that no instance has the device"
    assert "incident at" in done.err
    counts = made[0].counts
    assert counts == sorted(counts), "replaced instances must not make the count of tokens restart"
    assert counts[-1] <= sum(r.output_tokens for r in records)


def test_bad_combinations_are_refused_before_anything_starts(capfd, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    gyges = functools.partial(_gyges, capfd, monkeypatch, "bench", "run")
    for options, said in [
        (["--scheduler", "on-demand", "--devices", "1"], "--devices 2 and --tp-degrees 1,2"),
        (["--scheduler", "on-demand", "--devices", "4", "--tp-degrees", "1"], "--tp-degrees 1,2,4"),
        (["--transform", "5s merge 0,1", "--tp-degrees", "1"], "--tp-degrees 1,2"),
        (["--transform", "5s merge 0,7"], "--devices 8"),
        (["--transform", "5s merge"], "2 words"),
        (["--transform", "5s merge 0-2"], "TP degree 3 is impossible"),
        (["--pages-per-step", "-1"], "pages_per_step"),
    ]:
        done = gyges(*options)
        assert done.code == 2, done.err
        assert said in done.err
    assert not list(tmp_path.iterdir())
