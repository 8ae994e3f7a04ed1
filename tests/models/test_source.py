"""Sources: every slice is the slice of the whole, whatever the destination looks like; what is wrong is named."""

from __future__ import annotations

import json
import pickle

import msgspec
import pytest
from checkpoints import make_checkpoint, reference_generate, reference_model
from hypothesis import given, settings
from hypothesis import strategies as st

from gyges.errors import UnknownNameError, UserError
from gyges.models.config import DecoderConfig
from gyges.models.hub import resolve_model
from gyges.models.source import (
    CheckpointSource,
    RandomSource,
    SourceSpec,
    save_checkpoint,
    state_dict,
    tensor_shapes,
)

torch = pytest.importorskip("torch")

ARCHITECTURES = ["llama", "qwen2", "qwen3"]
Q = "model.layers.0.self_attn.q_proj.weight"
DOWN = "model.layers.1.mlp.down_proj.weight"
TINY = resolve_model("tiny")
RANDOM = RandomSource(TINY.config, 0)
WHOLE = state_dict(RANDOM, TINY.config)


def config_of(folder) -> DecoderConfig:
    return DecoderConfig.from_hf(json.loads((folder / "config.json").read_text()))


def edit_tensors(folder, change) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_checkpoint_of_transformers_reads_back_tensor_by_tensor(tmp_path, architecture, tied):
    folder = make_checkpoint(tmp_path, architecture, tied=tied, shards=2)
    config = config_of(folder)
    assert config.tied_embeddings == tied
    ours = state_dict(CheckpointSource(folder, config), config)
    theirs = reference_model(str(folder)).state_dict()
    assert set(ours) == set(theirs)
    for name, weight in theirs.items():
        assert torch.equal(ours[name], weight), name


def test_the_tensor_list_has_the_biases_and_norms_of_each_architecture(tmp_path):
    for architecture, bias in [
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("qwen3", {"attention_bias": True}),
    ]:
        folder = make_checkpoint(tmp_path / architecture, architecture, **bias)
        assert set(CheckpointSource(folder, config_of(folder)).names()) == set(tensor_shapes(config_of(folder)))


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """A bf16 checkpoint in several files, and its tensors."""
    folder = make_checkpoint(tmp_path_factory.mktemp("sharded"), "llama", dtype="bfloat16", shards=3)
    config = config_of(folder)
    assert config.dtype == "bfloat16"
    source = CheckpointSource(folder, config)
    return source, state_dict(source, config)


