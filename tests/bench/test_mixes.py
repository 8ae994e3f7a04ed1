"""Requests are a function of their seed, and their lengths lie where the mix says."""

import pytest

from gyges.bench.mixes import MIXES, make_work
from gyges.bench.run import PeersConfig
from gyges.errors import UnknownNameError, UserError


@pytest.mark.parametrize("name", MIXES.names())
def test_lengths_and_ids_are_in_range_and_cover_it(name):
    mix, work = MIXES.get(name), make_work(name, 500, 2048, seed=3)
    for values, (low, high) in ((list(map(len, work.prompts)), mix.prompt), (work.outputs, mix.output)):
        assert low <= min(values) <= low + (high - low) // 10
        assert high - (high - low) // 10 <= max(values) <= high
    assert {token for prompt in work.prompts for token in prompt} <= set(range(2, 2048))
    assert work.useful_tokens == sum(n for _, n in work.lengths)


def test_the_same_seed_gives_the_same_requests_and_another_one_does_not():
    assert make_work("mixed", 20, 512, 7) == make_work("mixed", 20, 512, 7)
    assert make_work("mixed", 20, 512, 7) != make_work("mixed", 20, 512, 8)


def test_lengths_of_a_known_seed_stay_what_they_are():
    """Figures of different days are compared: the requests behind them must not drift."""
    assert make_work("mixed", 3, 512, 0).lengths == [(397, 217), (219, 216), (387, 27)]


@pytest.mark.parametrize(
    ("options", "known"),
    [({"mixes": ("mild",)}, "decode-heavy"), ({"skip": ("vllm",)}, "generate_batch"), ({"preset": "huge"}, "tiny")],
)
def test_an_unknown_name_lists_the_known_ones(options, known):
    with pytest.raises(UnknownNameError, match=known):
        PeersConfig(**options)


def test_nothing_to_measure_is_refused():
    with pytest.raises(UserError, match="at least one request mix"):
        PeersConfig(mixes=())
