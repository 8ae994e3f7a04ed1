"""Synthetic traces: rates, burstiness, lengths, and the same trace for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gyges.errors import UserError
from workloads import TraceOptions, load_trace
from workloads.stats import trace_stats
from workloads.synthetic import MIXES, SHAPES
from workloads.synthetic.lengths import parse_lengths

LONG = "&duration=20000&prompt=10&output=1"


def cv(spec: str) -> float:
    return float(trace_stats(load_trace(spec))["gaps_s"]["cv"])


@pytest.mark.parametrize("name", MIXES.names())
def test_named_traces_are_deterministic_per_seed(name: str) -> None:
    first, again, other = (load_trace(name, TraceOptions(seed=seed)) for seed in (1, 1, 2))
    assert first.content_sha256 == again.content_sha256 != other.content_sha256
    assert first.provenance.sha256 == again.provenance.sha256 != other.provenance.sha256
    assert load_trace(f"synthetic:{name}", TraceOptions(seed=1)).content_sha256 == first.content_sha256


def test_the_default_trace_never_changes_unnoticed() -> None:
    """Results refer to it; a change of generator must raise GENERATOR_VERSION and be written down."""
    requests = load_trace("default").requests
    assert len(requests) == 79
    assert sum(request.prompt_tokens for request in requests) == 76_106
    assert sum(request.output_tokens for request in requests) == 7_055


def test_the_default_trace_fits_the_tiny_preset() -> None:
    stats = trace_stats(load_trace("default"))
    assert stats["total_tokens"]["max"] <= 4100
    assert stats["duration_s"] <= 40
    assert stats["prompt_tokens"]["sum"] / 40 < 2000
    assert stats["output_tokens"]["sum"] / 40 < 300
    assert sum(request.prompt_tokens >= 2800 for request in load_trace("default").requests) == 5


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_mixed_long_makes_instances_of_the_tiny_preset_merge(seed: int) -> None:
    """On devices of 16 MiB: TP1 holds 3,104 tokens, TP2 8,928, TP4 more than the model's context of 16,384."""
    lengths = [r.prompt_tokens + r.output_tokens for r in load_trace("mixed-long", TraceOptions(seed=seed)).requests]
    longer = [length for length in lengths if length > 3104]
    assert len(longer) == 4
    assert sum(8928 < length < 16384 for length in longer) == 1
    assert len(lengths) > 50
    assert max(length for length in lengths if length <= 3104) < 2000, "short ones fit with room to spare"


def test_the_paper_mix_has_the_papers_rates() -> None:
    requests = load_trace("synthetic:paper-mix?duration=36000").requests
    short = sum(request.prompt_tokens == 1000 for request in requests)
    long = sum(request.prompt_tokens == 50_000 for request in requests)
    assert short + long == len(requests)
    assert short / 600 == pytest.approx(60, rel=0.03)
    assert long / 600 == pytest.approx(1, rel=0.15)


def lengths_of(trace: str, seed: int) -> list[int]:
    return [r.prompt_tokens + r.output_tokens for r in load_trace(trace, TraceOptions(seed=seed)).requests]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", ["paper-mix-tiny", "burst-long-tiny", "diurnal-long-tiny"])
def test_scaled_workloads_fit_the_tiny_preset_only_if_instances_merge(name: str, seed: int) -> None:
    """On devices of 16 MiB: TP1 holds 3,104 tokens, TP2 8,928, TP4 the model's context of 16,384."""
    lengths = lengths_of(name, seed)
    assert max(lengths) < 16384
    assert 2 <= sum(length > 3104 for length in lengths) < len(lengths) / 10
    assert max(length for length in lengths if length <= 3104) < 2000, "short ones fit with room to spare"


def test_the_scaled_paper_mix_needs_the_degrees_of_the_paper() -> None:
    """Its short requests take as much of TP1, and its long ones as much more than TP2, as in the paper's setting."""
    small, large = lengths_of("paper-mix-tiny", 0), lengths_of("paper-mix", 0)
    assert min(small) / 3104 == pytest.approx(min(large) / 3750, rel=0.15)
    assert max(small) / 8928 == pytest.approx(max(large) / 41250, rel=0.05)


def test_the_share_of_long_requests_shifts_over_the_day() -> None:
    requests = load_trace("diurnal-long").requests

    def share(first: float, last: float) -> float:
        chosen = [request.prompt_tokens > 10_000 for request in requests if first <= request.arrival_s % 3600 < last]
        return sum(chosen) / len(chosen)

    night = (share(0, 600) + share(3000, 3600)) / 2
    assert night > 5 * share(1200, 2400)


