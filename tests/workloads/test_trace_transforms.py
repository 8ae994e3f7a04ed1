"""Transformations: order and counts are kept, effects are recorded, seeds decide."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gyges.errors import UserError
from workloads import Provenance, Trace, TraceOptions, TraceRequest, transforms
from workloads.load import apply_options

MakeTrace = Callable[..., Trace]

hashed = st.tuples(st.lists(st.integers(0, 50), min_size=1, max_size=8).map(tuple), st.integers(1, 600))


@st.composite
def requests(draw: st.DrawFn) -> TraceRequest:
    hashes, block = draw(st.one_of(st.just((None, None)), hashed))
    return TraceRequest(
        arrival_s=draw(st.one_of(st.integers(0, 20).map(float), st.floats(0, 1e5))),
        prompt_tokens=draw(st.integers(1, 5000)),
        output_tokens=draw(st.integers(1, 500)),
        session=draw(st.sampled_from([None, "a", "b"])),
        prefix_hashes=hashes,
        hash_block=block,
    )


traces = st.lists(requests(), min_size=1, max_size=30).map(
    lambda rows: Trace("t", tuple(sorted(rows, key=lambda row: row.arrival_s)), Provenance("t", "test", "0"))
)
factors = st.floats(0.001, 100)


def assert_ordered(trace: Trace) -> None:
    assert all(a.arrival_s <= b.arrival_s for a, b in pairwise(trace.requests))


@given(traces, factors)
def test_time_scale_changes_arrivals_only(trace: Trace, factor: float) -> None:
    scaled = transforms.time_scale(trace, factor)
    assert_ordered(scaled)
    assert [(r.prompt_tokens, r.output_tokens) for r in scaled.requests] == [
        (r.prompt_tokens, r.output_tokens) for r in trace.requests
    ]
    assert all(b.arrival_s == a.arrival_s * factor for a, b in zip(trace.requests, scaled.requests, strict=True))


@given(traces, factors)
def test_length_scale_keeps_count_and_arrivals_and_at_least_one_token(trace: Trace, factor: float) -> None:
    scaled = transforms.length_scale(trace, factor)
    assert [r.arrival_s for r in scaled.requests] == [r.arrival_s for r in trace.requests]
    for before, after in zip(trace.requests, scaled.requests, strict=True):
        assert after.prompt_tokens == max(1, round(before.prompt_tokens * factor))
        assert after.output_tokens == max(1, round(before.output_tokens * factor))
        if after.prefix_hashes is not None and before.prefix_hashes is not None:
            assert after.prefix_hashes[0] == before.prefix_hashes[0]
            assert set(after.prefix_hashes) <= set(before.prefix_hashes)


def test_length_scale_shrinks_hash_blocks_with_the_prompt(make_trace: MakeTrace) -> None:
    request = TraceRequest(0.0, 1200, 100, prefix_hashes=(7, 8, 9), hash_block=512)
    eighth = transforms.length_scale(make_trace(request), 1 / 8).requests[0]
    assert (eighth.prompt_tokens, eighth.prefix_hashes, eighth.hash_block) == (150, (7, 8, 9), 64)
    # 512 tokens at 1/1000 are half a token: every second block is seen, and the prefix stays a prefix.
    tiny = transforms.length_scale(make_trace(request), 1 / 1024).requests[0]
    assert (tiny.prompt_tokens, tiny.prefix_hashes, tiny.hash_block) == (1, (7,), 1)


@given(traces, st.integers(2, 6000), st.sampled_from(["drop", "clamp"]))
def test_max_context_holds_and_counts(trace: Trace, tokens: int, policy: str) -> None:
    over = sum(request.total_tokens > tokens for request in trace.requests)
    if policy == "drop" and over == len(trace):
        with pytest.raises(UserError, match="leaves no request"):
            transforms.max_context(trace, tokens, policy)
        return
    held = transforms.max_context(trace, tokens, policy)
    effect = held.provenance.transforms[-1].effect
    assert_ordered(held)
    assert all(request.total_tokens <= tokens for request in held.requests)
    if policy == "drop":
        assert effect["dropped"] == over == len(trace) - len(held)
    else:
        assert effect["clamped"] == over
        assert len(held) == len(trace)


@given(traces, st.integers(0, 5), st.floats(0.001, 50))
def test_dequantize_keeps_order_and_stays_inside_the_tick(trace: Trace, seed: int, tick: float) -> None:
    spread = transforms.dequantize(trace, seed, tick)
    assert_ordered(spread)
    for before, after in zip(trace.requests, spread.requests, strict=True):
        assert before.arrival_s <= after.arrival_s
        assert after.arrival_s < before.arrival_s + tick or after.arrival_s == before.arrival_s
        assert (before.prompt_tokens, before.output_tokens) == (after.prompt_tokens, after.output_tokens)
    assert spread.content_sha256 == transforms.dequantize(trace, seed, tick).content_sha256


@pytest.mark.parametrize(
    ("times", "tick"),
    [
        ([0, 3, 5.999, 9, 12, 15.001], 3.0),  # Mooncake
        ([0, 1, 5, 6, 40, 42], 1.0),  # BurstGPT
        ([0, 0.5, 1.5, 4.0], 0.5),
    ],
)
def test_the_tick_is_found(make_trace: MakeTrace, times: list[float], tick: float) -> None:
    trace = make_trace(*((float(time), 1, 1) for time in times for _ in range(3)))
    assert transforms.detect_tick(trace) == pytest.approx(tick)


def test_a_trace_without_tick_is_told_apart(make_trace: MakeTrace) -> None:
    with pytest.raises(UserError, match="no clock tick"):
        transforms.detect_tick(make_trace(*((time, 1, 1) for time in (0, 0.000127, 0.3, 1.7000001, 2.12))))
    with pytest.raises(UserError, match="--tick"):
        transforms.detect_tick(make_trace((1.0, 1, 1), (1.0, 1, 1)))


def test_dequantize_differs_by_seed(make_trace: MakeTrace) -> None:
    trace = make_trace(*((float(i // 4), 1, 1) for i in range(40)))
    assert transforms.dequantize(trace, 1).content_sha256 != transforms.dequantize(trace, 2).content_sha256


def test_duration_is_half_open_and_limit_counts(make_trace: MakeTrace) -> None:
    trace = make_trace((0.0, 1, 1), (1.0, 2, 2), (2.0, 3, 3))
    assert [r.prompt_tokens for r in transforms.duration(trace, 2.0).requests] == [1, 2]
    limited = transforms.limit(trace, 1)
    assert len(limited) == 1
    assert limited.provenance.transforms[0].effect == {"before": 3, "after": 1, "dropped": 2}


@given(traces, st.integers(0, 5))
def test_mixing_in_keeps_every_request_of_both_and_the_order(trace: Trace, seed: int) -> None:
    spec = "constant?rate=2&prompt=99999&output=7&duration=5"
    mixed = transforms.mix_in(trace, spec, seed)
    assert_ordered(mixed)
    assert [r for r in mixed.requests if r.prompt_tokens != 99999] == list(trace.requests)
    assert [r.arrival_s for r in mixed.requests if r.prompt_tokens == 99999] == [i / 2 for i in range(10)]
    assert mixed.provenance.transforms[-1].effect["added"] == 10


def test_what_is_mixed_in_lasts_as_long_as_the_trace_is_replayed_and_keeps_its_lengths(make_trace: MakeTrace) -> None:
    trace = make_trace(*((float(i), 1000, 10) for i in range(100)))
    options = TraceOptions(length_scale=0.5, limit=21, mix_in="constant?rate=0.5&prompt=5000&output=1")
    long = [r for r in apply_options(trace, options).requests if r.prompt_tokens != 500]
    assert [(r.arrival_s, r.prompt_tokens) for r in long] == [(2.0 * i, 5000) for i in range(10)]


def test_mixing_into_one_moment_asks_for_a_duration(make_trace: MakeTrace) -> None:
    with pytest.raises(UserError, match="duration=60"):
        transforms.mix_in(make_trace((0.0, 1, 1)), "poisson?rate=1", 0)


def test_options_apply_in_the_documented_order_and_are_all_recorded(make_trace: MakeTrace) -> None:
    trace = make_trace(*((float(i // 2), 100 * (i + 1), 10) for i in range(10)))
    options = TraceOptions(
        dequantize=True, length_scale=0.5, max_context=400, time_scale=0.5, duration=2.0, limit=3, seed=7
    )
    changed = apply_options(trace, options)
    names = [record.name for record in changed.provenance.transforms]
    assert names == ["dequantize", "length_scale", "max_context", "time_scale", "duration", "limit"]
    assert len(changed) == 3
    assert json.loads(json.dumps(changed.manifest()))["provenance"]["transforms"][0]["parameters"]["seed"] == 7
    assert changed.content_sha256 == apply_options(trace, options).content_sha256 != trace.content_sha256


def test_default_options_change_nothing(make_trace: MakeTrace) -> None:
    trace = make_trace((0.0, 1, 1))
    assert apply_options(trace, TraceOptions()) is trace


def test_clamping_the_prompt_drops_its_text_and_hashes(make_trace: MakeTrace) -> None:
    request = TraceRequest(0.0, 100, 10, prefix_hashes=(1, 2, 3, 4), hash_block=32, text="long")
    clamped = transforms.max_context(make_trace(request), 50, "clamp").requests[0]
    assert (clamped.prompt_tokens, clamped.output_tokens) == (40, 10)
    assert (clamped.prefix_hashes, clamped.text) == ((1, 2), None)


def _mixed(lengths, gap=2.0):
    requests = tuple(TraceRequest(gap * i, prompt, 1) for i, prompt in enumerate(lengths))
    return Trace("mixed", requests, Provenance("test", "jsonl", "0" * 64))


def test_rate_scales_gaps_so_that_requests_come_that_often():
    changed = transforms.rate(_mixed([10] * 11, gap=3.0), 2.0)
    assert (len(changed) - 1) / changed.duration_s == pytest.approx(2.0)
    assert changed.provenance.transforms[-1].name == "time_scale"
    with pytest.raises(UserError, match="one time"):
        transforms.rate(_mixed([10, 10], gap=0.0), 2.0)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_long_share_keeps_times_and_spreads_long_requests_evenly(share):
    trace = _mixed([100] * 15 + [5000])
    changed = transforms.long_share(trace, share, 3000, seed=1)
    assert [r.arrival_s for r in changed.requests] == [r.arrival_s for r in trace.requests]
    places = [i for i, r in enumerate(changed.requests) if r.total_tokens > 3000]
    assert len(places) == round(share * 16)
    gaps = {b - a for a, b in pairwise(places)}
    assert len(gaps) <= 1
    assert transforms.long_share(trace, share, 3000, seed=1).content_sha256 == changed.content_sha256


def test_long_share_needs_a_request_of_each_kind_to_draw_from():
    with pytest.raises(UserError, match="no request longer than 3000"):
        transforms.long_share(_mixed([100] * 4), 0.5, 3000, seed=0)
