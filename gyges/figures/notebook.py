"""Figures in a notebook: the lines as a table, the readings below, the plot. Needs IPython (extra ``notebooks``)."""

from __future__ import annotations

import io
from typing import Any

from gyges.figures.base import Context, Data, FigureKind
from gyges.figures.catalogue import FIGURES
from gyges.figures.run import describe, markdown_row

_DPI = 110  # a notebook is read on a screen, and keeps its pictures in itself


def show(name: str, context: Context) -> Data:
    """Makes a figure and displays it; returns its data. Raises UnknownNameError."""
    kind = FIGURES.get(name)
    data = kind.make(context)
    display_data(kind, data)
    return data


def display_data(kind: FigureKind, data: Data) -> None:
    """Displays what was made."""
    from IPython.display import Image, Markdown, display

    show_it: Any = display
    described = describe(kind, data)
    table = ["| | paper | here | deviation | source |", "|---|---|---|---|---|", *map(markdown_row, described["lines"])]
    show_it(Markdown("\n".join([*table, "", *(f"- {reading}" for reading in data.readings)])))
    buffer = io.BytesIO()
    kind.draw(data).savefig(buffer, format="png", dpi=_DPI)
    show_it(Image(data=buffer.getvalue()))
