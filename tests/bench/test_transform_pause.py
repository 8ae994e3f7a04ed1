"""What is made of token times: gaps, medians, which tokens are compared; the requests that fill the KV cache."""

import threading

import pytest

from gyges.bench.transform.audience import Audience, gaps_between, same_prefix, typical_gap
from gyges.bench.transform.pause import PauseConfig, make_requests, notice
from gyges.core import FinishReason, RequestOutput
from gyges.engine.transformer import TransformationReport
from gyges.errors import EngineError, UserError

CONFIG = PauseConfig("tiny", ("shard-pages",), (0.1, 0.5, 0.9), 4, 1, 0)


def news(name: str, *tokens: int, end: FinishReason | None = None) -> RequestOutput:
    return RequestOutput(name, list(tokens), [float(t) for t in tokens], end)


def test_a_gap_counts_if_it_touches_the_transformation():
    times = [0.0, 1.0, 2.0, 5.0, 6.0, 7.0]
    assert gaps_between(times, 2.5, 4.5) == [3.0]
    assert gaps_between(times, 1.5, 5.5) == [1.0, 3.0, 1.0]
    assert gaps_between(times, 7.5, 8.0) == []


def test_typical_gaps_are_those_next_to_the_transformation():
    times = [[0.0, 9.0, 10.0, 12.0, 20.0, 21.0, 24.0]]
    assert typical_gap(times, until_s=12.5, count=2) == 1.5
    assert typical_gap(times, since_s=19.0, count=1) == 1.0
    assert typical_gap(times, since_s=19.0, count=5) == 2.0


def report(kind: str) -> TransformationReport:
    made = TransformationReport(kind, (0, 1), (1, 1), (2,), "test", True, asked_s=10.0, start_s=11.0, end_s=13.0)
    made.tokens, made.steps = 6, 3
    return made


def test_what_is_noticed_of_a_transformation():
    # One request stops for 4 s over the transformation (10 .. 13), the other only for 2 s.
    times = {"a": [7.0, 8.0, 9.0, 13.5, 14.5, 16.5], "b": [7.0, 8.0, 9.0, 11.0, 13.0, 15.0, 17.0]}
    found = notice(report("merge"), times, window=2)
    assert found["before_gap_s"] == 1.0
    assert found["max_gap_s"] == 4.5
    assert found["pause_s"] == 3.5
    assert found["after_gap_s"] == found["merged_gap_s"] == 2.0
    assert found["during_tokens_per_s"] == 3.0
    assert found["before_tokens_per_s"] == 2.0
    assert notice(report("split"), times, window=2)["merged_gap_s"] == 1.0


def test_waiting_ends_when_all_have_their_tokens_and_fails_when_one_ends_before():
    audience = Audience()
    for name in ("a", "b"):
        audience.deliver(news(name, 1, 2))
    waiting = threading.Thread(target=audience.wait_for, args=(["a", "b"], 3, 20.0), daemon=True)
    waiting.start()
    while waiting.is_alive():
        audience.deliver(news("a", 3))
        audience.deliver(news("b", 3))
        waiting.join(0.001)
    assert min(map(len, audience.tokens.values())) >= 5
    audience.deliver(news("a", 5, end=FinishReason.ABORTED))
    audience.wait_for_end(["a"], 0.0)
    audience.wait_for(["a", "b"], 0, 0.0)
    with pytest.raises(EngineError, match="1 requests did not get 3 tokens within 0 s"):
        audience.wait_for(["b"], 3, 0.0)
    with pytest.raises(EngineError, match="request a ended in the middle: aborted"):
        audience.wait_for(["a"], 1, 0.0)


def test_requests_fill_the_cache_step_by_step_and_fit_alone():
    requests = make_requests(CONFIG, 10_000, 2048)
    assert list(requests) == [0.5, 0.9, 0.1], "the longest are given out first"
    for fill, share in ((0.1, 0.1), (0.5, 0.4), (0.9, 0.4)):
        assert len(requests[fill]) == 4
        for request in requests[fill]:
            assert len(request.prompt) == int((share - 0.01) * 10_000)
            assert request.max_length < 10_000
    per_instance = sum(len(group[0].prompt) for group in requests.values())
    assert 0.85 <= per_instance / 10_000 <= 0.9, "contexts grow while it is measured"
    again = make_requests(CONFIG, 10_000, 2048)
    assert again == requests
    whole = make_requests(PauseConfig("tiny", ("shard-pages",), (0.9,), 2, 1, 0), 10_000, 2048)
    assert len(whole[0.9]) == 4, "two for each of two instances: one would cost its length squared"


def test_impossible_fills_are_refused():
    with pytest.raises(UserError, match="between 0 and 92 %"):
        PauseConfig("tiny", ("shard-pages",), (0.99,), 4, 1, 0)
    with pytest.raises(UserError, match="too close together"):
        make_requests(PauseConfig("tiny", ("shard-pages",), (0.5, 0.505), 4, 1, 0), 1000, 2048)


def test_tokens_are_compared_as_far_as_both_went():
    assert same_prefix([1, 2, 3], [1, 2, 3, 4]) == (3, 3)
    assert same_prefix([1, 9, 3], [1, 2, 3, 4]) == (1, 3)
