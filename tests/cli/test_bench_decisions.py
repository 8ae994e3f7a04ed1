"""`gyges bench decisions` as a command; what it measures is tested in tests/bench."""

import json

import pytest
from command import gyges


def test_it_keeps_a_document_and_prints_it(capfd, monkeypatch, tmp_path):
    out = tmp_path / "result"
    what = "--policies gyges,static:tp2+tp1 --instances 8 --calls 8 --seed 5"
    done = gyges(capfd, monkeypatch, "bench", "decisions", *what.split(), "--out", out, "--json")
    assert done.code == 0, done.err
    assert "static:tp2+tp1" in done.err
    document = done.document
    assert list(document["policies"]) == ["gyges", "static:tp2+tp1"]
    assert document["folder"] == str(out)
    saved = json.loads((out / "decisions.json").read_text())
    assert saved == {name: value for name, value in document.items() if name != "folder"}
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["kind"], manifest["state"], manifest["seed"]) == ("bench-decisions", "complete", 5)
    assert manifest["configuration"]["instances"] == [8]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--policies", "fastest"), "unknown scheduler policy 'fastest'"),
        (("--policies", ""), "at least one policy"),
        (("--instances", "many"), "write 8,64,1000"),
        (("--instances", "0"), "1 or more"),
    ],
)
def test_bad_input_is_named_and_leaves_no_folder(capfd, monkeypatch, tmp_path, arguments, words):
    monkeypatch.chdir(tmp_path)
    done = gyges(capfd, monkeypatch, "bench", "decisions", *arguments)
    assert done.code == 2
    assert words in done.err
    assert list(tmp_path.iterdir()) == []
