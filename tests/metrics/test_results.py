"""The result folder: refused early, written atomically, truthful about how the run ended."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple

import pytest

from gyges.errors import UserError
from gyges.metrics import atomic
from gyges.metrics.manifest import git_state
from gyges.metrics.records import TokensHasher
from gyges.metrics.results import ResultFolder, different_outputs, load_manifest
from gyges.metrics.summary import summarize
from gyges.metrics.tables import read_requests, read_timeline

from .factory import busy_run, lost, request

Usage = namedtuple("Usage", "total used free")


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def fill_disk(monkeypatch):
    def replace(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", replace)


def test_parquet_gives_back_what_was_put_in(tmp_path):
    records, samples, events = busy_run(requests=30)
    with ResultFolder.create(tmp_path / "out") as folder:
        folder.save(records, samples, events, summarize(records, samples, events))
    assert read_requests(tmp_path / "out/requests.parquet") == records
    assert read_timeline(tmp_path / "out/timeline.parquet") == (samples, events)
    assert json.loads((tmp_path / "out/summary.json").read_text())["requests"]["offered"] == 30
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "manifest.json",
        "requests.parquet",
        "summary.json",
        "timeline.parquet",
    ]


def test_files_of_before_a_field_existed_are_read_with_its_default(tmp_path):
    import pyarrow.parquet as pq

    records, samples, events = busy_run(requests=5)
    with ResultFolder.create(tmp_path / "out") as folder:
        folder.save(records, samples, events, {})
    newer = {
        "requests": ["tokens_digest"],
        "timeline": ["asked_s", "before", "after", "overlap", "stopped", "steps", "tokens", "error"],
    }
    for name, columns in newer.items():
        path = tmp_path / f"out/{name}.parquet"
        pq.write_table(pq.read_table(path).drop_columns(columns), path)
    assert read_requests(tmp_path / "out/requests.parquet") == records
    old_samples, old_events = read_timeline(tmp_path / "out/timeline.parquet")
    assert old_samples == samples
    for old, new in zip(old_events, events, strict=True):
        assert (old.kind, old.start_s, old.bytes_moved, old.cause) == (
            new.kind,
            new.start_s,
            new.bytes_moved,
            new.cause,
        )
        assert (old.asked_s, old.before, old.overlap, old.steps, old.error) == (None, (), True, 0, "")


def digest(*tokens):
    hasher = TokensHasher()
    hasher.update(tokens)
    return hasher.hexdigest()


def saved(path, records):
    with ResultFolder.create(path) as folder:
        folder.save(records, [], [], {})
    return path


def test_the_requests_whose_tokens_two_runs_disagree_on_are_named(tmp_path):
    pieces = TokensHasher()
    pieces.update([1, 2])
    pieces.update([3])
    assert pieces.hexdigest() == digest(1, 2, 3), "how the tokens were delivered does not matter"
    a = saved(
        tmp_path / "a",
        [
            request("same", tokens_digest=digest(1, 2)),
            request("other", tokens_digest=digest(1, 2)),
            request("only-a", tokens_digest=digest(3)),
            request("lost-in-b", tokens_digest=digest(4)),
            lost("lost-in-both"),
        ],
    )
    b = saved(
        tmp_path / "b",
        [
            lost("lost-in-both", status="rejected"),
            lost("lost-in-b"),
            lost("only-b"),
            request("other", tokens_digest=digest(2, 1)),
            request("same", tokens_digest=digest(1, 2)),
        ],
    )
    assert different_outputs(a, b) == different_outputs(b, a) == ["lost-in-b", "only-a", "only-b", "other"]
    assert different_outputs(a, a) == []
    old = saved(tmp_path / "old", [request("same")])
    with pytest.raises(UserError, match=r"old was written before digests of tokens .*; run it again"):
        different_outputs(a, old)


def test_a_manifest_says_all_that_a_result_needs(tmp_path):
    about = {"configuration": {"model": "tiny"}, "seed": 7, "trace_sha256": "ab", "argv": ["gyges", "run", "a b"]}
    folder = ResultFolder.create(tmp_path / "out", "sim", **about)
    m = json.loads((folder.path / "manifest.json").read_text())
    assert (m["kind"], m["state"], m["seed"], m["trace_sha256"]) == ("sim", "running", 7, "ab")
    assert m["configuration"] == {"model": "tiny"}
    assert m["command"] == "gyges run 'a b'"
    assert m["versions"]["numpy"]
    assert m["hardware"]["memory_bytes"] > 0
    assert m["hardware"]["gpus"] is None
    assert m["cores"] == len(os.sched_getaffinity(0))
    assert m["started"]
    assert m["ended"] is None
    folder.finish("complete")
    assert load_manifest(folder.path)["state"] == "complete"
    assert load_manifest(folder.path)["ended"]


def test_the_default_folder_is_new_each_time(tmp_path):
    made = [ResultFolder.create(root=tmp_path / "runs", name="a/b").path for _ in range(3)]
    assert len(set(made)) == 3
    assert all(p.parent == tmp_path / "runs" and "-a-b" in p.name for p in made)


def test_a_folder_with_anything_in_it_is_refused(tmp_path):
    (tmp_path / "old.txt").write_text("precious")
    with pytest.raises(UserError, match="not empty; choose another"):
        ResultFolder.create(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["old.txt"]


@pytest.mark.parametrize("explicit", [True, False])
def test_an_unwritable_place_is_refused_before_the_run(tmp_path, explicit):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write results to .*file.*choose another folder"):
        ResultFolder.create(tmp_path / "file" / "out" if explicit else None, root=tmp_path / "file")


def test_a_full_disk_is_refused_before_the_run_and_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9 - 2**20, 2**20))
    with pytest.raises(UserError) as caught:
        ResultFolder.create(tmp_path / "out")
    assert str(tmp_path / "out") in str(caught.value)
    assert "1.0 MiB free" in str(caught.value)
    assert "64.0 MiB" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_write_that_dies_before_the_rename_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    atomic.write_json(path, {"a": 1})
    with monkeypatch.context() as full:
        fill_disk(full)
        with pytest.raises(UserError, match=r"could not write .*No space left on device"):
            atomic.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_json_holds_no_infinity(tmp_path):
    atomic.write_json(tmp_path / "x.json", {"a": [float("inf"), float("nan"), 1.5], 3: (1, None, True)})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [None, None, 1.5], "3": [1, None, True]}


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [(KeyboardInterrupt(), "partial", "interrupted"), (RuntimeError("worker 2 died"), "failed", "worker 2 died")],
)
def test_an_interrupted_run_keeps_what_it_had_and_says_so(tmp_path, error, state, reason):
    records, samples, events = busy_run(requests=10)
    with pytest.raises(type(error)), ResultFolder.create(tmp_path / "out") as folder:  # noqa: PT012 - it is the case
        assert not folder.checkpoint(records, samples, events)  # too soon: only remembered
        raise error
    manifest = load_manifest(tmp_path / "out")
    assert manifest["state"] == state
    assert reason in manifest["reason"]
    assert len(read_requests(tmp_path / "out/requests.parquet")) == 10


def test_a_killed_run_is_reported_as_partial(tmp_path):
    code = "import os; from gyges.metrics.results import ResultFolder; "
    code += f"ResultFolder.create({str(tmp_path / 'out')!r}); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert json.loads((tmp_path / "out/manifest.json").read_text())["state"] == "running"
    assert load_manifest(tmp_path / "out")["state"] == "partial"


def test_a_run_that_still_goes_on_is_reported_as_running(tmp_path):
    assert load_manifest(ResultFolder.create(tmp_path / "out").path)["state"] == "running"


def test_checkpoints_rest_between_writes_and_convert_only_what_is_new(tmp_path, monkeypatch):
    clock = Clock()
    folder = ResultFolder.create(tmp_path / "out", clock=clock)
    records = [request("a")]
    clock.now = 5.0
    assert folder.checkpoint(records)
    records.append(request("b"))
    clock.now = 9.9
    assert not folder.checkpoint(records)
    clock.now = 10.0
    converted = []
    from gyges.metrics import tables

    real = tables.request_table
    monkeypatch.setattr(tables, "request_table", lambda rows: converted.append(len(rows)) or real(rows))
    assert folder.checkpoint(records)
    assert converted == [1]
    assert [r.request_id for r in read_requests(tmp_path / "out/requests.parquet")] == ["a", "b"]


def test_a_checkpoint_on_a_full_disk_does_not_end_the_run_and_is_tried_again(tmp_path, monkeypatch):
    folder = ResultFolder.create(tmp_path / "out")
    with monkeypatch.context() as full:
        fill_disk(full)
        assert not folder.checkpoint([request("a")], force=True)
    assert folder.checkpoint([request("a")], force=True)
    assert [r.request_id for r in read_requests(tmp_path / "out/requests.parquet")] == ["a"]
    folder.finish("complete")
    assert "No space left" in load_manifest(tmp_path / "out")["warnings"][0]


def test_what_is_no_result_folder_is_said(tmp_path):
    with pytest.raises(UserError, match="not a result folder"):
        load_manifest(tmp_path)


def test_a_foreign_repository_around_an_installed_package_is_not_ours(tmp_path):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "site-packages").mkdir()
    assert git_state(tmp_path / "site-packages") is None
