"""The decoder on Triton's kernel set computes what transformers does: prompts in chunks, decode rows, graphs' batches."""

import pytest
import torch
from checkpoints import make_checkpoint, reference_model

pytest.importorskip("triton")

from gyges.bench.gpu.model import LocalModel
from gyges.errors import UserError
from gyges.kernels import triton as kernels_triton
from gyges.kernels.sets import make_kernels
from gyges.kernels.triton import interpreting, why_not
from gyges.models.graphs import DecodeGraphs, sizes_up_to
from gyges.models.hub import resolve_model

DEVICE = torch.device("cpu" if interpreting() else "cuda")
pytestmark = pytest.mark.skipif(bool(why_not(DEVICE)), reason=why_not(DEVICE))
LONG, SHORT = [5, 6, 7, 300, 9, 41, 2, 77, 8, 13, 200], [90, 4, 17]
LONG_BLOCKS, SHORT_BLOCKS = [3, 0, 5], [1, 4]


def local(folder, layout: str) -> LocalModel:
    found = resolve_model(str(folder))
    return LocalModel(
        found.config, make_kernels(DEVICE, "triton"), dtype=torch.float32, layout=layout, num_blocks=6, block_size=5,
        page_bytes=4096, max_positions=64, source=found.source_spec.open(found.config),
    )  # fmt: skip


def theirs(folder, tokens: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return reference_model(str(folder.resolve()))(torch.tensor([tokens])).logits[0, -1]


def close(got: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(got.cpu(), want, atol=2e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    where = tmp_path_factory.mktemp("models")
    return {kind: make_checkpoint(where / kind, kind) for kind in ("llama", "qwen3")}


@pytest.mark.parametrize(("kind", "layout"), [("llama", "shard-pages"), ("qwen3", "token-first")])
def test_logits_on_triton_kernels_are_those_of_transformers(folders, kind, layout):
    """A prompt in two chunks, the second beside another request's decode row, then both decode together."""
    folder = folders[kind]
    model = local(folder, layout)
    close(model.forward(model.batch(chunk=(SHORT, 0, SHORT_BLOCKS)))[-1], theirs(folder, SHORT))
    model.forward(model.batch(chunk=(LONG[:6], 0, LONG_BLOCKS)))
    both = model.forward(model.batch([(33, 3, SHORT_BLOCKS)], chunk=(LONG[6:], 6, LONG_BLOCKS)))
    close(both[0], theirs(folder, [*SHORT, 33]))
    close(both[1], theirs(folder, LONG))
    decoded = model.forward(model.batch([(8, 4, SHORT_BLOCKS), (101, 11, LONG_BLOCKS)]))
    close(decoded[0], theirs(folder, [*SHORT, 33, 8]))
    close(decoded[1], theirs(folder, [*LONG, 101]))


def test_rows_that_a_graph_has_and_the_batch_has_not_change_nothing(folders):
    folder = folders["llama"]
    model = local(folder, "header-centric")
    graphs = DecodeGraphs(model.decoder, model.weights, model.kv, model.layout, model.comm, max_blocks=4)
    graphs.capture([1, 4])
    model.forward(model.batch(chunk=(LONG, 0, LONG_BLOCKS)))
    model.forward(model.batch(chunk=(SHORT, 0, SHORT_BLOCKS)))
    two = model.batch([(33, 3, SHORT_BLOCKS), (101, 11, LONG_BLOCKS)])
    one = model.batch([(8, 4, SHORT_BLOCKS)])
    assert graphs.takes(two)
    assert not graphs.takes(model.batch(chunk=([1, 2], 12, LONG_BLOCKS))), "a chunk is no decode row"
    assert not graphs.takes(model.batch([(1, 3, SHORT_BLOCKS)] * 5)), "no graph has 5 rows"
    out = graphs.forward(two)
    assert out.shape[0] == 2
    close(out[0], theirs(folder, [*SHORT, 33]))
    close(out[1], theirs(folder, [*LONG, 101]))
    before = model.kv.paged.values.clone()
    close(graphs.forward(one)[0], theirs(folder, [*SHORT, 33, 8]))
    changed = (model.kv.paged.values != before).nonzero().flatten()
    own = model.kv.block_offsets[SHORT_BLOCKS[0]] + 4 * model.kv.geometry.strides["token"]
    assert set(((changed - own) % model.kv.geometry.strides["layer"]).tolist()) <= written_by_one_token(model)


def written_by_one_token(model: LocalModel) -> set[int]:
    """Elements of a layer that one token's K and V take, from its slot."""
    paged, dim = model.kv.paged, model.config.head_dim
    heads = paged.heads.tolist()
    return {h + kv * paged.kv_stride + d for h in heads for kv in range(2) for d in range(dim)}


def test_without_a_gpu_and_without_the_interpreter_the_error_names_both(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(UserError, match=r"TRITON_INTERPRET=1.*'cpu'"):
        make_kernels(torch.device("cpu"), "triton")


def test_without_triton_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(kernels_triton, "has_triton", lambda: False)
    with pytest.raises(UserError, match="pip install"):
        make_kernels(torch.device("cpu"), "triton")


def test_an_unknown_kernel_set_is_answered_with_the_known_ones():
    with pytest.raises(UserError, match=r"cpu.*triton"):
        make_kernels(torch.device("cpu"), "cutlass")


def test_a_release_whose_interpreter_is_broken_is_named_with_the_remedy(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    releases = {"triton": "3.6.0", "numpy": "2.4.1"}
    monkeypatch.setattr(kernels_triton.importlib.metadata, "version", releases.__getitem__)
    assert "triton>=3.7" in kernels_triton.why_not(torch.device("cpu"))
    releases["triton"] = "3.7.1+git"
    assert kernels_triton.why_not(torch.device("cpu")) == ""


@pytest.mark.parametrize(("most", "sizes"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (64, [1, 2, 4, 8, 16, 32, 64])])
def test_graphs_are_recorded_for_powers_of_two_and_the_largest_batch(most, sizes):
    assert sizes_up_to(most) == sizes
