"""A small bundle of operator times whose figures are simple formulas, so that a test can say what a step must cost;
and files of a measured run."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

META = "model: tiny\nhardware: H20\ntp_degrees: [1]\n"
DENSE = (
    "layernorm",
    "qkv_proj",
    "rotary_emb",
    "o_proj",
    "gate_up_proj",
    "act_fn",
    "down_proj",
    "embedding",
    "final_layernorm",
)


def write(path: Path, header: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def attention_us(chunk: int, before: int, decodes: int, context: int) -> float:
    """Linear in each axis, so that interpolation is exact."""
    return 5.0 + 0.01 * chunk + 0.002 * before + 0.003 * decodes * context


def make_bundle(folder: Path, degrees: Iterable[int] = (1,), meta: str = META, slower: float = 1.0) -> Path:
    """Every dense operator: 2 us + 0.5 us a token. LM head 3 us, sampler 1 us a sequence. Attention as above. All of it times
    ``slower``."""
    folder.mkdir(exist_ok=True)
    (folder / "meta.yaml").write_text(meta)
    for degree in degrees:
        tp = folder / f"tp{degree}"
        tp.mkdir()
        tokens = (1, 2, 7, 64, 100)
        rows = [(op, n, slower * (2 + 0.5 * n)) for op in DENSE for n in tokens]
        write(tp / "dense.csv", ("layer", "tokens", "time_us"), rows)
        each = {"lm_head": 3.0, "sampler": 1.0}
        rows = [(op, n, slower * us * n) for op, us in each.items() for n in (1, 4, 32)]
        write(tp / "per_sequence.csv", ("layer", "sequences", "time_us"), rows)
        points = [(0, 0, n, kv) for n in (1, 2, 8, 32) for kv in (16, 100, 1000)]
        for chunk in (16, 64):
            for before in (0, 50, 200):
                points += [(chunk, before, 0, 0)] + [(chunk, before, n, kv) for n in (1, 32) for kv in (16, 1000)]
        header = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us")
        write(tp / "attention.csv", header, [(*point, slower * attention_us(*point)) for point in points])
    return folder


VLLM_META = {
    "model": "tiny",
    "vllm_version": "0.19.0",
    "engine_kwargs": {"max_num_seqs": 2, "max_num_batched_tokens": 64, "tensor_parallel_size": 1},
}


def write_run(folder: Path, meta: Any = None, **fields: Any) -> tuple[Path, Path]:
    row = {"input_toks": 8, "output_toks": 4, "queued_ts": 10.0, "scheduled_ts": 10.0, "first_token_ts": 11.0}
    rows = [{**row, "last_token_ts": 14.0, **fields}, {**row, "queued_ts": 10.5, "last_token_ts": 14.5}]
    (folder / "requests.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    (folder / "meta.json").write_text(json.dumps(VLLM_META if meta is None else meta))
    return folder / "requests.jsonl", folder / "meta.json"
