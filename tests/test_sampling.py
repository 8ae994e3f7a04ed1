"""Sampling: greedy is argmax; seeded is a function of (seed, position, row) with the right distribution."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gyges.sampling import SamplingRow, kept_probabilities, sample

torch = pytest.importorskip("torch")

rows = st.builds(
    SamplingRow,
    temperature=st.sampled_from([0.0, 0.01, 0.7, 1.0, 3.0]),
    top_p=st.sampled_from([1e-9, 0.3, 0.9, 1.0]),
    top_k=st.sampled_from([0, 1, 5, 40, 10_000]),
    seed=st.integers(-(2**70), 2**70),
    position=st.integers(0, 2**40),
)


def logits_of(seed: int, batch: int, vocab: int, spread: float = 3.0) -> torch.Tensor:
    return spread * torch.randn(batch, vocab, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=80, deadline=None)
@given(params=st.lists(rows, min_size=1, max_size=12), seed=st.integers(0, 10**6), data=st.data())
def test_a_token_does_not_depend_on_the_rest_of_the_batch(params, seed, data):
    logits = logits_of(seed, len(params), 300)
    together = sample(logits, params)
    assert together == [sample(logits[i : i + 1], [row])[0] for i, row in enumerate(params)]
    order = data.draw(st.permutations(range(len(params))))
    assert sample(logits[list(order)], [params[i] for i in order]) == [together[i] for i in order]


def test_tokens_of_a_seed_are_pinned():
    """What a seed means is part of every saved result; change it knowingly."""
    logits = torch.linspace(-2, 2, 1000).repeat(6, 1)
    assert sample(logits, [SamplingRow(1.0, seed=42, position=i) for i in range(6)]) == PINNED


PINNED = [377, 760, 982, 866, 748, 948]


def test_greedy_is_the_largest_logit_and_the_lowest_id_of_equal_ones():
    logits = torch.zeros(3, 50_000)
    logits[0, [49_999, 7]] = 1.0
    logits[1] = -5.0
    logits[2, 123] = math.inf
    assert sample(logits, [SamplingRow()] * 3) == [7, 0, 123]
    assert sample(logits[:2].bfloat16(), [SamplingRow(), SamplingRow(0.0, 0.5, 3, 9, 9)]) == [7, 0]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6), temperature=st.sampled_from([1e-300, 0.01, 1.0, 50.0]), position=st.integers(0, 10**6)
)
def test_top_k_of_one_and_a_vanishing_top_p_and_a_vanishing_temperature_are_greedy(seed, temperature, position):
    logits = logits_of(seed, 1, 500)
    greedy = sample(logits, [SamplingRow()])
    assert sample(logits, [SamplingRow(temperature, top_k=1, seed=seed, position=position)]) == greedy
    assert sample(logits, [SamplingRow(temperature, top_p=1e-12, seed=seed, position=position)]) == greedy
    assert sample(logits, [SamplingRow(1e-300, seed=seed, position=position)]) == greedy


@pytest.mark.parametrize("vary", ["position", "seed"])
@pytest.mark.parametrize("row", [{}, {"top_k": 6}, {"top_p": 0.8}, {"top_k": 9, "top_p": 0.7, "temperature": 1.5}])
def test_draws_follow_the_distribution(row, vary):
    """Chi-square at fixed seeds, both along the positions of one request and across the seeds of many."""
    draws, fields = 4000, {"temperature": 1.0, **row}
    logits = logits_of(1, 1, 12, spread=1.0)
    expected = draws * kept_probabilities(logits[0].numpy(), SamplingRow(**fields))
    params = [SamplingRow(**fields, **{vary: i}) for i in range(draws)]
    counts = np.bincount(sample(logits.expand(draws, -1), params), minlength=12)
    kept = expected > 0
    assert counts[~kept].sum() == 0
    chi_square = ((counts - expected)[kept] ** 2 / expected[kept]).sum()
    freedom = kept.sum() - 1
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom) + 4


def test_consecutive_positions_and_seeds_are_independent():
    uniform = torch.zeros(1, 4)
    grid = np.array(
        sample(uniform.expand(4096, 4), [SamplingRow(1.0, seed=s, position=p) for s in range(64) for p in range(64)])
    ).reshape(64, 64)
    for a, b in [(grid[:, :-1], grid[:, 1:]), (grid[:-1], grid[1:]), (grid[:-1, 1:], grid[1:, :-1])]:
        pairs = np.bincount((4 * a + b).ravel(), minlength=16)
        assert ((pairs - a.size / 16) ** 2 / (a.size / 16)).sum() < 40


def test_seed_and_position_are_never_mistaken_for_each_other():
    flat = torch.zeros(1, 10_000)
    keys = [(5, 1), (1, 5), (5 + 2**32, 0), (5, 2**32), (5 + 2**32, 1), (5, 0), (-5, 1), (0, 5)]
    tokens = [sample(flat, [SamplingRow(1.0, seed=s, position=p)])[0] for s, p in keys]
    assert len(set(tokens)) == len(tokens)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 3, 20, 200]),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 0.999, 1.0]),
)
def test_what_is_kept_is_what_the_warpers_of_transformers_keep(seed, temperature, top_k, top_p):
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    scores = logits_of(seed, 1, 100)
    ours = kept_probabilities(scores[0].numpy(), SamplingRow(temperature, top_p, top_k))
    theirs = TemperatureLogitsWarper(temperature)(None, scores.double())
    if top_k:
        theirs = TopKLogitsWarper(top_k)(None, theirs)
    if top_p < 1:
        theirs = TopPLogitsWarper(top_p)(None, theirs)
    np.testing.assert_allclose(ours, theirs.softmax(-1)[0].numpy(), rtol=1e-9, atol=1e-300)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), top_p=st.floats(1e-6, 1.0, exclude_max=True))
def test_top_p_keeps_the_smallest_set_that_reaches_p(seed, top_p):
    scores = logits_of(seed, 1, 200)[0].numpy()
    full = kept_probabilities(scores, SamplingRow(1.0))
    kept = kept_probabilities(scores, SamplingRow(1.0, top_p=top_p)) > 0
    assert full[kept].sum() >= top_p - 1e-12
    assert full[kept].sum() - full[kept].min() < top_p + 1e-12
    assert full[kept].min() >= full[~kept].max(initial=0)


def test_ties_at_the_boundary_stay_in_top_k_and_fall_from_the_high_ids_in_top_p():
    scores = np.array([1, 3, 2, 2, 2, 0], dtype=np.float32)
    assert np.flatnonzero(kept_probabilities(scores, SamplingRow(1.0, top_k=2))).tolist() == [1, 2, 3, 4]
    equal = np.zeros(8, dtype=np.float32)
    assert np.flatnonzero(kept_probabilities(equal, SamplingRow(1.0, top_p=0.375))).tolist() == [0, 1, 2]
    assert np.flatnonzero(kept_probabilities(equal, SamplingRow(1.0, top_p=0.376))).tolist() == [0, 1, 2, 3]


def test_a_masked_token_is_never_drawn_and_a_broken_row_is_not_sampled():
    logits = torch.zeros(1, 4)
    logits[0, [0, 2]] = -math.inf
    drawn = {sample(logits, [SamplingRow(2.0, seed=i)])[0] for i in range(100)}
    assert drawn == {1, 3}
    for broken in (math.nan, math.inf, -math.inf):
        with pytest.raises(AssertionError, match="finite"):
            sample(torch.full((1, 4), broken), [SamplingRow(1.0)])


def test_rounding_noise_rarely_changes_a_seeded_token_even_in_a_large_vocabulary():
    """Noise of 1e-4, a hundred times what a change of the TP degree brings."""
    logits = logits_of(3, 1, 16384, spread=2.0).expand(400, -1)
    noisy = logits + 1e-4 * torch.randn(400, 16384, generator=torch.Generator().manual_seed(4))
    params = [SamplingRow(1.0, seed=9, position=i) for i in range(400)]
    changed = sum(a != b for a, b in zip(sample(logits, params), sample(noisy, params), strict=True))
    assert changed <= 1  # 0.04 expected; inverting the cumulative distribution would change about ten


def test_dtypes_are_converted_and_counts_must_match():
    logits = logits_of(5, 2, 64).bfloat16()
    params = [SamplingRow(1.0, seed=1), SamplingRow(1.0, seed=2)]
    assert sample(logits, params) == sample(logits.double(), params)
    assert sample(logits[:0], []) == []
    with pytest.raises(AssertionError, match="2 rows of logits but 1"):
        sample(logits, params[:1])
