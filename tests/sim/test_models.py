"""Models as sizes: the published parameter counts, and what fits where."""

import json

import pytest

from gyges.errors import UserError
from gyges.models.presets import PRESETS
from gyges.sim.hardware import load_hardware
from gyges.sim.models import from_hf, kv_capacity_tokens, sim_model

H20 = load_hardware("h20")[0]


@pytest.mark.parametrize(
    ("name", "billions"),  # as the model cards say
    [
        ("meta-llama/Llama-2-7b-hf", 6.74),
        ("meta-llama/Meta-Llama-3-8B", 8.03),
        ("meta-llama/Llama-3.1-70B", 70.6),
        ("meta-llama/Llama-3.2-1B", 1.24),
        ("Qwen/Qwen2.5-0.5B", 0.49),
        ("Qwen/Qwen2.5-7B", 7.61),
        ("Qwen/Qwen2.5-32B", 32.5),
        ("Qwen/Qwen2.5-72B", 72.7),
        ("Qwen/Qwen3-8B", 8.2),
        ("Qwen/Qwen3-32B", 32.8),
        ("Qwen/Qwen3-30B-A3B", 30.5),
    ],
)
def test_weights_are_the_published_parameter_count(name, billions):
    model = sim_model(name)
    assert model.weight_bytes() / 2e9 == pytest.approx(billions, rel=0.01)


def test_a_variant_has_the_sizes_of_its_base():
    assert sim_model("Qwen/Qwen2.5-32B-Instruct").geometry == sim_model("Qwen/Qwen2.5-32B").geometry


def test_kv_of_a_token_is_what_the_paper_says_for_qwen25_32b():
    assert sim_model("Qwen/Qwen2.5-32B").kv_bytes_per_token() == 256 * 1024


def test_a_mixture_keeps_all_experts_in_memory_and_uses_a_few():
    model = sim_model("Qwen/Qwen3-30B-A3B")
    assert (model.experts, model.active_experts, model.geometry.intermediate_size) == (128, 8, 128 * 768)


def test_config_json_alone_is_enough_and_decides(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**PRESETS.get("tiny"), "num_hidden_layers": 7}))
    assert sim_model(str(tmp_path)).geometry.num_layers == 7
    assert sim_model("tiny").geometry.num_layers == 4


def test_an_unknown_model_is_told_which_need_no_network():
    with pytest.raises(UserError, match=r"Qwen/Qwen2\.5-32B"):
        sim_model("nonsense")


def test_a_mixture_with_a_missing_size_is_refused_by_the_field():
    with pytest.raises(UserError, match="num_experts_per_tok"):
        from_hf("mine", {"model_type": "qwen3_moe", "num_experts": 4, "moe_intermediate_size": 8})


def test_kv_capacity_is_what_weights_leave_and_grows_more_than_linearly_with_the_degree():
    model = sim_model("Qwen/Qwen2.5-32B")
    tokens = [kv_capacity_tokens(model, H20, degree) for degree in (1, 2, 4)]
    budget = 96e9 * 0.9 - 2e9
    assert tokens[0] == int((budget - model.weight_bytes()) // (256 * 1024))
    assert tokens[1] > 2 * tokens[0]
    assert tokens[2] > 2 * tokens[1]


def test_a_model_that_does_not_fit_is_refused_with_the_devices_it_needs():
    with pytest.raises(UserError, match=r"141\.1 GB of the 84\.4 GB.*at least 2 devices"):
        kv_capacity_tokens(sim_model("meta-llama/Llama-3.1-70B"), H20, 1)
    with pytest.raises(UserError, match="not divisible by 3"):
        kv_capacity_tokens(sim_model("Qwen/Qwen2.5-32B"), H20, 3)
