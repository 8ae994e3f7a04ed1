"""Token ids for a trace's requests: traces carry lengths, engines want tokens."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from gyges.errors import UserError
from workloads.schema import TraceRequest

FIRST_TOKEN = 3  # ids 0 to 2 are padding, beginning and end of text in many vocabularies
_UNSHARED, _SHARED = 1, 2  # keeps a request's own tokens and a hash's tokens in separate random streams


def prompt_tokens(request: TraceRequest, index: int, vocab_size: int, seed: int) -> tuple[int, ...]:
    """``request.prompt_tokens`` token ids, uniform over [3, vocab_size), the same for the same arguments.

    Block i of a request with prefix hashes is a function of hash i (and of vocab_size and seed), so requests that share
    hashes share tokens. Everything else depends on ``index``, the request's place in the trace, so nothing else is
    shared, not even by requests of the same length.
    """
    if vocab_size <= FIRST_TOKEN:
        raise UserError(f"a vocabulary of {vocab_size} tokens leaves none after the special ids 0 to {FIRST_TOKEN - 1}")
    length = request.prompt_tokens
    tokens: list[int] = []
    if request.prefix_hashes is not None and request.hash_block is not None:
        for value in request.prefix_hashes[: -(-length // request.hash_block)]:
            tokens.extend(_block_tokens(value, request.hash_block, vocab_size, seed))
    if len(tokens) < length:
        rng = np.random.default_rng([seed, _UNSHARED, index])
        tokens.extend(rng.integers(FIRST_TOKEN, vocab_size, length - len(tokens)).tolist())
    return tuple(tokens[:length])


@lru_cache(maxsize=8192)
def _block_tokens(value: int, block: int, vocab_size: int, seed: int) -> tuple[int, ...]:
    rng = np.random.default_rng([seed, _SHARED, value])
    return tuple(rng.integers(FIRST_TOKEN, vocab_size, block).tolist())