spans = st.tuples(st.integers(0, 700), st.integers(0, 700)).map(lambda pair: slice(*sorted(pair)))


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from([Q, DOWN, "model.embed_tokens.weight", "model.layers.0.mlp.gate_proj.weight"]),
    rows=st.none() | spans,
    cols=st.none() | spans,
    layout=st.sampled_from(["plain", "transposed", "strided"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    which=st.sampled_from(["checkpoint", "random"]),
)
def test_a_slice_lands_in_any_view_as_the_slice_of_the_whole(sharded, name, rows, cols, layout, dtype, which):
    source, whole = sharded if which == "checkpoint" else (RANDOM, WHOLE)
    expected = whole[name][rows or slice(None), cols or slice(None)].to(dtype)
    height, width = expected.shape
    if layout == "plain":
        backing = torch.full((height, width), 7.0, dtype=dtype)
        out = backing
    elif layout == "transposed":
        backing = torch.full((width, height), 7.0, dtype=dtype)
        out = backing.t()
    else:
        backing = torch.full((height + 1, 2 * width + 1), 7.0, dtype=dtype)
        out = backing[1:, 1::2]
    source.read(name, out, rows=rows, cols=cols)
    assert torch.equal(out, expected)
    if layout == "strided":
        assert (backing[0] == 7).all(), "wrote outside its view"
        assert (backing[:, ::2] == 7).all(), "wrote outside its view"


def test_vectors_are_sliced_by_rows(tmp_path):
    folder = make_checkpoint(tmp_path, "qwen2")
    bias = "model.layers.0.self_attn.k_proj.bias"
    config = config_of(folder)
    for source in (CheckpointSource(folder, config), RandomSource(config, 0)):
        whole, part = torch.empty(32), torch.empty(10)
        source.read(bias, whole)
        source.read(bias, part, rows=slice(5, 15))
        assert torch.equal(part, whole[5:15])
        assert whole.std() > 0


def test_an_output_of_the_wrong_shape_is_never_filled_by_broadcast(sharded):
    for source in (sharded[0], RANDOM):
        with pytest.raises(AssertionError, match="out is"):
            source.read("model.norm.weight", torch.empty(1))


@pytest.mark.parametrize("file", ["model.safetensors.index.json", None])
def test_a_missing_tensor_or_shard_is_named(tmp_path, file):
    folder = make_checkpoint(tmp_path, "llama", shards=2)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    if file:
        del index["weight_map"][Q]
        (folder / file).write_text(json.dumps(index))
        with pytest.raises(UserError, match=Q):
            CheckpointSource(folder, config_of(folder))
    else:
        shard = index["weight_map"][Q]
        (folder / shard).unlink()
        with pytest.raises(UserError, match=shard):
            CheckpointSource(folder)


def test_a_tensor_that_the_index_misplaces_is_named(tmp_path):
    folder = make_checkpoint(tmp_path, "llama", shards=2)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    files = sorted(set(index["weight_map"].values()))
    index["weight_map"][Q] = next(file for file in files if file != index["weight_map"][Q])
    path.write_text(json.dumps(index))
    with pytest.raises(UserError, match=Q):
        CheckpointSource(folder, config_of(folder))


def test_a_shape_that_contradicts_config_json_is_named(tmp_path):
    folder = make_checkpoint(tmp_path, "llama")
    edit_tensors(folder, lambda tensors: tensors.update({Q: torch.zeros(64, 32)}))
    with pytest.raises(UserError, match=rf"{Q}.*\[64, 32\].*\[64, 64\]"):
        CheckpointSource(folder, config_of(folder))


def test_a_tensor_that_would_be_ignored_is_named_but_rotary_tables_are_not_missed(tmp_path):
    folder = make_checkpoint(tmp_path, "llama")
    config = config_of(folder)
    edit_tensors(folder, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)}))
    CheckpointSource(folder, config)
    edit_tensors(folder, lambda t: t.update({Q.replace("weight", "bias"): torch.zeros(64)}))
    with pytest.raises(UserError, match=r"q_proj\.bias"):
        CheckpointSource(folder, config)


def test_an_lm_head_may_be_missing_exactly_when_it_is_tied(tmp_path):
    tied, untied = (make_checkpoint(tmp_path / str(t), "llama", tied=t) for t in (True, False))
    assert "lm_head.weight" not in CheckpointSource(tied, config_of(tied)).names()
    edit_tensors(untied, lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(UserError, match=r"lm_head\.weight"):
        CheckpointSource(untied, config_of(untied))


def test_quantised_storage_is_refused(tmp_path):
    folder = make_checkpoint(tmp_path, "llama")
    edit_tensors(folder, lambda tensors: tensors.update({Q: torch.zeros(64, 64, dtype=torch.int8)}))
    source = CheckpointSource(folder, config_of(folder))
    with pytest.raises(UserError, match=rf"{Q}.*I8"):
        source.read(Q, torch.empty(64, 64))


def test_a_truncated_file_is_named(tmp_path):
    folder = make_checkpoint(tmp_path, "llama")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model\.safetensors"):
        CheckpointSource(folder, config_of(folder))


def test_a_folder_without_safetensors_says_what_it_has(tmp_path):
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(UserError, match=r"pytorch_model\.bin"):
        CheckpointSource(tmp_path)
    with pytest.raises(UserError, match="no checkpoint folder"):
        CheckpointSource(tmp_path / "nowhere")


def test_a_random_tensor_does_not_depend_on_what_was_read_before_or_on_global_state():
    other = RandomSource(TINY.config, 0)
    for name in reversed(other.names()):
        torch.manual_seed(hash(name) % 1000)
        out = torch.empty(other.shape(name))
        other.read(name, out)
        assert torch.equal(out, WHOLE[name]), name


def test_random_tensors_differ_from_each_other_and_have_the_scale_they_should():
    layer = [WHOLE[f"model.layers.{i}.mlp.gate_proj.weight"] for i in range(2)]
    up = WHOLE["model.layers.0.mlp.up_proj.weight"]
    for a, b in [(layer[0], layer[1]), (layer[0], up), (layer[0][:100], layer[0][100:200])]:
        correlation = torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]
        assert abs(correlation) < 0.03
    assert WHOLE["model.layers.0.input_layernorm.weight"].eq(1).all()
    assert abs(up.std() * 192**0.5 - 1) < 0.01
    assert abs(up.mean()) < 1e-3
    assert abs(WHOLE[DOWN].std() * 576**0.5 - 1) < 0.01


