"""Measured runs replayed: the pipelined instance by hand, files, and the ground truth where there is one."""

import os
from pathlib import Path

import numpy as np
import pytest
from bundles import VLLM_META as META
from bundles import make_bundle, write_run

from gyges.errors import UserError
from gyges.scheduling.batching import BatchLimits
from gyges.sim.cost.base import StepShape
from gyges.sim.measured_run import read_run
from gyges.sim.pipelined import PipelinedInstance, PipelinedRequest
from gyges.sim.validate import validate

LIMITS = BatchLimits(max_batch_tokens=64, max_seqs=2, block_size=4)


class OneSecond:
    """Every step takes a second."""

    degree = 1

    def step_s(self, shape: StepShape) -> float:
        return 1.0

    def decode_steps_s(self, decodes: int, context: int, longest: int, steps: int) -> np.ndarray:
        return np.ones(steps)


def serve(requests, depth, kv_tokens=1000, limits=LIMITS):
    return PipelinedInstance(requests, OneSecond(), limits, kv_tokens, depth=depth).run()


def test_alone_a_request_takes_its_steps_at_any_depth():
    for depth in (1, 2):
        (served,) = serve([PipelinedRequest(5.0, 100, 3)], depth)  # 2 chunks, then 2 decodes
        assert (served.queued_s, served.scheduled_s, served.first_token_s, served.last_token_s) == (5, 5, 7, 9)


def test_a_request_that_comes_during_a_step_waits_for_it_and_with_two_in_flight_for_the_next_one_too():
    requests = [PipelinedRequest(0.0, 10, 9), PipelinedRequest(0.5, 10, 2)]
    synchronous, ahead = serve(requests, 1)[1], serve(requests, 2)[1]
    assert (synchronous.queued_s, synchronous.scheduled_s, synchronous.first_token_s) == (1, 1, 2)
    assert (ahead.queued_s, ahead.scheduled_s, ahead.first_token_s) == (1, 1, 3)


def test_the_place_of_an_ended_request_stands_idle_for_the_step_that_was_scheduled_ahead():
    requests = [PipelinedRequest(0.0, 10, 2), PipelinedRequest(0.0, 10, 9), PipelinedRequest(0.0, 10, 1)]
    assert serve(requests, 1)[2].first_token_s == 3  # the first one ends at 2
    assert serve(requests, 2)[2].first_token_s == 4


def test_every_request_ends_even_where_blocks_are_short():
    requests = [PipelinedRequest(0.1 * i, 20, 30) for i in range(6)]
    limits = BatchLimits(64, 6, 4)
    for depth in (1, 2):
        served = serve(requests, depth, kv_tokens=60, limits=limits)
        assert all(s.queued_s <= s.scheduled_s < s.first_token_s < s.last_token_s for s in served)


def test_a_request_that_can_never_fit_is_refused():
    with pytest.raises(UserError, match="request 0 needs 109 tokens"):
        serve([PipelinedRequest(0.0, 100, 10)], 2, kv_tokens=60)


def test_a_run_is_read_relative_to_its_first_request_with_the_clocks_aligned(tmp_path):
    run = read_run(*write_run(tmp_path))
    assert [r.arrival_s for r in run.requests] == [0.0, 0.5]
    assert run.served[0].last_token_s == 4.0
    assert (run.depth, run.graph_tokens, run.limits.max_seqs) == (2, 4, 2)


def test_an_older_version_schedules_one_step_at_a_time(tmp_path):
    assert read_run(*write_run(tmp_path, {**META, "vllm_version": "0.10.2"})).depth == 1


@pytest.mark.parametrize(
    ("fields", "meta", "said"),
    [
        ({"output_toks": 0}, None, r"requests\.jsonl:1: output_toks must be a positive"),
        ({"first_token_ts": None}, None, r"requests\.jsonl:1: first_token_ts must be a number"),
        ({}, {"model": "tiny"}, r"meta\.json lacks vllm_version, engine_kwargs"),
        ({}, {**META, "engine_kwargs": {"max_num_seqs": 2}}, "max_num_batched_tokens must be a positive integer"),
        ({}, {**META, "vllm_version": "main"}, "vllm_version 'main' is not understood"),
        ({}, {**META, "engine_kwargs": {**META["engine_kwargs"], "data_parallel_size": 2}}, "data_parallel_size = 2"),
    ],
)
def test_bad_files_are_refused_with_file_line_and_field(tmp_path, fields, meta, said):
    with pytest.raises(UserError, match=said):
        read_run(*write_run(tmp_path, meta, **fields))


def test_errors_are_signed_simulated_over_measured(tmp_path):
    requests, meta = write_run(tmp_path)
    (tmp_path / "profile").mkdir()
    document = validate(requests, meta, make_bundle(tmp_path / "profile"))
    e2e = document["latencies"]["e2e_s"]["mean"]
    assert e2e["measured"] == 4.0
    assert e2e["error"] == pytest.approx(e2e["simulated"] / 4.0 - 1)
    assert document["hardware"] == "h20"
    assert sum(document["over_time"]["simulated_tokens_per_s"]) == 8


def test_a_card_that_is_not_known_is_asked_for(tmp_path):
    requests, meta = write_run(tmp_path)
    (tmp_path / "profile").mkdir()
    profile = make_bundle(tmp_path / "profile", meta="hardware: GB300\n")
    with pytest.raises(UserError, match=r"'GB300'.*--hardware.*h20"):
        validate(requests, meta, profile)
    assert validate(requests, meta, profile, "a100-40g")["hardware"] == "a100-40g"


TRUTH = os.environ.get("GYGES_GROUND_TRUTH")


@pytest.mark.skipif(not TRUTH, reason="GYGES_GROUND_TRUTH names no folder with requests.jsonl, meta.json and profile/")
def test_the_measured_run_is_met_within_the_goals():
    folder = Path(str(TRUTH))
    document = validate(folder / "requests.jsonl", folder / "meta.json", folder / "profile")
    assert {name: goal["met"] for name, goal in document["goals"].items()} == {
        "ttft_s": True,
        "tpot_s": True,
        "e2e_s": True,
    }
    assert document["coverage"]["extrapolated_share"] == 0
