"""Rounds as one answer: means of their means, judged once; how the machine drifted between them."""

import pytest
from bundles import META, make_bundle

from gyges.sim.rounds import drift, pool


def both(measured, simulated):
    return {"measured": measured, "simulated": simulated, "error": simulated / measured - 1}


def static(tpot, ttft=(0.1, 0.1), throughput=(100.0, 100.0)):
    limits = {"throughput": 0.05, "tpot_s": 0.05, "ttft_s": 0.10}
    return {
        "latencies": {"tpot_s": {"mean": both(*tpot), "p99": both(1, 9)}, "ttft_s": {"mean": both(*ttft)}},
        "throughput": both(*throughput),
        "goals": {name: {"limit": limit, "error": 0.0, "met": True} for name, limit in limits.items()},
    }


def changing(**kinds):
    return {
        "pauses": {kind: {**both(*pause), "count": 6} for kind, pause in kinds.items()},
        "goals": {kind: {"limit": 0.20, "error": 0.0, "met": True} for kind in kinds},
    }


def test_a_pooled_error_is_that_of_the_means_and_errors_that_point_both_ways_cancel():
    rounds = [{"static": static(pair)} for pair in ((2.0, 2.4), (1.0, 0.8), (3.0, 3.0))]
    tpot = pool(rounds)["tpot_s"]
    assert (tpot["measured"], tpot["simulated"]) == (pytest.approx(2.0), pytest.approx(6.2 / 3))
    assert tpot["error"] == pytest.approx(6.2 / 6 - 1)  # not 0, the mean of the errors
    assert tpot["rounds"] == pytest.approx([0.2, -0.2, 0.0])
    assert (tpot["limit"], tpot["met"]) == (0.05, True)


def test_a_pooled_error_beyond_the_limit_misses_it_though_a_round_met_it():
    tpot = pool([{"static": static((2.0, 2.0))}, {"static": static((2.0, 1.7))}])["tpot_s"]
    assert tpot["error"] == pytest.approx(-0.075)
    assert tpot["met"] is False


def test_figures_are_those_with_a_goal_and_pauses_are_told_apart_by_run():
    runs = {"static": static((1, 1), ttft=(0.1, 0.2), throughput=(100, 90))}
    runs |= {
        "stopping": changing(merge=(0.01, 0.02), split=(0.01, 0.01)),
        "overlapping": changing(merge=(0.02, 0.01)),
    }
    figures = pool([runs])
    assert {name: figure["error"] for name, figure in figures.items()} == pytest.approx(
        {
            "throughput": -0.1,
            "tpot_s": 0.0,
            "ttft_s": 1.0,
            "merge_pause_s_stopping": 1.0,
            "split_pause_s_stopping": 0.0,
            "merge_pause_s_overlapping": -0.5,
        }
    )
    assert {figures[name]["limit"] for name in figures if "pause" in name} == {0.20}


def test_a_round_in_which_nobody_noticed_a_split_counts_for_the_others_only():
    rounds = [{"stopping": changing(merge=(1, 1))}, {"stopping": changing(merge=(1, 1), split=(2, 3))}]
    split = pool(rounds)["split_pause_s_stopping"]
    assert split["rounds"] == [None, 0.5]
    assert (split["measured"], split["simulated"], split["met"]) == (2, 3, False)


def test_drift_is_the_later_profile_over_the_earlier_one_by_degree(tmp_path):
    meta = META + "dtype: float32\n"
    folders = [make_bundle(tmp_path / str(times), meta=meta, slower=times) for times in (1.0, 1.25, 0.5)]
    assert drift(folders) == {"tp1": [pytest.approx(1.25), pytest.approx(0.4)]}
