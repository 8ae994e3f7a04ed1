"""What every source of step times promises to the loop."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gyges.errors import UnknownNameError, UserError
from gyges.sim.cost.base import StepShape
from gyges.sim.cost.sources import CostSpec, cost_model
from gyges.sim.hardware import load_hardware
from gyges.sim.models import sim_model

H20 = load_hardware("h20")[0]
LLAMA, QWEN, MIXTURE = (sim_model(n) for n in ("meta-llama/Llama-3.1-8B", "Qwen/Qwen2.5-32B", "Qwen/Qwen3-30B-A3B"))
MODELS = {
    "llama": cost_model("analytic", CostSpec(LLAMA, H20)),
    "tp4": cost_model("analytic", CostSpec(QWEN, H20, 4)),
    "mixture": cost_model("analytic", CostSpec(MIXTURE, H20, 2)),
}


def decode(sequences: int, length: int) -> StepShape:
    return StepShape(decodes=sequences, decode_context=sequences * length, decode_longest=length, sampled=sequences)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(MODELS)),
    decodes=st.integers(1, 300),
    mean=st.integers(1, 20000),
    extra=st.integers(0, 30000),
    steps=st.integers(1, 40),
)
def test_a_jump_over_decode_steps_costs_the_same_as_its_steps_to_the_last_bit(name, decodes, mean, extra, steps):
    cost = MODELS[name]
    context, longest = decodes * mean, mean + extra
    one_by_one = [
        cost.step_s(StepShape(decodes, context + i * decodes, longest + i, (), decodes)) for i in range(steps)
    ]
    assert cost.decode_steps_s(decodes, context, longest, steps).tolist() == one_by_one


@pytest.mark.parametrize("name", sorted(MODELS))
def test_more_work_never_takes_less_time(name):
    cost = MODELS[name]
    assert cost.step_s(decode(8, 100)) <= cost.step_s(decode(8, 1000)) <= cost.step_s(decode(64, 1000))
    assert cost.step_s(StepShape(prefills=((512, 0),))) < cost.step_s(StepShape(prefills=((2048, 0),)))
    assert cost.step_s(StepShape(prefills=((512, 0),))) < cost.step_s(StepShape(prefills=((512, 50000),)))


def test_one_decode_takes_the_time_to_read_the_weights():
    """8.03 G parameters less the embedding, 2 bytes each, at 0.85 x 4 TB/s; then 32 x 20 us and 0.5 ms of overhead."""
    read = (8.03e9 - 128256 * 4096) * 2 / (0.85 * 4e12)
    assert MODELS["llama"].step_s(decode(1, 1)) == pytest.approx(read + 32 * 20e-6 + 0.5e-3, rel=0.01)


def test_a_long_prefill_takes_the_time_of_its_arithmetic():
    """2 FLOP for each parameter of a layer and token, and 2 x 2 x heads x head_dim for each pair in causal attention."""
    layer = 4096 * 128 * (2 * 32 + 2 * 8) + 3 * 4096 * 14336
    flops = 32 * (2 * 8192 * layer + 4 * 32 * 128 * 8192 * 8193 / 2)
    seconds = MODELS["llama"].step_s(StepShape(prefills=((8192, 0),)))
    assert seconds == pytest.approx(flops / (0.8 * 148e12), rel=0.01)


def test_a_wider_instance_is_faster_but_not_by_its_degree():
    narrow, wide = (cost_model("analytic", CostSpec(QWEN, H20, d)).step_s(decode(32, 1000)) for d in (1, 4))
    assert narrow / 4 < wide < narrow


def test_a_mixture_reads_the_experts_that_its_tokens_touch():
    steps = np.array([MODELS["mixture"].step_s(decode(n, 1)) for n in (1, 8, 256)])
    reading_all = MIXTURE.weight_bytes(2) / (0.85 * 4e12)
    assert steps[0] < reading_all < steps[2]
    assert steps[0] < steps[1] < steps[2]


def test_what_cannot_be_priced_is_refused():
    with pytest.raises(UnknownNameError, match="analytic"):
        cost_model("crystal-ball", CostSpec(LLAMA, H20))
    with pytest.raises(UserError, match="TP3"):
        cost_model("analytic", CostSpec(LLAMA, H20, 3))
