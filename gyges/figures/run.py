"""Makes figures and writes them: NAME.csv, NAME.png, NAME.svg, and the lines of all as figures.json and lines.md."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gyges.figures.base import BEYOND, Context, Data, FigureKind, Row
from gyges.figures.catalogue import FIGURES
from gyges.metrics.atomic import write_bytes, write_json
from gyges.metrics.plots import save_figures

Document = dict[str, Any]
DOCUMENT, LINES = "figures.json", "lines.md"
DIGITS = 6  # significant, in a CSV: more would change with the order of a sum


def make_figures(names: Sequence[str], folder: Path, context: Context) -> Document:
    """Each named figure into ``folder`` (which exists), and figures.json and lines.md of all that are there.

    Returns what figures.json holds: by figure its title, lines, readings, facts, traces, files, seconds and whether it was
    made with ``quick``. Raises UnknownNameError before anything is made.
    """
    kinds = {name: FIGURES.get(name) for name in names}
    document = read_document(folder)
    for name, kind in kinds.items():
        context.progress(f"{name}: {kind.title}")
        began = time.perf_counter()
        mine = replace(context, used={})
        data = kind.make(mine)
        files = write_figure(folder, name, kind, data)
        document["figures"][name] = describe(kind, data) | {
            "quick": context.quick,
            "traces": mine.used,
            "files": [path.name for path in files],
            "seconds": time.perf_counter() - began,
        }
        write_document(folder, document)  # after each: a long run that breaks off keeps what it has
    return document


def read_document(folder: Path) -> Document:
    """figures.json of ``folder``, without figures when there is none."""
    try:
        return dict(json.loads((folder / DOCUMENT).read_text()))
    except (OSError, ValueError):
        return {"figures": {}}


def write_document(folder: Path, document: Document) -> None:
    """Figures in the order of the catalogue; those that it no longer knows are left out."""
    document["figures"] = {name: document["figures"][name] for name in FIGURES.names() if name in document["figures"]}
    write_json(folder / DOCUMENT, document)
    write_bytes(folder / LINES, lines_markdown(document).encode())


def describe(kind: FigureKind, data: Data) -> Document:
    return {
        "title": kind.title,
        "group": kind.group,
        "where": kind.where,
        "lines": [line.to_json() for line in data.lines],
        "readings": list(data.readings),
        "facts": dict(data.facts),
    }


def write_figure(folder: Path, name: str, kind: FigureKind, data: Data) -> list[Path]:
    """CSV, PNG (150 dpi), SVG; each is the old file or the new one, never half of either."""
    table = folder / f"{name}.csv"
    write_bytes(table, to_csv(data.rows).encode())
    plots = save_figures(folder, {name: kind.draw(data)})
    _palette(folder / f"{name}.png")
    return [table, *plots]


def _palette(path: Path) -> None:
    """Rewrites a PNG with a palette of 255 colours: a third of the size, and nothing that can be seen is lost in a plot."""
    from PIL import Image

    buffer = io.BytesIO()
    with Image.open(path) as image:
        image.convert("RGB").quantize(255).save(buffer, "png", optimize=True, dpi=image.info.get("dpi"))
    write_bytes(path, buffer.getvalue())


def to_csv(rows: Sequence[Row]) -> str:
    """All rows have the columns of the first; nothing is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def lines_markdown(document: Mapping[str, Any]) -> str:
    """One table for each figure, with its readings below."""
    parts = ["# Figures: what the paper says and what is found here", ""]
    for name, figure in document["figures"].items():
        where = "Not in the paper." if figure["where"] == BEYOND else f"In the paper: {figure['where']}."
        parts += [f"## {name}: {figure['title']}", "", where, ""]
        if figure["quick"]:
            parts += ["Made with --quick: coarse, for tests and notebooks.", ""]
        parts += ["| | paper | here | deviation | source |", "|---|---|---|---|---|"]
        parts += [markdown_row(line) for line in figure["lines"]]
        parts += ["", *(f"- {_escaped(reading)}" for reading in figure["readings"]), ""]
    return "\n".join(parts).rstrip() + "\n"


def markdown_row(line: Mapping[str, Any]) -> str:
    """A line of figures.json as a row of that table."""
    words = line["shown"]
    note = f"; {line['note']}" if line["note"] else ""
    cells = (line["what"], words["paper"], words["here"], words["deviation"], line["source"] + note)
    return f"| {' | '.join(_escaped(cell) for cell in cells)} |"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")
