"""How runs become figures: pairs, shares, agreement, goals."""

import pytest

from gyges.bench.floor import cost_of
from gyges.bench.mixes import Work
from gyges.bench.run import _Measured, _mix_result, agreement, goals, rates_drift, spread

from .test_floor import TOY

WORK = Work(((2, 3, 4),), (2,))


def rates(gemm: float, copy: float) -> dict:
    return {"gemm_flops_per_s": gemm, "copy_bytes_per_s": copy}


def measured(*walls: float | None, tokens=((5, 6),)) -> _Measured:
    """A peer whose repeat i took ``walls[i]`` seconds; None: it had failed by then."""
    runs = {i: {"wall_s": w, "tokens": tokens, "steps": 2} for i, w in enumerate(walls) if w is not None}
    return _Measured(runs, {}, None if None not in walls else "broke")


def test_ratios_pair_runs_of_the_same_round_only():
    result = _mix_result(
        WORK, TOY, {"a": measured(1.0, 10.0), "b": measured(2.0, 30.0), "c": measured(4.0, None)},
        {i: [rates(1e3, 1e9)] * 2 for i in range(2)},
    )["peers"]  # fmt: skip
    assert result["a"]["ratio_to"]["b"]["values"] == [2.0, 3.0]
    assert result["b"]["ratio_to"]["a"]["values"] == [0.5, 1 / 3]
    assert result["a"]["ratio_to"]["c"]["values"] == [4.0]
    assert result["c"]["error"] == "broke"
    assert result["a"]["tokens_per_s"]["values"] == [2.0, 0.2]


def test_a_share_uses_the_mean_of_the_rates_around_its_own_round():
    flops = cost_of(WORK.lengths, TOY).flops
    samples = {0: [rates(0.5 * flops, 1e9), rates(1.5 * flops, 1e9)], 1: [rates(2 * flops, 1e9)] * 2}
    result = _mix_result(WORK, TOY, {"a": measured(4.0, 4.0)}, samples)
    assert result["floor"]["time_s"]["values"] == [1.0, 0.5]
    assert result["peers"]["a"]["share_of_floor"]["values"] == [0.25, 0.125]


def test_agreement_counts_tokens_before_the_first_difference():
    assert agreement([[1, 2, 3, 4], [5, 6]], [[1, 2, 9, 4], [5, 6]]) == {"requests": 0.5, "tokens": 4 / 6}
    assert agreement([[1]], [[1]]) == {"requests": 1.0, "tokens": 1.0}


def test_spread_of_nothing_is_none():
    assert spread([]) is None
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0, "values": [3.0, 1.0, 2.0]}


@pytest.mark.parametrize(("own", "met"), [(1.0, True), (1.6, False)])
def test_goals_are_judged_by_the_paired_median_and_unmeasured_ones_stay_open(own, met):
    peers = {"engine": measured(own), "generate": measured(2.0), "generate_batch": measured(None)}
    mix = _mix_result(WORK, TOY, peers, {0: [rates(1e9, 1e9)] * 2})
    document = {"mixes": {"mixed": mix}, "all_reduce": None, "start_up": None}
    found = {goal["name"]: goal for goal in goals(document)}
    assert found["mixed: speed over generate"]["met"] is met
    assert found["mixed: speed over generate_batch"]["met"] is None
    assert found["mixed: share of the floor"]["met"] is False


def test_drift_is_the_largest_change_within_a_round():
    document = {"rates": {"rounds": [{"before": rates(100, 10), "after": rates(90, 12)}]}}
    assert rates_drift(document) == pytest.approx(0.2)
