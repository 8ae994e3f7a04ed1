"""The GPU benchmarks, in small form: a mistake in them would otherwise show only where minutes are dear. No figure means any."""

import math

import pytest
import torch

pytest.importorskip("triton")

from gyges.bench.gpu.attention import AttentionBench, PagedContext, layout_spread, measure_attention
from gyges.bench.gpu.clock import DeviceClock
from gyges.bench.gpu.copies import CopyBench, measure_copies
from gyges.bench.gpu.parity import Sizes, check_kernels
from gyges.bench.gpu.step import StepBench, measure_steps
from gyges.bench.gpu.tuning import tune_decode
from gyges.bench.transform.shapes import SHAPES
from gyges.errors import EngineError
from gyges.kernels import reference
from gyges.kernels.sets import make_kernels
from gyges.kernels.triton import interpreting, why_not
from gyges.kv_cache.layouts import LAYOUTS

DEVICE = torch.device("cpu" if interpreting() else "cuda")
pytestmark = pytest.mark.skipif(bool(why_not(DEVICE)), reason=why_not(DEVICE))
PAGE, TINY = 16384, SHAPES.get("tiny").geometry
SMALL = Sizes(dim=16, lengths=(1, 40), chunk=(17, 20)) if interpreting() else Sizes()
TINY_TOKEN_BYTES = 2 * 4 * 16 * 4  # of one layer: K and V, 4 heads of 16, float32


def test_work_is_warmed_up_and_measured_as_often_as_asked():
    calls = []
    seconds = DeviceClock(torch.device("cpu")).measure(calls.append, repeats=3, warm_up=2)
    assert calls == [0, 1, 0, 1, 2]
    assert len(seconds) == 3


@pytest.mark.parametrize("layout", LAYOUTS.names())
@pytest.mark.parametrize("memory", [1, 1 << 20])
def test_a_benchmarked_context_is_what_its_table_says_in_every_layer_that_fits(layout, memory):
    kv = PagedContext(TINY, layout, 2, 45, PAGE, memory, make_kernels(DEVICE, "triton"))
    assert kv.layers == (1 if memory == 1 else 4)
    layer = kv.layers - 1
    gathered = kv.gather(layer, 16).cpu()
    for row in range(2):
        paged = kv.paged
        strides = (paged.kv_stride, paged.token_stride, paged.block_size)
        want = reference.context(
            kv.flat.cpu(), kv.base(layer), kv.tables[row].cpu(), 45, paged.heads.cpu(), *strides, 16
        )
        assert torch.equal(gathered[:, row], want)


def test_attention_is_measured_in_every_layout_and_what_does_not_fit_is_said():
    bench = AttentionBench(
        shapes=("tiny",), contexts=(40,), batches=(1, 2, 500), repeats=2, memory_bytes=1 << 20, copy_bytes=1 << 16,
        page_bytes=PAGE, kernels="triton",
    )  # fmt: skip
    found = measure_attention(bench, DEVICE)
    assert [(c["batch"], c["layout"]) for c in found["cases"]] == [(b, n) for b in (1, 2) for n in LAYOUTS.names()]
    assert {(s["batch"], s["layout"]) for s in found["skipped"]} == {(500, n) for n in LAYOUTS.names()}
    for case in found["cases"]:
        assert case["bytes"] == case["batch"] * 40 * TINY_TOKEN_BYTES
        assert case["of_copy"] == pytest.approx(case["bytes"] / case["seconds"]["median"] / found["copy_bytes_per_s"])
    late = measure_attention(AttentionBench(**{**vars_of(bench), "deadline_s": -math.inf}), DEVICE)
    assert not late["cases"]
    assert {s["reason"] for s in late["skipped"] if s["batch"] == 1} == {"out of time"}


def vars_of(bench: AttentionBench) -> dict:
    return {name: getattr(bench, name) for name in bench.__dataclass_fields__}


def test_layouts_are_compared_within_a_case():
    def case(batch: int, layout: str, seconds: float) -> dict:
        return {"shape": "s", "context": 1, "batch": batch, "layout": layout, "seconds": {"median": seconds}}

    found = layout_spread([case(1, "token-first", 2.0), case(1, "shard-pages", 3.0), case(4, "shard-pages", 9.0)])
    assert found == [{"shape": "s", "context": 1, "batch": 1, "layout": "shard-pages", "slower": 0.5}]


def test_copies_count_the_bytes_of_the_shard_that_moves():
    found = measure_copies(CopyBench("tiny", degree=4, kv_bytes=128 << 10, page_bytes=PAGE, repeats=1), DEVICE)
    kinds = {row["layout"]: row["kind"] for row in found["layouts"]}
    assert kinds == {
        "token-first": "compaction", "page-friendly": "compaction", "header-centric": "transfer", "shard-pages": "transfer",
    }  # fmt: skip
    for row in found["layouts"]:
        assert row["bytes"] == (128 << 10) // 4, row


def test_a_decode_step_is_measured_beside_its_floor_and_transformers():
    bench = StepBench(
        shape="tiny", dtype="float32", layout="header-centric", batches=(1, 2), context=10, repeats=1, page_bytes=PAGE,
        copy_bytes=1 << 16, kernels="triton",
    )  # fmt: skip
    found = measure_steps(bench, DEVICE)
    weights = 4 * (2048 * 192 + 192 + 4 * (2 * 192 + 2 * 192 * 192 + 2 * 64 * 192 + 3 * 192 * 576))
    for step in found["steps"]:
        floor = weights + step["batch"] * 11 * 4 * TINY_TOKEN_BYTES
        assert step["floor_s"] == pytest.approx(floor / found["copy_bytes_per_s"])
        assert step["transformers_seconds"]["median"] > 0


def test_launch_parameters_are_tried_until_the_deadline_fastest_first():
    def found(deadline_s: float) -> list[dict]:
        return tune_decode(
            DEVICE, "tiny", 1, 30, repeats=1, page_bytes=PAGE, memory_bytes=1 << 18, deadline_s=deadline_s
        )

    assert len(found(-1.0)) == 1
    rows = found(60.0)
    assert len({(row["tile"], row["warps"], row["stages"]) for row in rows}) == 18
    assert [row["seconds"] for row in rows] == sorted(row["seconds"] for row in rows)


@pytest.fixture(scope="module")
def checked():
    return check_kernels(DEVICE, SMALL)


def test_the_self_test_looks_at_every_kernel_in_both_dtypes(checked):
    attention = [
        f"{name}, {dtype}"
        for dtype in ("float32", "bfloat16")
        for name in ("decode attention", "prefill attention", "KV write")
    ]
    assert list(checked["worst"]) == [*attention, "page copy", "all-reduce"]
    assert checked["cases"] == len(LAYOUTS.names()) * 2 * 3 + 2


def test_the_self_test_notices_a_kernel_that_is_wrong(monkeypatch):
    from gyges.kernels.triton import prefill

    def off(*args, **kwargs):
        right(*args, **kwargs)
        args[6][3] += 0.1

    right = prefill.prefill_attention
    monkeypatch.setattr(prefill, "prefill_attention", off)
    with pytest.raises(EngineError, match=r"prefill attention is 0\.1 off"):
        check_kernels(DEVICE, SMALL)
