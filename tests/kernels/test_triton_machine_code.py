"""Triton's kernels compile for GPUs that are not here, and to machine code that speed is possible with."""

import pytest

pytest.importorskip("triton")

from gyges.bench.gpu.machine_code import machine_code


@pytest.fixture(scope="module")
def rows():
    return machine_code(90)


def of(rows, kernel, variant):
    (row,) = [row for row in rows if row["kernel"] == kernel and row["variant"].startswith(variant)]
    return row


def test_every_kernel_compiles_in_both_dtypes_without_spilling_registers(rows):
    attention = {(name, dtype) for name in ("_split", "_combine", "_chunk", "_rope_write") for dtype in ("bf", "fl")}
    assert {(row["kernel"], row["variant"][:2]) for row in rows} >= attention
    assert {row["kernel"] for row in rows} >= {"_copy", "_all_reduce"}
    assert [row for row in rows if row.get("stack_bytes")] == []


@pytest.mark.parametrize("kernel", ["_split", "_chunk"])
def test_attention_reads_the_cache_sixteen_bytes_at_a_time_and_uses_tensor_cores_in_bf16(rows, kernel):
    """Offsets come from memory, so without the promise of their alignment every element would be a read of its own."""
    for dtype in ("bfloat16", "float32"):
        row = of(rows, kernel, dtype)
        # Narrower ones: block offsets of 8 bytes, the row's length and the head's offset.
        assert {width for width in row["reads"] if int(width) < 16} <= {"8"}, row
        assert row["reads"]["16"] >= 16
        assert row["tensor_cores"] == (dtype == "bfloat16")


def test_aligned_copies_and_sums_move_sixteen_bytes_at_a_time(rows):
    assert of(rows, "_copy", "aligned")["reads"]["16"] > 0
    assert "16" not in of(rows, "_copy", "odd")["reads"]
    for variant in ("ranks meet", "ordered"):
        assert of(rows, "_all_reduce", variant)["reads"]["16"] > 0