def test_random_weights_of_a_seed_are_pinned():
    """What a seed means is part of every saved result; change it knowingly."""
    first = WHOLE["model.embed_tokens.weight"][0, :3].tolist()
    down = WHOLE[DOWN][:2, 0].tolist()
    assert first + down == pytest.approx(PINNED, abs=0, rel=1e-6)


PINNED = [-0.0447582677, 0.0836783499, -0.0217659641, -0.0683429167, -0.0720830411]


def test_an_unknown_tensor_is_named(sharded):
    for source in (sharded[0], RANDOM):
        with pytest.raises(UserError, match="no tensor nonsense"):
            source.read("nonsense", torch.empty(1))


@pytest.mark.parametrize("shard_bytes", [1 << 30, 1 << 20])
def test_a_saved_checkpoint_is_the_same_model_here_and_in_transformers(tmp_path, shard_bytes):
    folder = save_checkpoint(RANDOM, TINY.hf_config, tmp_path, shard_bytes)
    files = list(folder.glob("*.safetensors"))
    assert (len(files) == 1) == (shard_bytes == 1 << 30)
    back = resolve_model(str(folder))
    assert back.config == TINY.config
    ours = state_dict(back.source_spec.open(back.config), back.config)
    theirs = reference_model(str(folder)).state_dict()
    for name, weight in WHOLE.items():
        assert torch.equal(ours[name], weight), name
        assert torch.equal(theirs[name], weight), name
    with pytest.raises(UserError, match="already holds weights"):
        save_checkpoint(RANDOM, TINY.hf_config, tmp_path, shard_bytes)


def test_a_checkpoint_is_saved_in_the_dtype_of_its_config(tmp_path):
    config = {**TINY.hf_config, "torch_dtype": "bfloat16"}
    folder = save_checkpoint(RANDOM, config, tmp_path)
    weights = state_dict(CheckpointSource(folder), TINY.config, torch.bfloat16)
    assert torch.equal(weights[Q], WHOLE[Q].to(torch.bfloat16))
    assert (folder / "model.safetensors").stat().st_size < 2 * 2.6e6


def test_a_spec_survives_the_way_to_a_worker(tmp_path):
    folder = make_checkpoint(tmp_path, "llama")
    for spec, config in [
        (SourceSpec("random", seed=5), TINY.config),
        (SourceSpec("checkpoint", path=str(folder)), config_of(folder)),
    ]:
        copies = [
            pickle.loads(pickle.dumps(spec)),
            msgspec.msgpack.decode(msgspec.msgpack.encode(spec), type=SourceSpec),
        ]
        assert copies == [spec, spec]
        assert set(spec.open(config).names()) == set(tensor_shapes(config))
    decoded = msgspec.msgpack.decode(msgspec.msgpack.encode(TINY.config), type=DecoderConfig)
    assert decoded == pickle.loads(pickle.dumps(TINY.config)) == TINY.config
    with pytest.raises(UnknownNameError, match="checkpoint, random"):
        SourceSpec("nfs").open(TINY.config)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_reference_outputs_vary_enough_to_catch_a_mistake(tmp_path, architecture):
    for tied in (False, True):
        folder = make_checkpoint(tmp_path / str(tied), architecture, tied=tied)
        outputs = reference_generate(folder, [[3, 4, 5], list(range(20, 50))], [24, 24])
        assert outputs[0] != outputs[1]
        assert all(len(set(tokens)) >= 8 for tokens in outputs)
