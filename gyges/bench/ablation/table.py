"""The one table of an ablation: columns as data, and as Markdown, CSV, Parquet and LaTeX.

CSV and Parquet hold numbers in SI units, one row per cell, with intervals and changes; the others text for people.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gyges.bench.ablation.figures import FIGURES, HEADLINES
from gyges.metrics.atomic import write_bytes

Document = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Column:
    """``words``: what it is.   unit: may be empty.   text: one per cell.   key: of the figure."""

    words: tuple[str, ...]
    unit: str
    text: tuple[str, ...]
    key: str

    @property
    def title(self) -> str:
        """In one line."""
        return " ".join(self.words) + (f", {self.unit}" if self.unit else "")

    @property
    def head(self) -> tuple[str, ...]:
        """Lines above each other."""
        return (*self.words, self.unit) if self.unit else self.words


def label(cell: Document) -> str:
    """The cell's name as it stands in tables; marked where a footnote speaks of it."""
    return f"{cell['name']} *" if cell["error"] or cell["invalid"] else str(cell["name"])


def columns(document: Document) -> list[Column]:
    """Every figure, then the change of the headline figures against the cell's reference."""
    cells = document["cells"]
    found = []
    for key, figure in FIGURES.items():
        if key == "goodput" and not document["configuration"]["slo"]:
            continue
        text = tuple(shown(cell["figures"][key], figure.scale) for cell in cells)
        words = tuple(filter(None, (figure.group, *figure.label.split(" "))))
        found.append(Column(words, figure.unit, text, key))
    for key in HEADLINES:
        figure = FIGURES[key]
        text = tuple(shown_change(cell["figures"][key]["change"]) for cell in cells)
        words = ("change:", *filter(None, (figure.group, figure.label)))
        found.append(Column(words, "%", text, f"change_{key}"))
    return found


def number(value: float) -> str:
    """Three significant digits below 1000; whole numbers as such."""
    if value == round(value) or abs(value) >= 999.5:
        return f"{value:.0f}"
    return f"{value:#.3g}".removesuffix(".")


def shown(figure: Document, scale: float) -> str:
    """``"123"``, ``"inf"`` or ``"-"``."""
    if figure["infinite"]:
        return "inf"
    return "-" if figure["value"] is None else number(figure["value"] * scale)


def shown_change(change: Document | None) -> str:
    """Percent: ``"-34 [-51 -12]"``; ``"-"`` where there is nothing to compare."""
    if change is None or change["relative"] is None:
        return "-"
    relative = change["relative"]
    if relative["infinite"]:
        return "+inf"
    if relative["value"] is None:
        return "-"
    middle = f"{100 * relative['value']:+.0f}"
    if change["difference"]["low"] is None and change["difference"]["high"] is None:
        return middle
    bounds = " ".join("inf" if relative[k] is None else f"{100 * relative[k]:+.0f}" for k in ("low", "high"))
    return f"{middle} [{bounds}]"


def footnotes(document: Document) -> list[str]:
    """What must stand below the table."""
    lines = []
    for workload in document["workloads"]:
        long = (
            ""
            if workload["long"] is None
            else f", {workload['long']} of them over {workload['long_over_tokens']:,} tokens: long"
        )
        lines.append(f"{workload['name']}: {workload['requests']} requests in {workload['duration_s']:.0f} s{long}")
    references = {cell["reference"] for cell in document["cells"] if cell["reference"]}
    if references:
        lines.append(
            f"change: against {' or '.join(sorted(references)) if len(references) < 3 else 'the cell of its kind'}, "
            "percent with 95 % interval; inf: some of these requests never got there"
        )
    if document["repeats"] == 1:
        lines.append("one repeat: figures of a whole run have no interval")
    lines += [f"{cell['name']} *: {cell['error'].splitlines()[0]}" for cell in document["cells"] if cell["error"]]
    lines += [
        f"{cell['name']} *: INVALID, repeat {repeat}: {reason}"
        for cell in document["cells"]
        for repeat, reason in cell["invalid"].items()
    ]
    return lines + list(document["notes"])


def markdown(document: Document) -> str:
    """One row per cell; footnotes below."""
    found = columns(document)
    heads = ["cell", *(c.title for c in found)]
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|---:" * len(found) + "|"]
    for index, cell in enumerate(document["cells"]):
        lines.append("| " + " | ".join([label(cell), *(c.text[index] for c in found)]) + " |")
    return "\n".join([*lines, "", *(f"{note}  " for note in footnotes(document))]) + "\n"


_LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
}


def _tex(text: str) -> str:
    return "".join(_LATEX.get(c, c) for c in text)


def latex(document: Document) -> str:
    """A booktabs table, turned heads; needs booktabs, graphicx and adjustbox."""
    found = columns(document)
    heads = [r"\rotatebox{90}{" + _tex(c.title) + "}" for c in found]
    rows = [
        " & ".join([_tex(label(cell)), *(_tex(c.text[index]) for c in found)]) + r" \\"
        for index, cell in enumerate(document["cells"])
    ]
    notes = " ".join(_tex(note) + r"\par" for note in footnotes(document))
    return "\n".join(
        [
            r"% \usepackage{booktabs,graphicx,adjustbox}",
            r"\begin{adjustbox}{max width=\textwidth}",
            r"\begin{tabular}{l" + "r" * len(found) + "}",
            r"\toprule",
            " & ".join(["cell", *heads]) + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{adjustbox}",
            r"{\footnotesize " + notes + "}",
            "",
        ]
    )


def rows(document: Document) -> list[dict[str, Any]]:
    """One flat row per cell, SI units: settings, figures with bounds, changes with bounds. Infinite values are infinite."""
    found = []
    for cell in document["cells"]:
        row: dict[str, Any] = {"cell": cell["name"], "reference": cell["reference"], "error": cell["error"]}
        row |= {f"set_{name}": value for name, value in cell["settings"].items()}
        row["repeats"] = len(cell["repeats"])
        for key in FIGURES:
            figure = cell["figures"][key]
            row[key] = math.inf if figure["infinite"] else figure["value"]
            row |= {f"{key}_{bound}": figure[bound] for bound in ("low", "high")}
            relative = (figure["change"] or {}).get("relative") or {}
            row[f"{key}_change"] = (
                math.copysign(math.inf, relative["sign"]) if relative.get("infinite") else relative.get("value")
            )
            row |= {f"{key}_change_{bound}": relative.get(bound) for bound in ("low", "high")}
        found.append(row)
    return found


def write_tables(folder: Path, document: Document) -> list[Path]:
    """ablation.md, .csv, .parquet and .tex, atomically."""
    import pyarrow as pa

    from gyges.metrics.tables import write_table

    found = rows(document)
    names = list(dict.fromkeys(name for row in found for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    paths = {"ablation.md": markdown(document), "ablation.csv": text.getvalue(), "ablation.tex": latex(document)}
    for name, content in paths.items():
        write_bytes(folder / name, content.encode())
    arrays = {name: _array(pa, name, [row.get(name) for row in found]) for name in names}
    write_table(folder / "ablation.parquet", pa.table(arrays))
    return [*(folder / name for name in paths), folder / "ablation.parquet"]


def _array(pa: Any, name: str, values: Sequence[Any]) -> Any:
    if name == "repeats":
        return pa.array(values, pa.int64())
    text = name in ("cell", "reference", "error") or name.startswith("set_")
    return pa.array(values, pa.string() if text else pa.float64())
