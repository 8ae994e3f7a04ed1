"""Token ids that share what the hashes share; figures that a hand can check; a plot that is there."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gyges.errors import UserError
from workloads import Provenance, Trace, TraceRequest
from workloads.plot import plot_trace
from workloads.prompts import prompt_tokens
from workloads.stats import trace_stats

MakeTrace = Callable[..., Trace]


@given(st.integers(1, 300), st.integers(4, 1000), st.integers(0, 9), st.integers(0, 9))
def test_prompts_have_their_length_and_no_special_token(length: int, vocab: int, index: int, seed: int) -> None:
    request = TraceRequest(0.0, length, 1)
    tokens = prompt_tokens(request, index, vocab, seed)
    assert len(tokens) == length
    assert all(3 <= token < vocab for token in tokens)
    assert tokens == prompt_tokens(request, index, vocab, seed)


def test_prompts_differ_by_index_and_seed() -> None:
    request = TraceRequest(0.0, 64, 1)
    assert len({prompt_tokens(request, index, 32000, seed) for index in range(4) for seed in range(4)}) == 16


def test_requests_share_exactly_the_blocks_whose_hashes_they_share() -> None:
    first = TraceRequest(0.0, 40, 1, prefix_hashes=(1, 2, 3), hash_block=16)
    second = TraceRequest(1.0, 70, 1, prefix_hashes=(1, 2, 9), hash_block=16)
    a, b = prompt_tokens(first, 0, 32000, 0), prompt_tokens(second, 1, 32000, 0)
    assert (len(a), len(b)) == (40, 70)  # a partial last block; fewer hashes than blocks
    assert a[:32] == b[:32]
    assert a[32:40] != b[32:40]
    again = prompt_tokens(second, 2, 32000, 0)
    assert again[:48] == b[:48]
    assert again[48:] != b[48:]  # beyond the hashes nothing is shared


def test_a_vocabulary_without_ordinary_tokens_is_refused() -> None:
    with pytest.raises(UserError, match="vocabulary of 3"):
        prompt_tokens(TraceRequest(0.0, 1, 1), 0, 3, 0)


def test_stats_by_hand(make_trace: MakeTrace) -> None:
    trace = make_trace((0.0, 4000, 96), (1.0, 4000, 97), (1.5, 70_000, 1), (5.0, 1, 1))
    stats = trace_stats(trace)
    assert (stats["requests"], stats["duration_s"]) == (4, 5.0)
    assert stats["requests_per_s"] == pytest.approx(3 / 5)
    assert stats["peak_requests_per_s"] == 2
    assert stats["prompt_tokens"]["mean"] == pytest.approx(78_001 / 4)
    assert stats["share_over"] == {"4k": 0.5, "8k": 0.25, "16k": 0.25, "32k": 0.25, "64k": 0.25}
    mean = 5 / 3
    deviation = math.sqrt(sum((gap - mean) ** 2 for gap in (1, 0.5, 3.5)) / 3)
    assert stats["gaps_s"]["cv"] == pytest.approx(deviation / mean)
    assert stats["prefix_reuse"] is None


def test_prefix_reuse_counts_blocks_only_behind_a_shared_prefix(make_trace: MakeTrace) -> None:
    rows = [(1, 2, 3), (1, 2, 4), (9, 2, 3)]
    trace = make_trace(*(TraceRequest(0.0, 24, 1, prefix_hashes=row, hash_block=8) for row in rows))
    assert trace_stats(trace)["prefix_reuse"] == pytest.approx(2 / 9)


@pytest.mark.parametrize("rows", [[(0.0, 1, 1)], [(2.0, 1, 1), (2.0, 5, 5)], [(0.0, 1, 1), (1e-9, 9, 9), (1e4, 3, 3)]])
def test_stats_and_plots_of_odd_traces(
    make_trace: MakeTrace, tmp_path: Path, rows: list[tuple[float, int, int]]
) -> None:
    trace = make_trace(*rows)
    assert trace_stats(trace)["requests"] == len(rows)
    paths = plot_trace(trace, tmp_path / "plot.png")
    assert [path.name for path in paths] == ["plot.png", "plot.svg"]
    assert paths[0].read_bytes()[:4] == b"\x89PNG"
    assert b"<svg" in paths[1].read_bytes()[:1000]


def test_a_plot_without_a_folder_is_refused(make_trace: MakeTrace, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder"):
        plot_trace(make_trace((0.0, 1, 1)), tmp_path / "absent" / "plot")


@pytest.mark.parametrize(
    "fields",
    [
        {"arrival_s": -1.0},
        {"arrival_s": math.nan},
        {"arrival_s": math.inf},
        {"prompt_tokens": 0},
        {"output_tokens": 0},
        {"prefix_hashes": (1,)},
        {"hash_block": 4},
        {"prefix_hashes": (), "hash_block": 4},
        {"prefix_hashes": (2**64,), "hash_block": 4},
        {"prefix_hashes": (1,), "hash_block": 0},
        {"session": ""},
        {"text": ""},
    ],
)
def test_a_request_cannot_be_impossible(fields: dict[str, object]) -> None:
    with pytest.raises(UserError):
        TraceRequest(**{"arrival_s": 0.0, "prompt_tokens": 1, "output_tokens": 1, **fields})  # type: ignore[arg-type]


def test_a_trace_is_neither_empty_nor_unsorted(make_trace: MakeTrace) -> None:
    with pytest.raises(UserError, match="no requests"):
        Trace("t", (), Provenance("t", "test", "0"))
    with pytest.raises(AssertionError, match="sorted"):
        make_trace((1.0, 1, 1), (0.0, 1, 1))
