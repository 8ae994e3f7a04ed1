"""gyges sim validate: one document, a folder, and errors for people."""

import json

from bundles import make_bundle, write_run
from command import gyges


def test_the_command_prints_one_document_and_keeps_it_with_a_plot(tmp_path, capfd, monkeypatch):
    requests, meta = write_run(tmp_path)
    (tmp_path / "profile").mkdir()
    profile = make_bundle(tmp_path / "profile")
    arguments = ("--requests", requests, "--meta", meta, "--profile", profile, "--out", tmp_path / "out", "--json")
    outcome = gyges(capfd, monkeypatch, "sim", "validate", *arguments)
    assert outcome.code == 0
    kept = json.loads((tmp_path / "out" / "validate.json").read_text())
    assert kept["latencies"] == outcome.document["latencies"]
    assert (tmp_path / "out" / "plots" / "validation.png").stat().st_size > 1000


def test_a_missing_file_is_bad_input_not_a_traceback(tmp_path, capfd, monkeypatch):
    requests, _ = write_run(tmp_path)
    arguments = ("--requests", requests, "--meta", tmp_path / "no.json", "--profile", tmp_path)
    outcome = gyges(capfd, monkeypatch, "sim", "validate", *arguments)
    assert outcome.code == 2
    assert "cannot read" in outcome.err
