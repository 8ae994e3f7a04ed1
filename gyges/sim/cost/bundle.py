"""Bundles of measured operator times: a folder that says how, and one folder of CSV files per TP degree.

    meta.yaml               model, gpu, engine, grids
    tpN/dense.csv           layer, tokens, time_us                                          operators over all tokens of a step
    tpN/per_sequence.csv    layer, sequences, time_us                                       operators over those that sample
    tpN/attention.csv       prefill_chunk, kv_prefill, n_decode, kv_decode, time_us         one layer's attention
    tpN/skew_fit.csv        pc, n_label, skew_rate_label, kv_big_label, kp_label, alpha     unequal decodes; may be absent

The format is LLMServingSim's (casys-kaist/LLMServingSim, profiler); ``gyges profile`` writes the same. Times are of one device.
"""

from __future__ import annotations

import csv
import math
import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gyges.errors import UserError
from gyges.sim.cost.curves import Curve

# Times in one layer. What a model may lack (the norms of q and k) is optional; all else must be there.
PER_LAYER = {
    "layernorm": 2,
    "qkv_proj": 1,
    "rotary_emb": 1,
    "o_proj": 1,
    "gate_up_proj": 1,
    "act_fn": 1,
    "down_proj": 1,
}
PER_LAYER_OPTIONAL = {"qk_norm": 1, "q_norm": 1, "k_norm": 1, "all_reduce": 2}
PER_STEP = {"embedding": 1, "final_layernorm": 1}
PER_SEQUENCE = {"lm_head": 1, "sampler": 1}
# Ours: what a step costs beside its operators. Negative where operators, timed one by one, take longer than the whole.
PER_SEQUENCE_OPTIONAL = {"step": 1}

_SKEW_COLUMNS = ("pc", "n_label", "skew_rate_label", "kv_big_label", "kp_label", "alpha")
ATTENTION_COLUMNS = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us")

AttentionPoints = dict[
    int, dict[int, dict[int, Curve]]
]  # chunk -> tokens before -> decodes -> curve over their context


@dataclass(frozen=True, slots=True)
class Skew:
    """How far attention over decodes of unequal context lies from that of their mean (0) to that of the longest (1).

    labels: axis ("n", "skew_rate", "kv_big", "kp") -> (upper bounds, labels).   alphas: (pc, labels…) -> alpha.
    default: for a bucket that was not measured.
    """

    labels: dict[str, tuple[list[float], list[str]]]
    alphas: dict[tuple[int, str, str, str, str], float]
    default: float
    chunks: list[int]


@dataclass(frozen=True, slots=True)
class DegreeTables:
    """Of one TP degree. Curves give microseconds of one call on one device."""

    degree: int
    dense: dict[str, Curve]
    per_sequence: dict[str, Curve]
    attention: AttentionPoints
    skew: Skew | None


@dataclass(frozen=True, slots=True)
class Bundle:
    """A folder. ``notes``: what was found there and is not used."""

    path: Path
    meta: dict[str, Any]
    degrees: list[int]
    notes: list[str] = field(default_factory=list)

    def tables(self, degree: int) -> DegreeTables:
        """Raises UserError: a degree, a file, a column or an operator that is not there; a value that is no time."""
        if degree not in self.degrees:
            have = ", ".join(f"TP{d}" for d in self.degrees)
            raise UserError(
                f"profile {self.path} has {have}, not TP{degree}; profile that degree, or use the analytic source "
                "(a measured degree is never stretched to another one)"
            )
        folder = self.path / f"tp{degree}"
        dense = _curves(folder / "dense.csv", "tokens")
        per_sequence = _curves(folder / "per_sequence.csv", "sequences")
        for found, needed, known, file in (
            (dense, PER_LAYER | PER_STEP, PER_LAYER | PER_LAYER_OPTIONAL | PER_STEP, "dense.csv"),
            (per_sequence, PER_SEQUENCE, PER_SEQUENCE | PER_SEQUENCE_OPTIONAL, "per_sequence.csv"),
        ):
            if lacking := sorted(needed.keys() - found.keys()):
                raise UserError(
                    f"{folder / file} lacks the operator {', '.join(lacking)}; it has {', '.join(sorted(found))}"
                )
            for layer in sorted(found.keys() - known.keys()):
                note = f"{folder / file}: operator {layer!r} is not known here and not counted"
                if note not in self.notes:
                    self.notes.append(note)
        return DegreeTables(
            degree, dense, per_sequence, _attention(folder / "attention.csv"), self._skew(folder, degree)
        )

    def _skew(self, folder: Path, degree: int) -> Skew | None:
        path, fit = folder / "skew_fit.csv", self.meta.get("skew_fit") or {}
        if not path.is_file() or not fit.get("enabled", True):
            return None
        per_degree = (fit.get("per_tp") or {}).get(degree) or {}
        axes = per_degree.get("bucket_axes") or fit.get("bucket_axes")
        if not isinstance(axes, dict):
            raise UserError(
                f"{self.path / 'meta.yaml'} has no skew_fit.bucket_axes, which {path} needs; remove the latter or add it"
            )
        labels = {
            axis: (
                [float(bound) for bound in axes[f"{axis}_bins"][1:]],
                [str(label) for label in axes[f"{axis}_labels"]],
            )
            for axis in ("n", "skew_rate", "kv_big", "kp")
        }
        alphas = {
            (int(row["pc"]), row["n_label"], row["skew_rate_label"], row["kv_big_label"], row["kp_label"]): float(
                row["alpha"]
            )
            for row in _rows(path, _SKEW_COLUMNS)
        }
        return Skew(labels, alphas, float(per_degree.get("alpha_default", 0.0)), sorted({key[0] for key in alphas}))


