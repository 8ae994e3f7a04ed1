"""Longest contexts: the arithmetic, and the engine's word for it."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from cli.bench_capacity import render
from gyges.bench.capacity import capacities, capacity, with_degrees
from gyges.config import EngineConfig
from gyges.errors import UserError
from gyges.models.hub import resolve_model

TINY = resolve_model("tiny")
CONFIG = EngineConfig(model="tiny", instances=(1, 1), device_memory=11 << 20)


def rows(config: EngineConfig):
    return capacities(with_degrees(config, TINY), TINY)


@pytest.mark.parametrize("layout", ["token-first", "shard-pages"])
@pytest.mark.parametrize("padding", [True, False])
def test_a_device_is_used_up_to_the_last_group(layout, padding):
    config = replace(CONFIG, instances=(1,) * 4, layout=layout, padding=padding, page_bytes=16384)
    found = rows(config)
    assert [(each.degree, each.instances) for each in found] == [(1, 4), (2, 2), (4, 1)]
    for each in found:
        used = each.resident_bytes + each.ffn_bytes + each.kv_bytes + each.reserve_bytes + each.rest_bytes
        assert used == config.device_memory
        assert each.padding_bytes < each.ffn_bytes
        assert each.total == each.instances * each.max_tokens
    # What weights release, the KV cache has, but for what is less than a group.
    first, second, third = found
    assert first.released_bytes == first.released_tokens == 0
    for each in (second, third):
        gained = each.kv_bytes - first.kv_bytes
        assert abs(gained - each.released_bytes) <= 64 * 16384
    assert first.total < second.total < third.total
    assert 0 < second.released_tokens < third.released_tokens


def test_the_models_positions_limit_a_context_that_would_fit():
    found = rows(replace(CONFIG, device_memory=64 << 20))
    assert [each.limited_by for each in found] == ["model", "model"]
    assert {each.context for each in found} == {16383}
    found = rows(replace(CONFIG, device_memory=64 << 20, max_context=1000))
    assert {each.context for each in found} == {999}


def test_degrees_are_those_given_or_powers_of_two_that_the_model_can_take():
    assert with_degrees(replace(CONFIG, instances=(1,) * 8), TINY).candidate_degrees == (1, 2, 4)
    assert with_degrees(replace(CONFIG, instances=(1,) * 4, tp_degrees=(1, 4)), TINY).candidate_degrees == (1, 4)
    with pytest.raises(UserError, match="3 devices cannot all be TP2 instances"):
        with_degrees(replace(CONFIG, instances=(1, 2), tp_degrees=(2,)).with_(instances=(2, 1), tp_degrees=()).with_(
            instances=(3,), tp_degrees=(2,)), TINY)  # fmt: skip


def test_a_device_that_is_too_small_says_what_would_do():
    with pytest.raises(UserError, match="give at least --device-memory"):
        rows(replace(CONFIG, device_memory=2 << 20))


@pytest.mark.engine
def test_the_engine_completes_the_longest_context_and_rejects_one_token_more():
    said: list[str] = []
    document = capacity(CONFIG, check=True, progress=said.append)
    assert [each["degree"] for each in document["check"]] == [1, 2]
    for each in document["check"]:
        assert each["completed"], said
        assert each["longer_rejected"], said
        assert each["preemptions"] == 0
    console = Console(width=80, record=True, file=io.StringIO())
    render(console, document)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert "one more is rejected" in text
