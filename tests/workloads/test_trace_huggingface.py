"""Hugging Face datasets, without a network: local ones that the test makes, and a hub that cannot be reached."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gyges.errors import UserError
from workloads import TraceOptions, load_trace
from workloads.sources.huggingface import DatasetRef, parse_ref

datasets = pytest.importorskip("datasets")

CHATS = [
    {"messages": [{"role": "user", "content": "one two three"}, {"role": "assistant", "content": "four five"}]},
    {"messages": [{"role": "user", "content": "six"}, {"role": "assistant", "content": "seven eight nine ten"}]},
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def lengths_folder(tmp_path: Path) -> Path:
    rows = [{"ts": 5.0 + i, "n_in": 10 * (i + 1), "n_out": i + 1} for i in range(4)]
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "lengths"))
    return tmp_path / "lengths"


@pytest.fixture
def chat_folder(tmp_path: Path) -> Path:
    splits = {"train": datasets.Dataset.from_list(CHATS), "test": datasets.Dataset.from_list(CHATS[:1])}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "chats"))
    return tmp_path / "chats"


@pytest.fixture
def tokenizer_folder(tmp_path: Path) -> Path:
    """One token per word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]").save_pretrained(str(tmp_path / "tokenizer"))
    return tmp_path / "tokenizer"


@pytest.mark.parametrize("prefix", ["hf:", ""])
def test_a_local_dataset_with_mapped_columns(lengths_folder: Path, prefix: str) -> None:
    options = TraceOptions(columns={"arrival": "ts", "prompt": "n_in", "output": "n_out"})
    trace = load_trace(f"{prefix}{lengths_folder}", options)
    assert [(r.arrival_s, r.prompt_tokens, r.output_tokens) for r in trace.requests] == [
        (0.0, 10, 1),
        (1.0, 20, 2),
        (2.0, 30, 3),
        (3.0, 40, 4),
    ]
    assert trace.provenance.arrival_shift_s == 5.0
    assert trace.provenance.details["fingerprint"]
    assert trace.provenance.details["rows"] == 4
    assert len(trace.provenance.sha256) == 64
    assert load_trace(str(lengths_folder), options).provenance.sha256 == trace.provenance.sha256


def test_unknown_columns_and_splits_list_what_exists(lengths_folder: Path, chat_folder: Path) -> None:
    with pytest.raises(UserError, match=r"no column 'x'.*ts, n_in, n_out"):
        load_trace(str(lengths_folder), TraceOptions(columns={"prompt": "x"}))
    with pytest.raises(UserError, match="its splits: train, test"):
        load_trace(f"hf:{chat_folder}:validation")


def test_chats_are_measured_by_the_tokenizer_and_get_arrivals(chat_folder: Path, tokenizer_folder: Path) -> None:
    trace = load_trace(f"hf:{chat_folder}:train", TraceOptions(tokenizer=str(tokenizer_folder), rate=2.0))
    assert [(r.prompt_tokens, r.output_tokens) for r in trace.requests] == [(3, 2), (1, 4)]
    assert trace.requests[0].text == "one two three"
    assert trace.requests[0].arrival_s == 0.0 < trace.requests[1].arrival_s
    assert trace.provenance.details["split"] == "train"
    assert trace.provenance.notes == ("arrivals are generated: Poisson at 2 requests/s",)


def test_without_tokenizer_lengths_are_estimates_and_say_so(chat_folder: Path) -> None:
    trace = load_trace(str(chat_folder), TraceOptions(split="test"))
    assert [(r.prompt_tokens, r.output_tokens) for r in trace.requests] == [(4, 3)]  # 13 and 9 bytes
    assert any("estimates" in note for note in trace.provenance.notes)
    assert any("Poisson at 1 requests/s" in note for note in trace.provenance.notes)


def test_a_chat_without_reply_is_refused_or_dropped(tmp_path: Path) -> None:
    lonely = [*CHATS, {"messages": [{"role": "user", "content": "anyone?"}]}]
    datasets.Dataset.from_list(lonely).save_to_disk(str(tmp_path / "lonely"))
    with pytest.raises(UserError, match="line 3: output length = 0"):
        load_trace(str(tmp_path / "lonely"))
    trace = load_trace(str(tmp_path / "lonely"), TraceOptions(repair=True))
    assert len(trace) == 2
    assert trace.provenance.repairs == {"dropped_non_positive_length": 1}


def test_a_folder_of_data_files_is_read_through_datasets(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "data.jsonl").write_text(
        "\n".join(json.dumps({"question": "q" * 8, "answer": "a" * 4}) for _ in range(3))
    )
    options = TraceOptions(columns={"text": "question", "output_text": "answer"}, limit=2)
    trace = load_trace(str(folder), options)
    assert [(r.prompt_tokens, r.output_tokens) for r in trace.requests] == [(2, 1), (2, 1)]
    assert trace.provenance.rows_read == 2
    assert trace.provenance.details["rows"] == 3


def test_an_unreachable_hub_names_the_local_alternative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", offline)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for spec in ("hf:owner/name", "sharegpt"):
        with pytest.raises(UserError, match=r"cannot reach the Hugging Face hub.*local copy.*hf download"):
            load_trace(spec)


def test_a_hub_dataset_is_pinned_to_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    commit = "c0ffee" + "0" * 34
    asked: dict[str, Any] = {}

    def dataset_info(self: Any, dataset_id: str, *, revision: str | None, timeout: float) -> Any:
        asked["resolved"] = (dataset_id, revision)
        return SimpleNamespace(sha=commit)

    def load_dataset(path: str, name: str | None = None, **more: Any) -> Any:
        asked["loaded"] = (path, name, more)
        return datasets.DatasetDict({"train": datasets.Dataset.from_list(CHATS)})

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    trace = load_trace("hf:owner/name/config:train", TraceOptions(revision="v1"))
    assert asked == {"resolved": ("owner/name", "v1"), "loaded": ("owner/name", "config", {"revision": commit})}
    assert trace.provenance.details["revision"] == commit
    assert trace.provenance.home == "https://huggingface.co/datasets/owner/name"


def test_specs_of_datasets(tmp_path: Path) -> None:
    assert parse_ref("hf:a/b") == DatasetRef("a/b")
    assert parse_ref("hf:a/b/c:test") == DatasetRef("a/b", "c", "test")
    assert parse_ref(f"hf:{tmp_path}:test") == DatasetRef(str(tmp_path), None, "test")
    for bad in ("hf:", "hf:a//b", "hf:a/b/c/d", f"hf:{tmp_path}/absent"):
        with pytest.raises(UserError):
            parse_ref(bad)
    with pytest.raises(UserError, match="--split"):
        parse_ref("hf:a/b:train", "test")


def test_a_tokenizer_that_is_not_there_is_a_user_error(chat_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot load tokenizer"):
        load_trace(str(chat_folder), TraceOptions(tokenizer=str(tmp_path / "nothing")))
