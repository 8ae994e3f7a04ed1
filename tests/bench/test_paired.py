"""Differences with intervals: what pairs, what is left out, and how sure it is."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gyges.bench.paired import mean, mean_interval, own_interval, paired_change, per_run_change, percentile
from gyges.metrics import definitions as d

INF = math.inf


@settings(max_examples=60)
@given(
    arrays(float, (2, 7), elements=st.one_of(st.floats(0.001, 100), st.just(INF))),
    st.sampled_from([0, 50, 90, 99, 100]),
)
def test_row_percentiles_are_those_of_the_definitions(rows, p):
    for row, found in zip(rows, percentile(p)(rows), strict=True):
        assert found == d.percentile(row, p)


def test_a_constant_difference_is_found_exactly_whatever_the_requests_are():
    base = np.random.default_rng(1).exponential(1.0, (3, 40))
    difference, _ = paired_change(base, base + 0.5, mean)
    assert (difference.value, difference.low, difference.high) == pytest.approx((0.5, 0.5, 0.5))
    assert difference.clear


def test_pairing_finds_what_the_two_sides_alone_do_not_show():
    rng = np.random.default_rng(2)
    base = rng.lognormal(0, 2, (2, 60))
    slower = base * 1.05
    change = paired_change(base, slower, mean)[1]
    alone = [own_interval(side, mean) for side in (base, slower)]
    assert change.low == pytest.approx(0.05)
    assert alone[0].high > alone[1].low  # apart, they overlap


def test_an_interval_covers_the_truth_about_as_often_as_it_says():
    hits = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        a = rng.normal(10, 1, (1, 50))
        interval = paired_change(a, a + rng.normal(0.3, 1, (1, 50)), mean, seed)[0]
        hits += interval.low <= 0.3 <= interval.high
    assert 88 <= hits <= 99


def test_the_same_seed_gives_the_same_interval():
    rng = np.random.default_rng(3)
    a, b = rng.random((2, 20)), rng.random((2, 20))
    assert paired_change(a, b, percentile(99), 7) == paired_change(a, b, percentile(99), 7)
    assert paired_change(a, b, percentile(99), 7) != paired_change(a, b, percentile(99), 8)


def test_requests_undefined_on_either_side_are_left_out_on_both():
    a = np.array([[1.0, math.nan, 3.0, 5.0]])
    b = np.array([[2.0, 100.0, math.nan, 6.0]])
    assert paired_change(a, b, mean)[0].value == 1.0
    assert paired_change(a, np.full((1, 4), math.nan), mean) is None
    assert own_interval(np.empty((2, 0)), mean) is None


def test_what_never_came_makes_a_change_infinite_and_two_of_them_say_nothing():
    some, never = np.array([[1.0, 2.0]]), np.array([[INF, INF]])
    assert paired_change(some, never, percentile(99))[1].value == INF
    assert paired_change(never, some, percentile(99))[1].value == -1.0
    assert paired_change(never, never, percentile(99)) is None


def test_students_t_has_the_quantiles_that_can_be_derived_by_hand():
    # One degree of freedom is Cauchy: tan(0.475 pi). Two: q sqrt(2 / (1 - q^2)), q = 0.95.
    two, three = mean_interval([0.0, 2.0]), mean_interval([-1.0, 0.0, 1.0])
    assert two.high - two.value == pytest.approx(math.tan(0.475 * math.pi), rel=1e-4)
    assert three.high == pytest.approx(0.95 * math.sqrt(2 / (1 - 0.95**2)) / math.sqrt(3), rel=1e-3)
    many = mean_interval([0.0, 2.0] * 500)
    assert many.high - 1 == pytest.approx(1.962 / math.sqrt(999), rel=1e-3)


def test_one_repeat_has_no_interval_and_a_reference_of_zero_no_share():
    difference, share = per_run_change([4.0], [5.0])
    assert (difference.value, difference.low, share.value) == (1.0, None, 0.25)
    assert per_run_change([0.0, 0.0], [3.0, 3.0])[1] is None
    assert per_run_change([10.0, 20.0], [11.0, 21.0])[0].clear  # paired: the repeats' own level is out


def test_very_many_requests_take_fewer_draws_and_little_time():
    rng = np.random.default_rng(4)
    a = rng.random((1, 200_000))
    interval = paired_change(a, a + 1.0, mean)[0]
    assert (interval.low, interval.high) == pytest.approx((1.0, 1.0))
