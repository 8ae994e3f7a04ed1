"""Figures against numbers worked out by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gyges.metrics import definitions as d
from gyges.metrics.slo import Slo

from .factory import lost, request


@pytest.mark.parametrize(
    ("values", "p", "expected"),
    [
        ([10.0, 20.0, 30.0, 40.0], 50, 25.0),
        ([10.0, 20.0, 30.0, 40.0], 90, 37.0),  # rank 2.7: 30 + 0.7 * 10
        ([4.0], 99, 4.0),
        ([1.0, math.inf], 0, 1.0),
        ([1.0, math.inf], 50, math.inf),
        ([math.inf, math.inf], 50, math.inf),
        ([1.0, 2.0, math.inf], 50, 2.0),
        ([], 50, None),
    ],
)
def test_percentile_interpolates_and_half_way_to_infinity_is_infinity(values, p, expected):
    assert d.percentile(values, p) == expected


maybe_infinite = st.lists(st.floats(min_value=0, allow_nan=False, allow_infinity=True), min_size=1, max_size=40)
level = st.floats(min_value=0, max_value=100)


@given(maybe_infinite, level, level)
def test_percentiles_ascend_and_stay_between_least_and_greatest(values, p, q):
    low, high = sorted((p, q))
    assert min(values) <= d.percentile(values, low) <= d.percentile(values, high) <= max(values)


def test_latencies_count_from_the_scheduled_arrival_and_beside_it_from_the_send():
    late = request(at=10.0, first=2.0, gap=0.5, tokens=3, sent_s=10.5)  # tokens at 12, 12.5, 13
    assert d.ttft_s(late) == 2.0
    assert d.ttft_from_send_s(late) == 1.5
    assert d.e2e_s(late) == 3.0
    assert d.e2e_from_send_s(late) == 2.5
    assert d.queue_s(late) == 1.0
    assert d.queue_from_send_s(late) == 0.5
    assert d.tpot_s(late) == 0.5
    assert d.send_lag_s(late, run_end_s=99.0) == 0.5


def test_tpot_reaches_to_the_end_not_to_the_last_token():
    assert d.tpot_s(request(first=1.0, gap=1.0, tokens=5, end_s=9.0)) == 2.0


def test_tpot_of_one_token_is_undefined_even_for_a_failed_request():
    assert d.tpot_s(request(tokens=1)) is None
    assert d.tpot_s(lost(target_output_tokens=1)) is None
    assert d.tpot_s(lost(target_output_tokens=2)) == math.inf


@pytest.mark.parametrize("figure", [d.ttft_s, d.ttft_from_send_s, d.e2e_s, d.e2e_from_send_s, d.queue_s, d.tpot_s])
@pytest.mark.parametrize("status", ["failed", "rejected"])
def test_a_lost_request_is_infinitely_late_whatever_it_had_received(figure, status):
    assert figure(request(status=status)) == math.inf


def test_an_interrupted_request_counts_what_it_reached_and_is_infinite_beyond():
    cut = request(first=1.0, tokens=2, status="partial", end_s=None, target_output_tokens=9)
    assert (d.queue_s(cut), d.ttft_s(cut), d.e2e_s(cut), d.tpot_s(cut)) == (0.5, 1.0, math.inf, math.inf)


def test_what_was_not_observed_of_a_completed_request_is_undefined():
    assert d.queue_s(request(first_scheduled_s=None)) is None
    assert d.ttft_s(request(token_times=[], first=1.0)) == 1.0  # the first delivery stands in


def test_token_gaps_and_chunk_gaps_are_separate_figures():
    burst = request(token_times=[1.0, 1.5, 2.5, 3.0], chunk_times=[2.0, 3.5])
    assert d.token_gaps_s(burst).tolist() == [0.5, 1.0, 0.5]
    assert d.chunk_gaps_s(burst).tolist() == [1.5]
    assert d.largest_gap_s(d.token_gaps_s(burst)) == 1.0


def test_a_lost_request_adds_its_gaps_and_one_infinite_one():
    broken = request(status="failed", token_times=[1.0, 1.25], target_output_tokens=50)
    assert d.token_gaps_s(broken).tolist() == [0.25, math.inf]
    assert d.largest_gap_s(d.token_gaps_s(broken)) == 0.25
    assert d.largest_gap_s(d.token_gaps_s(lost())) is None


def test_the_window_reaches_from_the_first_scheduled_arrival_to_the_last_end():
    assert d.window_s([request(at=3.0, first=1.0, tokens=1), lost(at=10.0), request(at=5.0, tokens=1)]) == 7.5
    assert d.window_s([]) == 0.0


def test_only_delivered_work_is_throughput():
    half_way = request(status="partial", end_s=None, tokens=3)
    assert (d.delivered_prompt_tokens(request()), d.delivered_output_tokens(request())) == (100, 3)
    assert (d.delivered_prompt_tokens(half_way), d.delivered_output_tokens(half_way)) == (100, 3)
    failed = request(status="failed")
    assert (d.delivered_prompt_tokens(failed), d.delivered_output_tokens(failed)) == (0, 0)


def test_a_latency_equal_to_its_limit_meets_it():
    fast = request(first=1.0, gap=0.5, tokens=3)
    assert d.meets(fast, Slo(ttft_s=1.0, tpot_s=0.5, e2e_s=2.0))
    assert not d.meets(fast, Slo(ttft_s=0.99))
    assert not d.meets(fast, Slo(tpot_s=0.49))
    assert not d.meets(fast, Slo(e2e_s=1.99))


def test_one_token_meets_any_tpot_and_a_lost_request_meets_nothing():
    assert d.meets(request(tokens=1), Slo(tpot_s=1e-9))
    assert not d.meets(lost(), Slo(ttft_s=1e9))
    assert not d.meets(request(token_times=[], chunk_times=[]), Slo(ttft_s=1e9))


@pytest.mark.parametrize(
    ("lag", "median", "valid"),
    [(0.010, 0.5, True), (0.011, 9.0, False), (0.006, 0.1, False), (0.005, 0.1, True), (0.009, math.inf, True)],
)
def test_a_replay_is_valid_only_within_both_lag_limits(lag, median, valid):
    assert (d.lag_verdict(lag, median) is None) == valid


def test_a_due_request_that_was_never_sent_counts_as_late_as_the_run_was_long():
    assert d.send_lag_s(lost(at=5.0, status="partial", sent_s=None), run_end_s=60.0) == 55.0
    assert d.send_lag_s(lost(sent_s=None), run_end_s=60.0) is None
