"""The source that asks NVIDIA's AIConfigurator: what it promises, and what is said where it is not installed."""

import importlib.util
import sys

import pytest

from gyges.errors import UserError
from gyges.sim.cost.base import StepShape
from gyges.sim.cost.sources import CostSpec, cost_model
from gyges.sim.hardware import load_hardware
from gyges.sim.models import sim_model

H100, H20 = load_hardware("h100")[0], load_hardware("h20")[0]
LLAMA = sim_model("meta-llama/Llama-3.1-8B")
there = pytest.mark.skipif(
    importlib.util.find_spec("aiconfigurator_core") is None, reason="the extra aic is not installed"
)


def test_without_the_extra_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "aiconfigurator_core.sdk.engine", None)
    with pytest.raises(UserError, match=r"gyges\[aic\]"):
        cost_model("aic", CostSpec(LLAMA, H100))


@there
def test_a_card_without_data_is_refused_and_those_with_data_are_listed():
    with pytest.raises(UserError, match=r"'h20'.*h100, h200"):
        cost_model("aic", CostSpec(LLAMA, H20))


@there
@pytest.mark.parametrize(
    ("name", "degree"), [("meta-llama/Llama-3.1-8B", 1), ("Qwen/Qwen2.5-32B", 4), ("Qwen/Qwen3-30B-A3B", 2)]
)
def test_jumps_agree_with_steps_and_the_roofline_is_of_the_same_order(name, degree):
    model = sim_model(name)
    cost, roofline = (cost_model(source, CostSpec(model, H100, degree)) for source in ("aic", "analytic"))
    shapes = [StepShape(16, 16 * 1000 + 16 * i, 2000 + i, (), 16) for i in range(30)]
    assert cost.decode_steps_s(16, 16000, 2000, 30).tolist() == [cost.step_s(shape) for shape in shapes]
    for shape in (shapes[0], StepShape(prefills=((2048, 0),)), StepShape(8, 8000, 1000, ((512, 2048),), 8)):
        assert 0.3 < cost.step_s(shape) / roofline.step_s(shape) < 3.0


@there
def test_a_chunk_that_follows_others_attends_to_more():
    cost = cost_model("aic", CostSpec(LLAMA, H100))
    assert cost.step_s(StepShape(prefills=((512, 8192),))) > cost.step_s(StepShape(prefills=((512, 0),)))
