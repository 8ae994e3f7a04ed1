"""The figures that are kept in results/figures are whole, and small."""

import csv
import json
from pathlib import Path

import pytest

from gyges.figures.catalogue import FIGURES
from gyges.figures.run import lines_markdown

FOLDER = Path(__file__).parent.parent.parent / "results" / "figures"
DOCUMENT = json.loads((FOLDER / "figures.json").read_text())


def test_every_figure_is_kept_as_it_is_made_without_quick():
    assert list(DOCUMENT["figures"]) == FIGURES.names()
    assert not any(figure["quick"] for figure in DOCUMENT["figures"].values())
    assert (FOLDER / "lines.md").read_text() == lines_markdown(DOCUMENT)


@pytest.mark.parametrize("name", FIGURES.names())
def test_a_kept_figure_has_its_files(name):
    assert (FOLDER / f"{name}.png").stat().st_size < 200_000
    assert (FOLDER / f"{name}.svg").stat().st_size < 300_000
    assert len(list(csv.DictReader((FOLDER / f"{name}.csv").open()))) > 1


def test_the_manifest_says_how_they_were_made_and_from_which_traces():
    manifest = json.loads((FOLDER / "manifest.json").read_text())
    assert (manifest["kind"], manifest["state"]) == ("figures", "complete")
    named = {about["name"] for about in manifest["traces"].values()}
    assert any("azure-2023-conv" in name for name in named)
    assert any("mooncake-conversation" in name for name in named)
