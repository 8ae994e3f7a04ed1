"""Presets are real models: transformers runs them on our weights, and their greedy output is worth comparing."""

from __future__ import annotations

import itertools
import json

import pytest
from checkpoints import make_checkpoint, reference_generate

from gyges.errors import UserError
from gyges.models.config import DecoderConfig
from gyges.models.hub import resolve_model
from gyges.models.presets import PRESETS
from gyges.models.source import CheckpointSource, RandomSource, save_checkpoint, state_dict, tensor_shapes

PROMPTS = [[5, 6, 7], list(range(2, 42))]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folders = {}
    for name in PRESETS.names():
        model = resolve_model(name)
        folder = tmp_path_factory.mktemp(name) / name
        folders[name] = save_checkpoint(RandomSource(model.config, 0), model.hf_config, folder, 40 << 20)
    return folders


@pytest.mark.parametrize(("name", "low", "high"), [("tiny", 2.0e6, 3.0e6), ("small", 42e6, 47e6)])
def test_presets_are_as_small_as_they_say(name, low, high):
    from math import prod

    count = sum(prod(shape) for shape in tensor_shapes(DecoderConfig.from_hf(PRESETS.get(name))).values())
    assert low <= count <= high


@pytest.mark.parametrize("name", PRESETS.names())
def test_presets_fit_tp_1_2_and_4(name):
    geometry = resolve_model(name).config.geometry()
    assert {1, 2, 4} <= set(geometry.valid_tp_degrees(4))


@pytest.mark.parametrize("name", PRESETS.names())
def test_greedy_output_of_a_preset_wanders_and_depends_on_the_prompt(saved, name):
    outputs = reference_generate(saved[name], PROMPTS, [48, 48])
    for tokens in outputs:
        assert len(set(tokens)) >= 32, f"repeats itself: {tokens}"
        assert sum(a == b for a, b in itertools.pairwise(tokens)) <= len(tokens) // 8
    assert outputs[0] != outputs[1]


@pytest.mark.parametrize("name", PRESETS.names())
def test_transformers_loads_our_weights_under_the_same_names(name):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    model = resolve_model(name, seed=3)
    with torch.device("meta"):
        theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(**model.hf_config))
    weights = state_dict(model.source_spec.open(model.config), model.config)
    theirs.load_state_dict(weights, strict=True, assign=True)
    assert set(theirs.state_dict()) == set(weights)
    assert set(weights) - set(tensor_shapes(model.config)) == (
        {"lm_head.weight"} if model.config.tied_embeddings else set()
    )


def test_seeds_give_different_weights_and_the_same_seed_the_same():
    import torch

    def embedding(seed):
        model = resolve_model("tiny", seed=seed)
        out = torch.empty(2048, 192)
        model.source_spec.open(model.config).read("model.embed_tokens.weight", out)
        return out

    assert torch.equal(embedding(1), embedding(1))
    assert not torch.equal(embedding(1), embedding(2))


def test_a_resolved_preset_is_a_copy_of_its_own():
    resolve_model("tiny").hf_config["rope_scaling"]["factor"] = 99
    assert resolve_model("tiny").config.rope.factor == 8.0


def test_a_folder_resolves_to_its_checkpoint(tmp_path):
    folder = make_checkpoint(tmp_path / "model", "qwen3", shards=2)
    model = resolve_model(str(folder))
    assert (model.name, model.revision, model.config.architecture) == ("model", None, "qwen3")
    source = model.source_spec.open(model.config)
    assert isinstance(source, CheckpointSource)
    assert set(source.names()) == set(tensor_shapes(model.config))


def test_end_tokens_come_from_generation_config_where_there_is_one(tmp_path):
    folder = make_checkpoint(tmp_path / "model", "llama", layers=1)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
    assert resolve_model(str(folder)).config.eos_token_ids == (7, 9)
    (folder / "generation_config.json").unlink()
    assert resolve_model(str(folder)).config.eos_token_ids == (1,)


@pytest.mark.parametrize("name", ["gpt5", "what is this", "a/b/c", "", "~nobody-here"])
def test_an_unknown_name_says_what_could_have_been_written(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"(?s)small, tiny.*\./my-model.*owner/name"):
        resolve_model(name)


def test_a_folder_that_is_missing_or_holds_no_model_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        resolve_model(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"config\.json"):
        resolve_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        resolve_model(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(UserError, match=r"cannot serve.*'gpt2'.*llama"):
        resolve_model(str(tmp_path))


class Hub:
    """Stands where huggingface_hub.snapshot_download is; answers with a folder or raises."""

    def __init__(self, answer):
        self.answer, self.calls = answer, []

    def __call__(self, repo_id, **options):
        self.calls.append((repo_id, options))
        if isinstance(self.answer, Exception):
            raise self.answer
        return str(self.answer)


def test_a_hub_id_downloads_config_and_safetensors_only_and_reports_the_commit(tmp_path, monkeypatch):
    from fnmatch import fnmatch

    snapshot = make_checkpoint(tmp_path / "models--o--m" / "snapshots" / "abc123", "llama", layers=1)
    hub = Hub(snapshot)
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub)
    model = resolve_model("owner/name", revision="main")
    assert (model.name, model.revision) == ("owner/name", "abc123")
    repo, options = hub.calls[0]
    assert (repo, options["revision"]) == ("owner/name", "main")

    def fetched(file):
        return any(fnmatch(file, pattern) for pattern in options["allow_patterns"])

    wanted = ["config.json", "model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json"]
    assert all(map(fetched, wanted))
    assert not any(
        map(fetched, ["pytorch_model.bin", "consolidated.safetensors", "original/params.json", "modeling.py"])
    )

    resolve_model("owner/name", weights=False)
    assert "model*.safetensors" not in hub.calls[1][1]["allow_patterns"]


def test_offline_without_a_cache_names_the_local_alternatives(tmp_path, monkeypatch):
    """The real client, told to stay offline, with an empty cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"(?s)out of reach.*\./my-model.*small, tiny"):
        resolve_model("owner/name")
