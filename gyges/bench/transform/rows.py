"""The document as a table: one row for each cell, for spreadsheets and data frames."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

from gyges.bench.transform.run import MICRO, PADDING, PAUSE

# Facts as they are; of figures that vary (median, min, max) the three, as name, name_min, name_max.
_FACTS = (
    "part", "model", "degree", "layers", "page_bytes", "layout", "padding", "overlap", "fill", "kind", "max_degree", "rows",
    "kv_bytes", "kv_moved_bytes", "kv_compacted_bytes", "kv_descriptors", "moved_pairs", "weights_moved_bytes",
    "weights_local_bytes", "weights_descriptors", "pages", "rounds", "plan_s", "extra_bytes", "extra_share", "at_once_share",
    "stopped",
    "ffn_bytes", "weight_bytes", "padding_bytes", "share_of_ffn", "share_of_weights", "by_matrix_bytes",
    "by_matrix_share_of_ffn", "by_matrix_share_of_weights",
)  # fmt: skip
_FIGURES = (
    "total_s", "kv_s", "weights_s", "kv_bytes_per_s", "of_memcpy", "memcpy_bytes_per_s", "before_gap_s", "after_gap_s",
    "merged_gap_s", "max_gap_s", "pause_s", "gap_over_merged", "lasted_s", "steps", "before_tokens_per_s",
    "during_tokens_per_s", "after_tokens_per_s", "slowdown", "pieces_cost",
)  # fmt: skip
_PARTS = ("map", "unmap", "copy", "compaction", "weights", "communicator", "wait", "other")


def table(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows with all columns; None where a part does not have one."""
    return [_row(part, shared, cell) for part, shared, cell in _cells(document)]


def to_csv(document: Mapping[str, Any]) -> str:
    rows = table(document)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def columns() -> list[str]:
    figures = [f"{name}{suffix}" for name in _FIGURES for suffix in ("", "_min", "_max")]
    return [*_FACTS, *figures, *(f"part_{name}_s" for name in _PARTS)]


def _cells(document: Mapping[str, Any]) -> list[tuple[str, dict[str, Any], Mapping[str, Any]]]:
    """(part, what all cells of a model share, cell)."""
    found: list[tuple[str, dict[str, Any], Mapping[str, Any]]] = []
    for model in (document[MICRO] or {"models": []})["models"]:
        shared = {name: model[name] for name in ("model", "degree", "layers", "page_bytes")}
        shared["memcpy_bytes_per_s"] = model["memcpy"]["all_bytes_per_s"]
        found += [(MICRO, shared, cell) for cell in model["cells"]]
    for model in (document[PAUSE] or {"models": []})["models"]:
        shared = {name: model[name] for name in ("model", "degree")}
        found += [(PAUSE, shared, cell) for cell in model["cells"]]
    padding = document[PADDING] or {"memory": [], "gemm": []}
    return found + [(PADDING, {}, cell) for cell in [*padding["memory"], *padding["gemm"]]]


def _row(part: str, shared: Mapping[str, Any], cell: Mapping[str, Any]) -> dict[str, Any]:
    values = {**shared, **cell, "part": part}
    row = {name: _plain(values.get(name)) for name in _FACTS}
    for name in _FIGURES:
        figure = values.get(name)
        for suffix, key in (("", "median"), ("_min", "min"), ("_max", "max")):
            row[f"{name}{suffix}"] = figure[key] if isinstance(figure, Mapping) else (figure if not suffix else None)
    parts = values.get("parts") or {}
    for name in _PARTS:
        row[f"part_{name}_s"] = _plain(parts.get(name))
    return row


def _plain(value: Any) -> Any:
    """The median of a figure that varies."""
    return value["median"] if isinstance(value, Mapping) else value
