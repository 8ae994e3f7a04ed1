"""`gyges figures` as a command; what figures hold is tested in tests/figures."""

import json

import pytest
from command import gyges

from gyges.figures.catalogue import FIGURES


def test_the_list_names_every_figure_and_makes_none(capfd, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    done = gyges(capfd, monkeypatch, "figures", "--list", "--json")
    assert done.code == 0
    assert set(done.document["figures"]) == set(FIGURES.names())
    assert list(tmp_path.iterdir()) == []


def test_a_figure_goes_to_a_folder_and_again_to_the_same(capfd, monkeypatch, tmp_path):
    out = tmp_path / "figures"
    arguments = ("figures", "tp-tradeoff", "--quick", "--out", out, "--json")
    first = gyges(capfd, monkeypatch, *arguments)
    assert first.code == 0, first.err
    assert "3.75K" in first.err or "3750" in first.err
    assert {path.name for path in out.iterdir()} == {
        "figures.json", "lines.md", "manifest.json", "tp-tradeoff.csv", "tp-tradeoff.png", "tp-tradeoff.svg",
    }  # fmt: skip
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["kind"], manifest["state"]) == ("figures", "complete")
    table = (out / "tp-tradeoff.csv").read_bytes()
    again = gyges(capfd, monkeypatch, *arguments)
    assert again.code == 0, again.err
    assert (out / "tp-tradeoff.csv").read_bytes() == table, "the same command gives the same figures"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("pie",), "unknown figure 'pie'; known: "),
        (("--traces", "nowhere"), "there is no folder nowhere"),
        (("--measured", "nowhere"), "there is no transform.json in nowhere"),
    ],
)
def test_bad_input_is_named_and_leaves_no_folder(capfd, monkeypatch, tmp_path, arguments, words):
    monkeypatch.chdir(tmp_path)
    done = gyges(capfd, monkeypatch, "figures", *arguments)
    assert done.code == 2
    assert words in done.err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_other_things_is_left_alone(capfd, monkeypatch, tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    done = gyges(capfd, monkeypatch, "figures", "tp-tradeoff", "--quick", "--out", tmp_path)
    assert done.code == 2
    assert "not empty" in done.err
