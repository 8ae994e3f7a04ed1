"""Policies that transform, on a real engine: the same tokens as one instance that never changes, and what each of them does."""

from __future__ import annotations

import pytest
from checkpoints import make_checkpoint
from engine.transforming import Running, requests, static_tokens

from gyges import Engine, EngineConfig
from gyges.errors import EngineError

pytestmark = pytest.mark.engine

LONG = 1200  # tokens; on a device of 2 MiB, TP1 holds fewer


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    folder = make_checkpoint(
        tmp_path_factory.mktemp("llama"), "llama", heads=12, kv_heads=12, head_dim=8, hidden=48, intermediate=96
    )
    config = EngineConfig(
        model=str(folder),
        instances=(1, 1),
        tp_degrees=(1, 2),
        device_memory=2 << 20,
        page_bytes=4096,
        max_batch_tokens=128,
        threads=1,
    )
    short = requests([[(31 * i + 7 * j) % 500 + 3 for j in range(20 + 9 * i)] for i in range(8)], [30] * 8)
    long = requests([[(13 * i + 5 * j) % 500 + 3 for j in range(LONG)] for i in range(3)], [10] * 3, name="long")
    return config, short, long, static_tokens(config, [*short, *long])


def serve(host, policy: str):
    """The short requests, and three long ones, each sent when the one before has ended. What the engine reports."""
    config, short, long, expected = host
    with Engine(config, policy) as engine:
        assert engine.placer.shape.max_tokens(1) < LONG
        running = Running(engine)
        running.submit(*short)
        for request in long:
            running.submit(request)
            running.wait_for_end(request.request_id)
        assert running.finish() == expected
        assert engine.failure is None
        assert not engine.incidents
        return engine.reports


def test_gyges_serves_long_requests_in_a_row_with_one_merge(host):
    """The reserve, and nobody who gains by a split: the instance stays wide."""
    reports = serve(host, "gyges")
    assert [r.kind for r in reports].count("merge") == 1
    assert "fits no instance" in reports[0].cause


def test_the_papers_rules_split_when_the_long_request_has_ended(host):
    reports = sorted(serve(host, "gyges:paper"), key=lambda report: report.asked_s)
    assert [report.kind for report in reports[:3]] == ["merge", "split", "merge"]


@pytest.mark.parametrize("policy", ["rr", "llf"])
def test_the_eager_ones_merge_for_every_long_request(host, policy):
    reports = serve(host, policy)
    assert [r.kind for r in reports].count("merge") >= 3


def test_a_policy_is_woken_at_the_time_that_it_names(host):
    """Nothing happens any more, and the split that hysteresis put off comes all the same."""
    config, _, long, expected = host
    with Engine(config, "gyges:paper+hysteresis=on+dwell=2") as engine:
        running = Running(engine)
        running.submit(long[0])
        assert running.finish()["long0"] == expected["long0"]
        running.wait_until(lambda: [r.kind for r in engine.reports] == ["merge", "split"])
        merge, split = engine.reports
        assert split.asked_s > merge.end_s


def test_a_static_layout_is_started_and_rejects_what_it_cannot_hold(host):
    config, short, long, expected = host
    with Engine(config.with_(instances=(1, 1, 1)), "static:tp2+tp1") as engine:
        assert [status.degree for status in engine.status()] == [2, 1]
        running = Running(engine)
        running.submit(*short[:2])
        assert all(tokens == expected[name] for name, tokens in running.finish().items())
    with Engine(config, "static:tp1") as engine:
        (end,) = engine.generate(long[:1])
        assert end.finish_reason == "rejected"
        assert "nothing merges here" in end.error


def test_a_restart_finishes_what_runs_and_serves_the_rest_at_the_other_degree(host):
    """New processes, the same tokens, nobody lost; and back again when nobody needs it."""
    config, short, long, expected = host
    with Engine(config, "restart+hold=0") as engine:
        first = {worker.process.pid for worker in engine.workers}
        running = Running(engine)
        running.submit(*short)
        running.wait_for_tokens(8)
        running.submit(long[0])
        assert running.finish() == {name: expected[name] for name in running.tokens}
        running.wait_until(lambda: [r.after for r in engine.reports] == [(2,), (1, 1)])
        assert not first & {worker.process.pid for worker in engine.workers}
        assert [status.degree for status in engine.status()] == [1, 1]
        for report in engine.reports:
            assert report.asked_s <= report.start_s < report.end_s
            assert report.stopped == "the host was restarted"
        (end,) = engine.generate(short[:1])
        assert end.token_ids == expected["r0"]


def test_a_restart_that_fails_ends_every_request_with_the_cause(host, monkeypatch):
    config, short, long, _ = host
    with Engine(config, "restart") as engine:
        monkeypatch.setattr(engine, "_spawn", refuse)
        running = Running(engine)
        running.submit(*short[:2], long[0])
        running.wait_until(lambda: engine.failure is not None)
        running.wait_for_end("long0")
    assert running.ends["long0"].finish_reason == "failed"
    assert "no processes today" in running.ends["long0"].error
    assert set(running.ends) == {"r0", "r1", "long0"}


def refuse() -> None:
    raise EngineError("no processes today")