def test_a_phase_shifts_a_diurnal_load_by_that_part_of_its_period() -> None:
    times = [
        r.arrival_s
        for r in load_trace("synthetic:diurnal?rate=5&period=1000&phase=0.25&duration=2000&prompt=9").requests
    ]
    rising = sum(0 <= time % 1000 < 500 for time in times)  # a quarter past the lowest point: the peak is at 250 s
    assert rising / len(times) == pytest.approx(0.5 + 0.8 / np.pi, abs=0.02)


def test_rates_and_burstiness_are_as_asked() -> None:
    assert cv(f"synthetic:poisson?rate=2{LONG}") == pytest.approx(1, abs=0.03)
    assert cv(f"synthetic:gamma?rate=2&cv=3{LONG}") == pytest.approx(3, rel=0.06)
    assert cv(f"synthetic:gamma?rate=2&cv=0.5{LONG}") == pytest.approx(0.5, abs=0.03)
    assert cv(f"synthetic:constant?rate=2{LONG}") == pytest.approx(0, abs=1e-6)
    for shape in ("poisson", "gamma", "constant"):
        trace = load_trace(f"synthetic:{shape}?rate=2{LONG}")
        assert len(trace) / 20000 == pytest.approx(2, rel=0.05)


def test_a_ramp_rises_and_bursts_stay_in_their_windows() -> None:
    ramp = np.array([r.arrival_s for r in load_trace("synthetic:ramp?rate_start=0&rate_end=4&duration=2000").requests])
    assert np.mean(ramp > 1000) == pytest.approx(0.75, abs=0.03)
    bursts = load_trace("synthetic:on-off?rate=5&on=2&off=8&duration=500").requests
    assert all(request.arrival_s % 10 < 2 for request in bursts)
    assert len(bursts) == pytest.approx(500, rel=0.15)


def test_parts_joined_by_plus_are_merged_by_time_and_do_not_disturb_each_other() -> None:
    alone = load_trace("synthetic:poisson?rate=1&prompt=10&duration=50")
    both = load_trace("synthetic:poisson?rate=1&prompt=10&duration=50+constant?rate=0.1&prompt=9000&duration=50")
    assert [r for r in both.requests if r.prompt_tokens == 10] == list(alone.requests)
    assert sum(r.prompt_tokens == 9000 for r in both.requests) == 5


@settings(max_examples=30)
@given(
    st.sampled_from(SHAPES.names()),
    st.floats(1, 60),
    st.integers(0, 2**32),
    st.sampled_from(["7", "uniform:3:90", "lognormal:50:1.5:2:400"]),
)
def test_any_shape_stays_inside_its_duration_and_lengths(shape: str, seconds: float, seed: int, lengths: str) -> None:
    try:
        trace = load_trace(f"synthetic:{shape}?prompt={lengths}&output=3&duration={seconds}", TraceOptions(seed=seed))
    except UserError:  # a slow shape may make no request in a short time
        assume(False)
    assert all(0 <= request.arrival_s < seconds for request in trace.requests)
    assert all(2 <= request.prompt_tokens <= 400 for request in trace.requests)


@pytest.mark.parametrize(
    "spec",
    [
        "synthetic:poisson?rate=0",
        "synthetic:poisson?rate=nan",
        "synthetic:poisson?rate=x",
        "synthetic:poisson?rate",
        "synthetic:poisson?rate=1&rate=2",
        "synthetic:poisson?prompt=0",
        "synthetic:poisson?prompt=uniform:9:3",
        "synthetic:poisson?prompt=gauss:1:2",
        "synthetic:poisson?duration=-1",
        "synthetic:poisson?rate=1e9&duration=1e9",
        "synthetic:ramp?rate_start=0&rate_end=0",
        "synthetic:diurnal?amplitude=2&prompt=1",
        "default?rate=3",
    ],
)
def test_bad_specs_are_user_errors(spec: str) -> None:
    with pytest.raises(UserError):
        load_trace(spec)


@pytest.mark.parametrize("text", ["1000", "uniform:3:9", "lognormal:90:0.55:32:256"])
def test_a_length_distribution_writes_the_spec_that_makes_it(text: str) -> None:
    assert str(parse_lengths(text)) == text
