"""`gyges bench transform` and `gyges bench capacity` as commands; what they measure is tested in tests/bench."""

import csv
import json

import pytest
from command import gyges


@pytest.mark.engine
def test_transform_keeps_a_document_and_a_table_and_prints_the_document(capfd, monkeypatch, tmp_path):
    out = tmp_path / "result"
    what = "--parts micro --models tiny --fills 20 --layouts shard-pages --degrees 2 --repeats 1 --device-memory 10MiB"
    done = gyges(capfd, monkeypatch, "bench", "transform", *what.split(), "--out", out, "--json")
    assert done.code == 0, done.err
    assert "memcpy" in done.err
    document = done.document
    assert document["folder"] == str(out)
    assert document["pause"] is None
    saved = json.loads((out / "transform.json").read_text())
    assert saved["goals"] == document["goals"]
    rows = list(csv.DictReader((out / "transform.csv").open()))
    assert [(row["kind"], row["padding"]) for row in rows] == [
        ("merge", "True"), ("split", "True"), ("merge", "False"), ("split", "False"),
    ]  # fmt: skip
    assert {path.name for path in (out / "plots").iterdir()} == {"parts-tiny.png", "parts-tiny.svg"}
    assert json.loads((out / "manifest.json").read_text())["state"] == "complete"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--models", "gpt"), "unknown model shape 'gpt'"),
        (("--layouts", "rows"), "unknown KV layout 'rows'"),
        (("--parts", "all"), "known: micro, padding, pause"),
        (("--fills", "ten"), "10,50,90"),
        (("--degrees", "TP4"), "cannot read 'TP4' as TP degrees"),
        (("--device-memory", "much"), "cannot read 'much' as a size"),
    ],
)
def test_bad_input_is_named_and_leaves_no_folder(capfd, monkeypatch, tmp_path, arguments, words):
    monkeypatch.chdir(tmp_path)
    done = gyges(capfd, monkeypatch, "bench", "transform", *arguments)
    assert done.code == 2
    assert words in done.err
    assert list(tmp_path.iterdir()) == []


def test_capacity_prints_tables_or_one_document(capfd, monkeypatch):
    done = gyges(capfd, monkeypatch, "bench", "capacity", "--device-memory", "16MiB")
    assert done.code == 0
    assert "1 x TP4" in done.out
    done = gyges(capfd, monkeypatch, "bench", "capacity", "--device-memory", "16MiB", "--tp-degrees", "1,2", "--json")
    assert [each["degree"] for each in done.document["degrees"]] == [1, 2]
    assert done.document["check"] is None
    done = gyges(capfd, monkeypatch, "bench", "capacity", "--device-memory", "1MiB")
    assert done.code == 2
    assert "--device-memory" in done.err
