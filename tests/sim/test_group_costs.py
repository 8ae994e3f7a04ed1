"""Step times of pipelines and of sequence parallelism, against what the work of one member must be."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gyges.sim.cost.analytic import AnalyticCost
from gyges.sim.cost.base import StepShape
from gyges.sim.cost.pipeline import PipelineCost
from gyges.sim.cost.sequence import RingCost, UlyssesCost
from gyges.sim.hardware import load_hardware
from gyges.sim.models import sim_model
from gyges.sim.systems.shift import ShiftCost

H20 = load_hardware("h20")[0]
QWEN = sim_model("Qwen/Qwen2.5-32B")
TP = {d: AnalyticCost(QWEN, H20, d) for d in (1, 2, 4, 8)}
COSTS = {
    "pipeline": PipelineCost(TP[1], 4),
    "pipeline of TP2": PipelineCost(TP[2], 4),
    "pipeline, flushed": PipelineCost(TP[1], 4, flush=True),
    "ring": RingCost(TP[1], 4),
    "ring of TP2": RingCost(TP[2], 2),
    "ulysses": UlyssesCost(TP[1], TP[4]),
    "shift": ShiftCost(TP[8], UlyssesCost(TP[1], TP[8]), 256),
}
BYTES = 64 * (5120 * 128 * 2 * (40 + 8) + 3 * 5120 * 27648) * 2  # weights of all layers
READ = 0.85 * 4e12  # bytes/s
LINK = 0.8 * 450e9


def decode(sequences: int, length: int) -> StepShape:
    return StepShape(decodes=sequences, decode_context=sequences * length, decode_longest=length, sampled=sequences)


@settings(max_examples=80, deadline=None)
@given(
    name=st.sampled_from(sorted(COSTS)),
    decodes=st.integers(1, 300),
    mean=st.integers(1, 20000),
    extra=st.integers(0, 30000),
    steps=st.integers(1, 30),
)
def test_a_jump_over_decode_steps_costs_the_same_as_its_steps_to_the_last_bit(name, decodes, mean, extra, steps):
    cost, context, longest = COSTS[name], decodes * mean, mean + extra
    one_by_one = [
        cost.step_s(StepShape(decodes, context + i * decodes, longest + i, (), decodes)) for i in range(steps)
    ]
    assert cost.decode_steps_s(decodes, context, longest, steps).tolist() == one_by_one


@pytest.mark.parametrize("name", sorted(COSTS.keys() - {"shift"}))
def test_more_work_never_takes_less_time(name):
    cost = COSTS[name]
    assert cost.step_s(decode(8, 100)) <= cost.step_s(decode(8, 1000)) < cost.step_s(decode(64, 1000))
    times = [
        cost.step_s(StepShape(prefills=((chunk, before),))) for chunk, before in ((512, 0), (2048, 0), (2048, 50000))
    ]
    assert times == sorted(set(times))


def test_a_token_takes_a_pipeline_all_stages_one_after_the_other():
    """All weights read once, as on one device; in each of 4 slots 5,120 x 2 bytes are sent on."""
    alone = TP[1].step_s(decode(1, 1))
    slots = 4 * (5120 * 2 / LINK + H20.all_reduce_s) + 3 * H20.step_s
    assert COSTS["pipeline"].step_s(decode(1, 1)) == pytest.approx(alone + slots, rel=1e-4)


def test_a_pipeline_decodes_as_many_tokens_as_its_stages_would_alone_but_for_overheads():
    """256 sequences on 4 stages: the step is that of 64 on one device; no stage waits."""
    one, four = TP[1].step_s(decode(64, 2000)), COSTS["pipeline"].step_s(decode(256, 2000))
    assert one < four < 1.05 * one


def test_a_drained_pipeline_idles_three_slots_of_seven():
    shape = StepShape(prefills=((2048, 0),), sampled=1)
    assert COSTS["pipeline, flushed"].step_s(shape) == pytest.approx(7 / 4 * COSTS["pipeline"].step_s(shape))
    assert COSTS["pipeline, flushed"].step_s(decode(9, 99)) == COSTS["pipeline"].step_s(decode(9, 99))


def test_a_ring_reads_all_weights_for_any_step_and_tensor_parallelism_its_share():
    ring, heads = COSTS["ring"].step_s(decode(4, 1)), TP[4].step_s(decode(4, 1))
    assert ring > BYTES / READ > heads


def test_a_long_prompt_takes_a_ring_a_fourth_of_the_arithmetic():
    shape = StepShape(prefills=((8192, 100_000),))
    assert COSTS["ring"].step_s(shape) == pytest.approx(TP[1].step_s(shape) / 4, rel=0.02)


def test_kv_cache_that_goes_round_is_hidden_unless_the_link_is_slower_than_attention():
    """A chunk of 16 tokens with 100,000 before it: 3/4 of their K and V, 256 KiB a token, over each link."""
    shape = StepShape(prefills=((16, 100_000),))
    assert COSTS["ring"].step_s(shape) > 0.75 * 100_016 * 256 * 1024 / LINK


def test_sequence_parallelism_by_heads_sends_less_than_tensor_parallelism_for_many_tokens():
    """Two all-to-alls of 1/4 of the tokens against two all-reduces of all of them; for one token its weights are read whole."""
    many, few = StepShape(prefills=((8192, 0),)), decode(1, 1)
    assert COSTS["ulysses"].step_s(many) < TP[4].step_s(many)
    assert COSTS["ulysses"].step_s(few) > TP[4].step_s(few)


def test_shift_takes_the_form_that_its_threshold_says():
    shift = COSTS["shift"]
    for tokens, form in ((1, shift.few), (256, shift.few), (257, shift.many), (2048, shift.many)):
        shape = StepShape(prefills=((tokens, 7),), sampled=1)
        assert shift.step_s(shape) == form.step_s(shape)
    np.testing.assert_array_equal(shift.decode_steps_s(257, 9, 9, 3), shift.many.decode_steps_s(257, 9, 9, 3))
    assert shift.degree == 8
