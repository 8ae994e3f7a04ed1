"""Bad input ends in one sentence that names file, line, value and remedy; nothing is half-read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gyges.errors import UnknownNameError, UserError
from workloads import TraceOptions, load_trace
from workloads.options import parse_columns
from workloads.sources import RowError

Write = Callable[[str, str], Path]
HEADER = "arrival_s,prompt_tokens,output_tokens\n"


@pytest.mark.parametrize(
    ("row", "value"),
    [
        ("1,abc,2", "'abc'"),
        ("1,2.5,2", "'2.5'"),
        ("soon,1,2", "'soon'"),
        ("1,,2", "''"),
        ("1,1_000,2", "'1_000'"),
        ("1,2", "2 cells where the header has 3"),
        ("1,2,3,4", "4 cells where the header has 3"),
        ("1,nan,3", "'nan'"),
        ("1," + "9" * 5000 + ",3", "9999"),
        ("2023-02-30 00:00:00,1,1", "2023-02-30"),
    ],
)
@pytest.mark.parametrize("repair", [False, True])
def test_a_malformed_row_names_file_line_and_value(write: Write, row: str, value: str, repair: bool) -> None:
    path = write("t.csv", f"{HEADER}0,1,1\n{row}\n3,1,1\n")
    with pytest.raises(RowError) as caught:
        load_trace(str(path), TraceOptions(repair=repair))
    assert f"{path}, line 3:" in str(caught.value)
    assert value in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "line", ["{", "[1]", '"x"', '{"arrival_s": 1, "prompt_tokens": true, "output_tokens": 1}', '{"arrival_s": 1}']
)
def test_a_malformed_json_line_names_its_line(write: Write, line: str) -> None:
    good = '{"arrival_s": 0, "prompt_tokens": 1, "output_tokens": 1}'
    path = write("t.jsonl", f"{good}\n\n{line}\n")
    with pytest.raises(RowError, match="line 3"):
        load_trace(str(path))


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ("1,0,2", "dropped_non_positive_length"),
        ("1,5,0", "dropped_non_positive_length"),
        ("1,-3,2", "dropped_non_positive_length"),
        ("nan,1,2", "dropped_non_finite_time"),
        ("inf,1,2", "dropped_non_finite_time"),
        ("-1,1,2", "sorted_out_of_order"),
    ],
)
def test_an_impossible_row_is_refused_or_repaired_and_counted(write: Write, row: str, kind: str) -> None:
    path = write("t.csv", f"{HEADER}0,1,1\n{row}\n3,1,1\n")
    with pytest.raises(RowError, match=r"line 3.*--repair"):
        load_trace(str(path))
    trace = load_trace(str(path), TraceOptions(repair=True))
    assert trace.provenance.repairs == {kind: 1}
    assert len(trace) == (3 if kind == "sorted_out_of_order" else 2)
    assert trace.provenance.rows_read == 3
    assert trace.requests[0].arrival_s == 0.0


def test_a_file_with_nothing_usable_is_refused(write: Write) -> None:
    for text, options in (
        ("", TraceOptions()),
        ("\n \n", TraceOptions()),
        (HEADER, TraceOptions()),
        (f"{HEADER}0,0,0\n", TraceOptions(repair=True)),
        ("[]", TraceOptions()),
    ):
        with pytest.raises(UserError, match="at least one request"):
            load_trace(str(write("t.csv", text)), options)


def test_bytes_that_are_not_text_name_their_line(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(HEADER.encode() + b"0,1,1\n\xff\xfe,1,1\n")
    with pytest.raises(RowError, match=r"line 3.*not UTF-8"):
        load_trace(str(path))


def test_truncated_containers_are_user_errors(tmp_path: Path) -> None:
    for name, content in (("t.parquet", b"PAR1broken"), ("t.csv.gz", b"\x1f\x8bbroken"), ("t.json", b"[{")):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(UserError, match=name):
            load_trace(str(path))


def test_unknown_columns_list_those_that_exist(write: Write) -> None:
    path = write("t.csv", "when,in,out\n0,1,1\n")
    with pytest.raises(UserError, match="its columns: when, in, out"):
        load_trace(str(path))
    with pytest.raises(UserError, match=r"no column 'tokens'.*its columns: when, in, out"):
        load_trace(str(path), TraceOptions(columns={"arrival": "when", "prompt": "tokens"}))
    with pytest.raises(UnknownNameError, match="arrival, chat, hash_block"):
        TraceOptions(columns={"promt": "in"})


@pytest.mark.parametrize("text", ["arrival", "=x", "arrival=", "arrival=a,arrival=b"])
def test_a_column_mapping_that_cannot_be_read(text: str) -> None:
    with pytest.raises(UserError):
        parse_columns(text)


def test_unknown_names_list_what_exists(write: Write) -> None:
    with pytest.raises(UnknownNameError, match="default"):
        load_trace("no-such-trace")
    with pytest.raises(UnknownNameError, match="azure"):
        load_trace(str(write("t.csv", f"{HEADER}0,1,1\n")), TraceOptions(format="azur"))
    with pytest.raises(UnknownNameError, match="poisson"):
        load_trace("synthetic:poison")
    with pytest.raises(UnknownNameError, match="rate"):
        load_trace("synthetic:poisson?rat=1")


def test_a_format_that_does_not_fit_the_file_says_so(write: Write) -> None:
    path = write("t.csv", f"{HEADER}0,1,1\n")
    with pytest.raises(UserError, match="'mooncake' is written as jsonl"):
        load_trace(str(path), TraceOptions(format="mooncake"))
    with pytest.raises(UserError, match="its columns: arrival_s"):
        load_trace(str(path), TraceOptions(format="azure"))


def test_a_known_trace_that_is_not_here_names_its_home() -> None:
    with pytest.raises(UserError, match=r"github.com/Azure.*CC-BY.*path"):
        load_trace("azure-2023-conv")


@pytest.mark.parametrize(
    "options",
    [
        {"limit": 0},
        {"duration": 0.0},
        {"time_scale": -1.0},
        {"length_scale": float("nan")},
        {"max_context": 1},
        {"over_context": "cut"},
        {"seed": -1},
        {"tick_s": 1.0},
        {"rate": 0.0},
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(UserError):
        TraceOptions(**options)  # type: ignore[arg-type]


def test_options_without_effect_are_refused(write: Write) -> None:
    with pytest.raises(UserError, match="--rate has no meaning"):
        load_trace("default", TraceOptions(rate=2.0))
    with pytest.raises(UserError, match="--split has no meaning"):
        load_trace(str(write("t.csv", f"{HEADER}0,1,1\n")), TraceOptions(split="train"))


def test_hashes_without_their_block_size_are_refused(write: Write) -> None:
    path = write("t.jsonl", '{"arrival_s": 0, "prompt_tokens": 9, "output_tokens": 1, "ids": [1, 2]}\n')
    with pytest.raises(UserError, match="hash_block"):
        load_trace(str(path), TraceOptions(columns={"hashes": "ids"}))
    trace = load_trace(str(path), TraceOptions(columns={"hashes": "ids", "hash_block": "8"}))
    assert (trace.requests[0].prefix_hashes, trace.requests[0].hash_block) == ((1, 2), 8)


@pytest.mark.parametrize("ids", ['"x"', "[-1]", "[1.5]", "[18446744073709551616]", "7"])
def test_bad_hashes_are_refused(write: Write, ids: str) -> None:
    path = write("t.jsonl", f'{{"timestamp": 0, "input_length": 9, "output_length": 1, "hash_ids": {ids}}}\n')
    with pytest.raises(RowError, match="line 1: hash_ids"):
        load_trace(str(path))
