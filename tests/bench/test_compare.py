"""Comparing results request by request: what pairs, who got worse, and where that was."""

import json

import pytest
from metrics.factory import lost, request, sample

from gyges.bench.compare.document import compare
from gyges.bench.compare.nearness import AFTER, AWAY, DECODED, LOST, WAITED, nearness
from gyges.bench.compare.plot import write_plots
from gyges.bench.compare.sides import Replay, pairs_of
from gyges.errors import UnknownNameError, UserError
from gyges.metrics.records import TransformationEvent
from gyges.metrics.results import ResultFolder
from gyges.metrics.summary import summarize

MERGE = TransformationEvent("merge", (0, 1), 2.0, 3.0)
LENGTHS = {"r0": 100, "r1": 300, "r2": 2000, "r3": 5000}


def write(path, records, events=(), trace="same", scheduler="llf"):
    samples = [sample(0.0, "i0", (0,)), sample(0.0, "i2", (2,))]
    about = {"configuration": {"scheduler": scheduler}, "trace_sha256": trace}
    with ResultFolder.create(path, "run", **about) as folder:
        folder.save(records, samples, list(events), summarize(records, samples, list(events)))
    return path


def replay_of(first=1.0, slow=(), gone=(), **more):
    """Four requests, one each second; those in ``slow`` take half a second longer to their first token."""
    found = []
    for index, (name, prompt) in enumerate(LENGTHS.items()):
        about = {"prompt_tokens": prompt}
        if name in gone:
            found.append(lost(name, at=float(index), status="rejected", **about))
        else:
            found.append(request(name, at=float(index), first=first + 0.5 * (name in slow), **about, **more))
    return found


@pytest.fixture
def two(tmp_path):
    return (
        write(tmp_path / "a", replay_of(gone=("r3",))),
        write(tmp_path / "b", replay_of(slow=("r1", "r2")), [MERGE], scheduler="on-demand"),
    )


def only(paths, **more):
    (comparison,) = compare(pairs_of(paths, any_trace=False), **more)["comparisons"]
    return comparison


def test_each_request_is_compared_with_itself(two):
    found = only(two)
    assert found["requests"] == {
        "paired": 4,
        "unpaired": 0,
        "not_completed_a": 1,
        "not_completed_b": 0,
        "lost_in_b": [],
        "gained_in_b": ["r3"],
        "different_outputs": 0,
    }
    ttft = found["metrics"]["ttft"]
    assert ttft["compared"] == 3
    assert ttft["difference_s"]["value"] == pytest.approx((0 + 0.5 + 0.5) / 3)
    assert (ttft["slower"], ttft["faster"]) == (2, 0)
    assert ttft["a_s"]["infinite"] == 1  # the rejected one stays in a's percentiles
    assert found["metrics"]["tpot"]["difference_s"]["value"] == pytest.approx(0.0)


def test_the_other_way_round_every_difference_changes_its_sign(two):
    there, back = only(two), only(two[::-1])
    for name in ("ttft", "tpot", "e2e"):
        ours, theirs = (each["metrics"][name]["difference_s"] for each in (there, back))
        assert ours["value"] == pytest.approx(-theirs["value"])
        assert (ours["low"], ours["high"]) == pytest.approx((-theirs["high"], -theirs["low"]))
    assert back["requests"]["lost_in_b"] == ["r3"]
    assert back["worst"][0] == {"request": "r3", "prompt_tokens": 5000, "a_s": None, "b_s": None, "nearness": LOST}


def test_who_got_worse_is_told_by_length_and_by_nearness(two):
    found = only(two, metric="ttft")
    assert {b["bucket"]: b["slower"] for b in found["buckets"]} == {"0-256": 0, "256-1k": 1, "1k-4k": 1, "4k-8k": 0}
    assert [w["request"] for w in found["worst"]] == ["r1", "r2"]
    # r1 waits from 1.0 to 2.5, r2 from 2.0 to 3.5, r3 from 3.0: the merge goes on from 2.0 to 3.0.
    assert {p["request"]: p["nearness"] for p in found["points"]} == {"r0": AWAY, "r1": WAITED, "r2": WAITED}
    assert sum(n["requests"] for n in found["nearness"]) == found["requests"]["paired"]