def read_bundle(path: Path) -> Bundle:
    """Raises UserError where the folder is not a bundle, and says what one looks like."""
    import yaml

    shape = "a bundle has meta.yaml and folders tp1, tp2 … with dense.csv, per_sequence.csv and attention.csv"
    if not (path / "meta.yaml").is_file():
        raise UserError(f"{path} has no meta.yaml, so it is not a profile; {shape}")
    try:
        meta = yaml.safe_load((path / "meta.yaml").read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path / 'meta.yaml'} is not valid YAML: {error}") from error
    if not isinstance(meta, dict):
        raise UserError(f"{path / 'meta.yaml'} must be a mapping")
    degrees = sorted(
        int(m[1]) for entry in path.iterdir() if entry.is_dir() and (m := re.fullmatch(r"tp(\d+)", entry.name))
    )
    if not degrees:
        raise UserError(f"{path} has no folder of a TP degree; {shape}")
    return Bundle(path, meta, degrees)


def _rows(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    if not path.is_file():
        raise UserError(f"profile has no {path}")
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        lacking = [column for column in columns if column not in (reader.fieldnames or ())]
        if lacking:
            raise UserError(f"{path} lacks the column {', '.join(lacking)}")
        rows = list(reader)
    if not rows:
        raise UserError(f"{path} is empty")
    return rows


def _number(path: Path, line: int, row: dict[str, str], column: str, least: float = 0.0) -> float:
    try:
        value = float(row[column])
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value) or value < least:
        raise UserError(f"{path}:{line}: {column} must be a number of at least 0, got {row[column]!r}")
    return value


def _curves(path: Path, over: str) -> dict[str, Curve]:
    points: dict[str, dict[float, float]] = defaultdict(dict)
    for line, row in enumerate(_rows(path, ("layer", over, "time_us")), start=2):
        least = -math.inf if row["layer"] in PER_SEQUENCE_OPTIONAL else 0.0
        points[row["layer"]][_number(path, line, row, over)] = _number(path, line, row, "time_us", least)
    return {layer: _curve(found) for layer, found in points.items()}


def _attention(path: Path) -> AttentionPoints:
    points: dict[int, dict[int, dict[int, dict[float, float]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(dict))
    )
    for line, row in enumerate(_rows(path, ATTENTION_COLUMNS), start=2):
        chunk, before, decodes, context, time = (_number(path, line, row, column) for column in ATTENTION_COLUMNS)
        points[int(chunk)][int(before)][int(decodes)][context] = time
    if 0 not in points or 0 not in points[0]:
        raise UserError(
            f"{path} has no rows without a prefill (prefill_chunk = 0, kv_prefill = 0), which decode steps need"
        )
    if not any(chunk for chunk in points):
        raise UserError(f"{path} has no rows with a prefill (prefill_chunk > 0)")
    return {
        chunk: {before: {n: _curve(c) for n, c in sorted(by_n.items())} for before, by_n in sorted(by_before.items())}
        for chunk, by_before in sorted(points.items())
    }


def _curve(points: dict[float, float]) -> Curve:
    xs = sorted(points)
    return Curve(xs, [points[x] for x in xs])
