"""Every format on a small made file, and the real files where they are at hand."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from gyges.errors import UserError
from workloads import Trace, TraceOptions, load_trace
from workloads.sources.values import instant_ns
from workloads.stats import trace_stats

Write = Callable[[str, str], Path]
FindTrace = Callable[[str], Path]


def triples(trace: Trace) -> list[tuple[float, int, int]]:
    return [(each.arrival_s, each.prompt_tokens, each.output_tokens) for each in trace.requests]


def test_azure_keeps_all_seven_fractional_digits(write: Write) -> None:
    path = write(
        "a.csv",
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 23:59:59.9999999,374,44\n"
        "2023-11-17 00:00:00.0000001,396,109\n",
    )
    trace = load_trace(str(path))
    assert trace.provenance.format == "azure"
    assert triples(trace) == [(0.0, 374, 44), (2e-7, 396, 109)]
    assert trace.provenance.arrival_shift_s == pytest.approx(1700179199.9999999)


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("1970-01-01 00:00:00", 0),
        ("1970-01-01T00:00:01.5Z", 1_500_000_000),
        ("1970-01-01 01:00:00.0000001+01:00", 100),
        ("2024-02-29 00:00:00.123456789", 1_709_164_800_123_456_789),
    ],
)
def test_instants_are_exact(text: str, nanoseconds: int) -> None:
    assert instant_ns(text) == nanoseconds


def test_azure_2024_writes_instants_with_and_without_fraction(write: Write) -> None:
    path = write(
        "a.csv",
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-12 00:00:00+00:00,1,2\n2024-05-12 00:00:00.25+00:00,3,4\n",
    )
    assert triples(load_trace(str(path))) == [(0.0, 1, 2), (0.25, 3, 4)]


def test_mooncake_times_are_milliseconds_and_hashes_cover_512_tokens(write: Write) -> None:
    path = write(
        "m.jsonl",
        '{"timestamp": 27000, "input_length": 600, "output_length": 5, "hash_ids": [0, 1]}\n'
        '{"timestamp": 29999, "input_length": 512, "output_length": 6, "hash_ids": [0]}\n',
    )
    trace = load_trace(str(path))
    assert trace.provenance.format == "mooncake"
    assert triples(trace) == [(0.0, 600, 5), (2.999, 512, 6)]
    assert [(each.prefix_hashes, each.hash_block) for each in trace.requests] == [((0, 1), 512), ((0,), 512)]
    assert trace.provenance.arrival_shift_s == 27.0


def test_qwen_bailian_chains_make_sessions(write: Write) -> None:
    rows = [(1, -1), (2, 1), (3, 77), (4, 2)]  # 77 lies before the beginning of the file
    lines = [
        {
            "chat_id": chat,
            "parent_chat_id": parent,
            "timestamp": 10 + chat / 2,
            "input_length": 20,
            "output_length": 3,
            "type": "text",
            "turn": 1,
            "hash_ids": [5, 6],
        }
        for chat, parent in rows
    ]
    trace = load_trace(str(write("q.jsonl", "\n".join(map(json.dumps, lines)))))
    assert trace.provenance.format == "qwen-bailian"
    assert [each.session for each in trace.requests] == ["1", "1", "77", "1"]
    assert [each.arrival_s for each in trace.requests] == [0.0, 0.5, 1.0, 1.5]
    assert trace.requests[0].hash_block == 16


@pytest.mark.parametrize(
    "text",
    [
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,ChatGPT,472,18,490,x\n45,GPT-4,10,2,12,x\n",
        "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5.0,,43,ChatGPT,472,18,490,x\n45.0,abc,2,GPT-4,10,2,12,x\n",
    ],
)
def test_burstgpt_columns_go_by_name_with_and_without_the_inserted_ones(write: Write, text: str) -> None:
    trace = load_trace(str(write("b.csv", text)))
    assert trace.provenance.format == "burstgpt"
    assert triples(trace) == [(0.0, 472, 18), (40.0, 10, 2)]
    assert [each.session for each in trace.requests] == [None, "abc" if "Session" in text else None]


def test_vidur_and_splitwise(write: Write) -> None:
    vidur = load_trace(str(write("v.csv", "arrived_at,num_prefill_tokens,num_decode_tokens\n0.5,7,8\n0.75,9,10\n")))
    assert vidur.provenance.format == "vidur"
    assert triples(vidur) == [(0.0, 7, 8), (0.25, 9, 10)]
    header = "request_id,request_type,application_id,arrival_timestamp,batch_size,prompt_size,token_size\n"
    splitwise = load_trace(str(write("s.csv", header + "0,2,0,0.0,1,11,12\n1,2,0,3.5,1,13,14\n")))
    assert splitwise.provenance.format == "splitwise"
    assert triples(splitwise) == [(0.0, 11, 12), (3.5, 13, 14)]


def test_servegen_adds_up_the_parts_of_a_multimodal_prompt(write: Write) -> None:
    language = load_trace(str(write("l.csv", "request_id,timestamp,input_tokens,output_tokens\n0,0.5,100,20\n")))
    assert language.provenance.format == "servegen"
    assert triples(language) == [(0.0, 100, 20)]
    text = 'request_id,timestamp,text_tokens,image_tokens,output_tokens\n0,0.5,100,"[1200, 30]",20\n1,1.5,7,,9\n'
    assert triples(load_trace(str(write("mm.csv", text)))) == [(0.0, 1330, 20), (1.0, 7, 9)]


def test_plain_files_take_a_column_mapping(write: Write) -> None:
    path = write("p.csv", "when,in,out,who\n100,1,2,a\n101.5,3,4,b\n")
    options = TraceOptions(columns={"arrival": "when", "prompt": "in", "output": "out", "session": "who"})
    trace = load_trace(str(path), options)
    assert triples(trace) == [(0.0, 1, 2), (1.5, 3, 4)]
    assert [each.session for each in trace.requests] == ["a", "b"]
    assert trace.provenance.details["columns"]["arrival"] == "when"


def test_a_length_may_be_a_number_instead_of_a_column(write: Write) -> None:
    path = write("p.csv", "arrival_s,prompt_tokens\n0,5\n")
    assert triples(load_trace(str(path), TraceOptions(columns={"output": "128"}))) == [(0.0, 5, 128)]


def test_data_without_arrivals_gets_poisson_ones_when_asked(write: Write) -> None:
    path = write("p.jsonl", '{"input_length": 5, "output_length": 6}\n{"input_length": 7, "output_length": 8}\n')
    with pytest.raises(UserError, match="--rate"):
        load_trace(str(path))
    trace = load_trace(str(path), TraceOptions(rate=4.0, seed=3))
    assert trace.requests[0].arrival_s == 0 < trace.requests[1].arrival_s
    assert trace.provenance.details["arrivals"] == {"generated": "poisson", "rate": 4.0, "seed": 3}
    assert any("generated" in note for note in trace.provenance.notes)


def test_chats_in_a_json_array_are_measured(write: Write) -> None:
    chat = [{"from": "human", "value": "x" * 40}, {"from": "gpt", "value": "y" * 21}, {"from": "human", "value": "z"}]
    path = write("sharegpt.json", json.dumps([{"id": "1", "conversations": chat}]))
    trace = load_trace(str(path), TraceOptions(rate=1.0))
    assert triples(trace) == [(0.0, 10, 6)]
    assert trace.requests[0].text == "x" * 40
    assert any("estimates" in note for note in trace.provenance.notes)


def test_gzip_and_byte_order_marks_are_read_through(tmp_path: Path) -> None:
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"\xef\xbb\xbfarrival_s,prompt_tokens,output_tokens\r\n0,1,2\r\n"))
    assert triples(load_trace(str(path))) == [(0.0, 1, 2)]


@pytest.mark.parametrize(
    ("name", "known", "count", "duration_s", "prompt_mean", "cv"),
    [
        ("AzureLLMInferenceTrace_conv.csv", "azure-2023-conv", 19366, 3501.721937, 1155, 1.09),
        ("AzureLLMInferenceTrace_code.csv", "azure-2023-code", 8819, 3435.948056, 2048, 13.2),
        ("mooncake_conversation_trace.jsonl", "mooncake-conversation", 12031, 3536.999, 12035, 3.0),
    ],
)
def test_real_traces_have_their_published_figures(
    shared_trace: FindTrace, name: str, known: str, count: int, duration_s: float, prompt_mean: float, cv: float
) -> None:
    trace = load_trace(str(shared_trace(name)))
    stats = trace_stats(trace)
    assert trace.name == known  # recognised by its sha256
    assert trace.provenance.licence in ("CC-BY-4.0", "Apache-2.0")
    assert stats["requests"] == count
    assert stats["duration_s"] == pytest.approx(duration_s, abs=1e-9)
    assert stats["prompt_tokens"]["mean"] == pytest.approx(prompt_mean, abs=0.5)
    assert stats["gaps_s"]["cv"] == pytest.approx(cv, rel=0.02)


def test_mooncake_dequantized_is_nearly_poisson(shared_trace: FindTrace) -> None:
    trace = load_trace(str(shared_trace("mooncake_conversation_trace.jsonl")), TraceOptions(dequantize=True))
    assert trace.provenance.transforms[0].effect["tick_s"] == 3.0
    assert trace.provenance.transforms[0].effect["distinct_times"] == 1180
    assert trace_stats(trace)["gaps_s"]["cv"] == pytest.approx(1.0, abs=0.05)


def test_a_field_that_only_later_records_have_is_read(write: Write) -> None:
    path = write(
        "t.jsonl",
        '{"arrival_s": 0, "prompt_tokens": 1, "output_tokens": 1}\n'
        '{"arrival_s": 1, "prompt_tokens": 9, "output_tokens": 1, "session": 7, '
        '"prefix_hashes": [3], "hash_block": 9}\n',
    )
    first, second = load_trace(str(path)).requests
    assert (first.session, first.prefix_hashes) == (None, None)
    assert (second.session, second.prefix_hashes, second.hash_block) == ("7", (3,), 9)