@pytest.mark.parametrize(
    ("record", "where"),
    [
        (request(at=1.5, first=1.0), WAITED),
        (request(at=0.5, first=1.0, gap=0.5, tokens=4), DECODED),
        (request(at=3.5, first=1.0), AFTER),
        (request(at=4.5, first=1.0), AWAY),
        (request(at=0.0, first=0.5), AWAY),
        (request(at=1.5, first=1.0, instance="i2"), AWAY),  # other devices
        (request(at=1.5, first=1.0, instance="unheard of"), WAITED),
        (lost(at=1.5), LOST),
    ],
)
def test_nearness_is_by_the_first_token_and_by_the_devices(record, where):
    replay = Replay({}, [sample(0.0, "i0", (0,)), sample(0.0, "i2", (2,))], [MERGE])
    assert nearness(record, replay) == where


def test_different_traces_are_refused_unless_told_otherwise(tmp_path):
    a = write(tmp_path / "a", replay_of(), trace="one")
    b = write(
        tmp_path / "b", [*replay_of(slow=("r0",))[:2], request("r2", prompt_tokens=7), request("new")], trace="two"
    )
    with pytest.raises(UserError, match="--any-trace"):
        pairs_of([a, b], any_trace=False)
    (found,) = compare(pairs_of([a, b], any_trace=True))["comparisons"]
    assert (found["requests"]["paired"], found["requests"]["unpaired"]) == (2, 3)


def test_cells_are_compared_over_all_their_repeats(tmp_path):
    for repeat, slow in ((1, ()), (2, ("r0", "r1"))):
        write(tmp_path / "a" / f"r{repeat}", replay_of())
        write(tmp_path / "b" / f"r{repeat}", replay_of(slow=slow))
    found = only([tmp_path / "a", tmp_path / "b"])
    assert (found["a"]["repeats"], found["b"]["repeats"]) == (2, 2)
    assert found["metrics"]["ttft"]["difference_s"]["value"] == pytest.approx(0.25 / 2)


def test_ablations_are_compared_cell_by_cell(tmp_path):
    for name in ("x", "y"):
        for cell in ("all-on", "all-off", name):
            write(tmp_path / name / "cells" / cell / "r1", replay_of())
        (tmp_path / name / "manifest.json").write_text(json.dumps({"kind": "ablation", "state": "complete"}))
    found = compare(pairs_of([tmp_path / "x", tmp_path / "y"], any_trace=False))["comparisons"]
    assert [each["name"] for each in found] == ["all-off", "all-on"]
    with pytest.raises(UserError, match="all-on"):
        pairs_of([tmp_path / "x", tmp_path / "y" / "cells" / "all-on"], any_trace=False)


def test_outputs_that_differ_are_counted(tmp_path):
    a = write(tmp_path / "a", replay_of(tokens_digest="same"))
    changed = replay_of(tokens_digest="same")
    changed[1].tokens_digest = "other"
    assert only([a, write(tmp_path / "b", changed)])["requests"]["different_outputs"] == 1


def test_what_cannot_be_compared_says_what_can(tmp_path, two):
    with pytest.raises(UserError, match="at least two"):
        pairs_of(two[:1], any_trace=False)
    with pytest.raises(UserError, match="not a result folder"):
        pairs_of([two[0], tmp_path / "nothing"], any_trace=False)
    with pytest.raises(UnknownNameError, match="e2e"):
        compare(pairs_of(two, any_trace=False), "speed")


def test_a_comparison_is_plotted(two, tmp_path):
    document = compare(pairs_of(two, any_trace=False))
    assert {p.name for p in write_plots(tmp_path / "plots", document)} == {"compare.png", "compare.svg"}
