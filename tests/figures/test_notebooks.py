"""Notebooks run from top to bottom, and are kept with what they displayed."""

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

FOLDER = Path(__file__).parent.parent.parent / "notebooks"
BOOKS = sorted(FOLDER.glob("*.ipynb"))


def test_there_is_a_notebook_for_every_group_of_figures():
    from gyges.figures.base import GROUPS
    from gyges.figures.catalogue import FIGURES

    text = {path.stem: path.read_text() for path in BOOKS}
    assert set(text) == {group.replace(" ", "-") for group in GROUPS}
    for name, kind in FIGURES.items():
        assert f'show(\\"{name}\\", context)' in text[kind.group.replace(" ", "-")], f"no notebook shows {name}"


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_is_kept_with_its_outputs(path):
    book = nbformat.read(path, as_version=4)
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    assert all(cell.outputs for cell in cells if "show(" in cell.source)
    kept = [_kinds(cell) for cell in cells]
    client = nbclient.NotebookClient(
        book,
        timeout=60,
        kernel_name="python3",
        coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
    )
    client.execute()  # raises what a cell raised
    assert [_kinds(cell) for cell in cells] == kept, "what is kept is not what the cells display now: run it again"


def _kinds(cell):
    """What a cell displayed, in order, by kind: pictures and numbers may differ between versions of libraries."""
    return [sorted(output.get("data", {output.output_type: ""})) for output in cell.outputs]
