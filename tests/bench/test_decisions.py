"""Decision times: the hosts that are made up, what is timed, and what becomes of it."""

import io
import json
from collections.abc import Iterator

import pytest
from rich.console import Console

from cli.bench_decisions import render
from gyges.bench.decisions import (
    MAX_TOKENS,
    MIXED,
    NARROW,
    DecisionsConfig,
    Timing,
    bench_decisions,
    every_policy,
    goals,
    make_scene,
    spread,
)
from gyges.errors import UserError
from gyges.scheduling.routing import Merge, Send, Split
from gyges.scheduling.specification import make_policy


def ticks(*steps: int) -> Iterator[int]:
    """A clock: each pair of readings is so many nanoseconds apart, over and over."""
    moment = 0
    while True:
        for step in steps:
            yield moment
            yield moment + step
            moment += step + 1_000_000  # between two timed calls, anything


class Recorder:
    """Answers always the same and keeps what it was asked."""

    transforms = True
    wake_s = None

    def __init__(self) -> None:
        self.routed, self.reviewed, self.foreseen = [], [], []

    def foresee(self, asks):
        self.foreseen = list(asks)

    def route(self, ask, instances, host, now):
        self.routed.append((ask, instances, now))
        return Send(0)

    def review(self, instances, host, now):
        self.reviewed.append((instances, now))
        return [Split(0, (1, 1), "")]


@pytest.mark.parametrize("name", [NARROW, MIXED])
@pytest.mark.parametrize("instances", [1, 8, 100])
def test_a_scene_is_one_host_at_several_moments(name, instances):
    scene = make_scene(name, instances, 12, seed=3)
    shapes = {tuple((view.name, view.degree, view.devices) for view in views) for views in scene.snapshots}
    assert len(shapes) == 1, "only the load changes"
    assert len(set(scene.snapshots)) > 1
    for views in scene.snapshots:
        assert len(views) == instances
        devices = [device for view in views for device in view.devices]
        assert devices == list(range(sum(view.degree for view in views)))
        for view in views:
            assert view.max_tokens == MAX_TOKENS[view.degree]
            assert 0 <= view.free_tokens <= view.max_tokens - view.held_tokens
            assert view.longest_tokens <= view.max_tokens
            assert (view.long_requests > 0) == (view.longest_tokens > MAX_TOKENS[1])
            assert bool(view.becoming) == view.transforming
    assert scene == make_scene(name, instances, 12, seed=3) != make_scene(name, instances, 12, seed=4)


def test_scenes_ask_every_question_that_there_is():
    narrow, mixed = (make_scene(name, 64, 100, 0) for name in (NARROW, MIXED))
    assert {view.degree for view in narrow.snapshots[0]} == {1}
    wide = [view for view in mixed.snapshots[0] if view.degree > 1]
    assert {view.degree for view in wide} == {2, 4}
    assert {view.long_requests for view in wide} == {0, 1}
    assert any(view.transforming for views in mixed.snapshots for view in views)
    for scene in (narrow, mixed):
        needed = {min(d for d in MAX_TOKENS if MAX_TOKENS[d] >= ask.length) for _, ask in scene.asks}
        assert needed == {1, 2, 4}
    policy = make_policy("gyges")
    found = {type(policy.route(ask, narrow.snapshots[0], narrow.host, 0.0)) for _, ask in narrow.asks}
    assert found == {Send, Merge}


def test_every_call_is_timed_alone_and_time_passes_between_them():
    policy, scene = Recorder(), make_scene(MIXED, 8, 6, 0)
    timing = Timing(policy, scene, clock=ticks(1_000, 7_000).__next__)
    timing.run(2, counted=False)
    timing.run(4)
    assert policy.foreseen == [ask for _, ask in scene.asks]
    assert [ask for ask, _, _ in policy.routed] == policy.foreseen
    assert [now for _, _, now in policy.routed] == [now for _, now in policy.reviewed]
    assert sorted({now for _, now in policy.reviewed}) == [now for _, now in policy.reviewed]
    assert timing.seconds == {
        ("route", "short"): pytest.approx([1e-6] * 2),
        ("route", "long, mixed"): pytest.approx([1e-6] * 2),
        ("review", "mixed"): pytest.approx([7e-6] * 4),
    }
    assert timing.answers["route", "short"] == {"Send": 2}
    assert timing.answers["review", "mixed"] == {"Split": 4}


def test_a_spread_is_of_all_calls():
    found = spread([float(i) for i in range(101)])
    assert found == {"count": 101, "p50": 50.0, "p99": 99.0, "max": 100.0}


def test_a_goal_is_judged_by_the_slowest_policy_and_open_where_its_size_was_not_measured():
    def timed(route: float, review: float) -> dict:
        return {"8": {"route": {"p99": route}, "review": {"p99": review}}}

    document = {"policies": {"a": timed(10e-6, 60e-6), "b": timed(49e-6, 1e-6)}}
    found = {goal["name"]: (goal["met"], goal["reached"], goal["where"]) for goal in goals(document)}
    assert found == {
        "route, 8 instances, p99": (True, 49e-6, "b"),
        "review, 8 instances, p99": (False, 60e-6, "a"),
        "route, 1,000 instances, p99": (None, None, ""),
        "review, 1,000 instances, p99": (None, None, ""),
    }


def test_all_policies_are_measured_and_the_same_seed_gives_the_same_decisions():
    config = DecisionsConfig(every_policy(), (3, 40), calls=12)
    assert {"gyges", "gyges:paper", "llf", "rr", "static", "on-demand"} <= set(config.policies)
    said: list[str] = []
    document = bench_decisions(config, said.append)
    json.dumps(document, allow_nan=False)
    assert said == ["3 instances", "40 instances"]
    for by_size in document["policies"].values():
        assert list(by_size) == ["3", "40"]
        for figures in by_size.values():
            for call in ("route", "review"):
                assert figures[call]["count"] == 2 * 12, "once in each scene"
                assert 0 <= figures[call]["p50"] <= figures[call]["p99"] <= figures[call]["max"]
                kinds = figures[call]["kinds"].values()
                assert all(kind["count"] == sum(kind["answers"].values()) for kind in kinds)
                assert sum(kind["count"] for kind in kinds) == figures[call]["count"]
    assert answers(document) == answers(bench_decisions(config, said.append))
    console = Console(width=80, record=True, file=io.StringIO())
    render(console, document)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text


def answers(document: dict) -> list:
    return [
        kind["answers"]
        for by_size in document["policies"].values()
        for figures in by_size.values()
        for call in ("route", "review")
        for kind in figures[call]["kinds"].values()
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"policies": ()}, "at least one policy of: "),
        ({"policies": ("fastest",)}, "unknown scheduler policy 'fastest'"),
        ({"instances": (8, 0)}, "1 or more"),
        ({"instances": ()}, "1 or more"),
        ({"calls": 1}, "too few"),
    ],
)
def test_bad_input_names_the_remedy(options, words):
    with pytest.raises(UserError, match=words):
        DecisionsConfig(**({"policies": ("gyges",)} | options))
