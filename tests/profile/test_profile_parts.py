"""The parts of gyges profile that need no engine: which steps are run, and how a step's time is divided."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gyges.profile.grid import Limits, Point, attention_points, dense_points
from gyges.profile.timed import Stopwatch


@settings(max_examples=50, deadline=None)
@given(
    tokens=st.integers(2, 5000), seqs=st.integers(1, 300), blocks=st.integers(2, 3000), context=st.integers(20, 20000)
)
def test_no_step_is_run_that_the_engine_could_not_have(tokens, seqs, blocks, context):
    limits = Limits(tokens, seqs, blocks * 16, 16, context)
    for point in [*dense_points(limits), *attention_points(limits), *attention_points(limits, quick=True)]:
        assert point.tokens <= tokens
        assert point.decodes + (point.chunk > 0) <= seqs
        assert max(point.context, point.before + point.chunk) < context
        assert point.decodes * point.context + point.before + point.chunk <= blocks * 16


def test_the_grid_reaches_the_limits_of_a_step():
    limits = Limits(512, 64, 10**6, 16, 16384)
    assert max(point.tokens for point in dense_points(limits)) == 512
    points = attention_points(limits)
    assert max(point.decodes for point in points) == 64
    assert max(point.chunk for point in points) == 512
    assert Point(chunk=512, before=4096, decodes=0) in points


def test_every_moment_of_a_step_belongs_to_the_innermost_operator_that_is_open(monkeypatch):
    now = iter([0.0, 1.0, 3.0, 6.0, 10.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    watch = Stopwatch()
    watch.enter("step")  # at 0
    watch.enter("ffn")  # at 1
    watch.turn_into("down")  # at 3
    watch.leave()  # at 6
    watch.leave()  # at 10
    assert watch.take() == {"step": 1.0 + 4.0, "ffn": 2.0, "down": 3.0}


def test_an_operator_that_fails_is_closed_all_the_same():
    watch = Stopwatch()

    def broken():
        raise RuntimeError("no")

    watch.enter("step")
    with pytest.raises(RuntimeError):
        watch.around("attention", broken)()
    assert watch.inside == "step"
