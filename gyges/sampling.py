"""Choosing the next token: greedy or seeded, with nothing in it that depends on the rest of the batch.

A seeded row is an exponential race: token i with probability p_i draws E_i from an exponential distribution, and the
largest p_i / E_i wins, which happens with probability p_i (Gumbel-max, written without logarithms of p). E_i is a pure
function of (seed, position, i), so the token is a pure function of (seed, position, logits row).

Why not one uniform number and the inverse of the cumulative distribution: rounding noise eps in the logits, which a
change of the TP degree brings, moves every boundary of the cumulative distribution, and the chance that some token
changes adds up over the vocabulary. In the race only two near-equal leaders can swap, so it stays at about eps. With
eps = 1e-6 and a flat distribution over 16 k tokens that is roughly a hundred times rarer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

_WORD = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class SamplingRow:
    """How one row of logits becomes a token.

    temperature 0 is greedy, and then nothing else matters. top_p 1 and top_k 0 keep every token. ``seed`` is any
    integer (its low 64 bits count); ``position`` is the index of the output token within its request, from 0.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    position: int = 0


def sample(logits: torch.Tensor, params: Sequence[SamplingRow]) -> list[int]:
    """One token id for each row of ``logits``, [B, vocab] of any float dtype on any device; ``params`` has B entries.

    Greedy (temperature 0): the largest logit; of equal ones the lowest id.

    Otherwise, in this order and with the meaning that transformers' warpers give them:

    * logits / temperature, in fp64;
    * top_k: keeps each token whose logit is at least the k-th largest, so tokens tied with the k-th all stay; k of 0
      or at least the vocabulary keeps all;
    * top_p: softmax over what is left, sorted by falling probability (of equal ones the lower id first); keeps a token
      while the mass of those *before* it is below top_p. That is the smallest set that reaches top_p, at least 1 token;
    * a draw among the tokens kept, in proportion to their probabilities.

    A logit of -inf is never drawn. A row with NaN, +inf or nothing above -inf is a broken invariant of the model
    (AssertionError) where it is sampled; a greedy row is not inspected.
    """
    assert logits.ndim == 2, f"logits are [batch, vocab], got {tuple(logits.shape)}"
    assert len(params) == logits.shape[0], f"{logits.shape[0]} rows of logits but {len(params)} sampling rows"
    if not params:
        return []
    drawn = [i for i, row in enumerate(params) if row.temperature > 0]
    if len(drawn) < len(params):
        tokens = logits.argmax(dim=-1).tolist()
        chosen = logits[drawn]
    else:
        tokens, chosen = [0] * len(params), logits
    if drawn:
        scores = chosen.detach().float().cpu().numpy()
        for i, row_scores in zip(drawn, scores, strict=True):
            tokens[i] = _draw(row_scores, params[i])
    return tokens


def kept_probabilities(scores: np.ndarray, row: SamplingRow) -> np.ndarray:
    """The distribution that a sampled row is drawn from: float64 [vocab], sums to 1, zero where top_k or top_p cut.

    ``scores``: float32 [vocab]. ``row.temperature`` must be positive.
    """
    weights = _kept_weights(scores, row)
    probabilities: np.ndarray = weights / weights.sum()
    return probabilities


def _kept_weights(scores: np.ndarray, row: SamplingRow) -> np.ndarray:
    """Unnormalised: the most probable token weighs 1."""
    top = scores.max()
    assert np.isfinite(top), f"logits must have a finite maximum to sample from, got {top}"
    with np.errstate(over="ignore"):  # a tiny temperature sends the others to -inf, as it should
        weights = np.exp((scores.astype(np.float64) - float(top)) / row.temperature)
    if 0 < row.top_k < scores.size:
        cut = scores.size - row.top_k
        weights[scores < np.partition(scores, cut)[cut]] = 0.0
    if row.top_p < 1:
        falling = np.sort(weights[weights > 0])[::-1]
        reached = np.cumsum(falling)
        # Token j (in falling order) stays while the mass before it, reached[j - 1], is below top_p of the whole.
        keep = 1 + int(np.searchsorted(reached[:-1], row.top_p * reached[-1], side="left"))
        least = falling[keep - 1]
        surplus = int(np.count_nonzero(weights >= least)) - keep
        weights[weights < least] = 0.0
        if surplus:
            weights[np.flatnonzero(weights == least)[-surplus:]] = 0.0
    return weights


def _draw(scores: np.ndarray, row: SamplingRow) -> int:
    weights = _kept_weights(scores, row)
    return int(np.argmax(weights / _exponentials(row.seed, row.position, scores.size)))


def _exponentials(seed: int, position: int, count: int) -> np.ndarray:
    """``count`` draws from the exponential distribution, float64, all positive; a function of its arguments alone.

    Raw words of a bit generator keyed by (seed, position), because numpy promises those, unlike the streams of its
    distributions, to stay the same in every version. Fixed-width fields keep two keys from ever meeting.
    """
    assert position >= 0, f"the position of an output token is at least 0, got {position}"
    key = np.random.SeedSequence(((seed & _WORD) << 64) | position, pool_size=4)
    words = np.random.SFC64(key).random_raw(count)
    uniform = (words >> np.uint64(12)).astype(np.float64)
    uniform += 0.5  # exact in 53 bits: neither 0 nor, after scaling, 1
    uniform *= 2.0**-52
    np.log(uniform, out=uniform)
    return np.negative(uniform, out=uniform)
