"""Everything an ablation found, as one plain dict, which becomes ablation.json.

A figure of a cell: ``value`` (over all repeats), ``low`` and ``high`` (95 %: bootstrap for latencies, Student's t for
figures of a whole run, None where one repeat tells nothing), ``infinite``, ``values`` (one per repeat). A change is b - a
(``difference``) and b / a - 1 (``relative``) against the cell's reference, paired. JSON knows no infinity: it is None
there, and ``infinite`` says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gyges.bench.ablation.axes import AXES, toggles
from gyges.bench.ablation.backend import backend
from gyges.bench.ablation.figures import FIGURES, LATENCY_FIGURES, RUN_FIGURES, LatencyFigure, Run
from gyges.bench.ablation.run import AblationConfig, Planned
from gyges.bench.paired import Interval, mean, mean_interval, own_interval, paired_change, per_run_change, percentile
from gyges.bench.serving import notes_of
from gyges.metrics import definitions as d
from gyges.metrics.slo import Slo, parse_slo

Document = dict[str, Any]


def build(config: AblationConfig, planned: Sequence[Planned], root: Path, *, seed: int = 0) -> Document:
    """Reads the runs from ``root``. ``seed``: of the bootstrap."""
    slo = parse_slo(config.slo) if config.slo else None
    runs = {
        each.cell.name: {repeat: Run.read(each.folder(root, repeat), each.long_over) for repeat in each.done}
        for each in planned
    }
    cells = [_cell(each, runs[each.cell.name], runs.get(each.cell.reference, {}), slo, seed) for each in planned]
    simulated = backend(config.backend).simulated
    return {
        "configuration": config.to_dict(),
        "simulated": simulated,
        "repeats": config.repeats,
        "toggles": [
            {"name": axis.name, "on": axis.on, "off": axis.off, "meaning": axis.meaning}
            for axis in toggles()
            if axis.name not in config.grid.sets
        ],
        "sets": {name: list(values) for name, values in config.grid.sets.items()},
        "figures": [
            {"key": f.key, "label": f.label, "group": f.group, "unit": f.unit, "least": f.least}
            for f in FIGURES.values()
        ],
        "workloads": _workloads(planned),
        "notes": _notes(planned, simulated),
        "cells": cells,
    }


def _workloads(planned: Sequence[Planned]) -> list[Document]:
    """Each trace once, with how many of its requests are long; again where that differs between environments."""
    found: dict[tuple[str, int | None], Document] = {}
    for each in planned:
        lengths = [len(i.request.prompt) + i.request.sampling.max_tokens for i in each.work.items]
        long = None if each.long_over is None else sum(length > each.long_over for length in lengths)
        found.setdefault(
            (each.work.sha256, each.long_over),
            {
                "name": each.work.trace.get("name"),
                "content_sha256": each.work.sha256,
                "requests": len(lengths),
                "long": long,
                "long_over_tokens": each.long_over,
                "duration_s": each.work.duration_s,
            },
        )
    return list(found.values())


def _notes(planned: Sequence[Planned], simulated: bool) -> list[str]:
    notes = [] if simulated else [note for each in planned for note in notes_of(each.config)]
    return list(dict.fromkeys(notes))


def _cell(each: Planned, runs: Mapping[int, Run], reference: Mapping[int, Run], slo: Slo | None, seed: int) -> Document:
    repeats = sorted(runs)
    common = [repeat for repeat in repeats if repeat in reference]
    compared = common and each.cell.reference != each.cell.name
    figures: Document = {}
    for run_figure in RUN_FIGURES:
        values = [run_figure.value(runs[repeat], slo) for repeat in repeats]
        known = [value for value in values if value is not None]
        found = _plain(mean_interval(known) if known else None) | {"values": values, "change": None}
        if compared:
            pairs = [(run_figure.value(reference[r], slo), run_figure.value(runs[r], slo)) for r in common]
            both = [(x, y) for x, y in pairs if x is not None and y is not None]
            if both:
                found["change"] = _change(per_run_change([x for x, _ in both], [y for _, y in both]))
        figures[run_figure.key] = found
    for figure in LATENCY_FIGURES:
        mine = _matrix(figure, runs, repeats)
        per_repeat = [d.percentile(row[~np.isnan(row)], figure.p) for row in mine]
        found = _plain(own_interval(mine, percentile(figure.p), seed) if repeats else None)
        found |= {"values": [_finite(value) for value in per_repeat], "change": None}
        if compared:
            a, b = _matrix(figure, reference, common), _matrix(figure, runs, common)
            found["change"] = _change(paired_change(a, b, percentile(figure.p), seed))
        figures[figure.key] = found
    return {
        "name": each.cell.name,
        "slug": each.cell.slug,
        "state": dict(each.cell.state),
        "environment": dict(each.cell.environment),
        "settings": {name: each.cell.settings[name] for name in AXES.names() if name in each.cell.settings},
        "reference": None if each.cell.reference == each.cell.name else each.cell.reference,
        "devices": each.config.num_devices,
        "repeats": repeats,
        "invalid": {str(repeat): runs[repeat].invalid for repeat in repeats if runs[repeat].invalid},
        "error": each.error or None,
        "trace_sha256": each.work.sha256,
        "long_over_tokens": each.long_over,
        "key": each.key,
        "figures": figures,
        "per_request": _per_request(runs, reference, common, seed) if compared else None,
    }


def _matrix(figure: LatencyFigure, runs: Mapping[int, Run], repeats: Sequence[int]) -> np.ndarray[Any, Any]:
    return np.array([figure.values(runs[repeat]) for repeat in repeats])


def _per_request(runs: Mapping[int, Run], reference: Mapping[int, Run], common: Sequence[int], seed: int) -> Document:
    """Mean of each request's own difference in TTFT and E2E, over those that completed on both sides in all repeats; seconds."""
    found: Document = {}
    for name, latency in (("ttft_s", d.ttft_s), ("e2e_s", d.e2e_s)):
        a, b = (
            np.array(
                [[math.nan if (v := latency(r)) is None else v for r in side[repeat].records] for repeat in common]
            )
            for side in (reference, runs)
        )
        done = np.isfinite(a).all(axis=0) & np.isfinite(b).all(axis=0)
        change = paired_change(a[:, done], b[:, done], mean, seed) if done.any() else None
        found[name] = {
            "requests": int(done.sum()),
            "difference": _plain(change[0]) if change else None,
            "slower": int((b[:, done].mean(axis=0) > a[:, done].mean(axis=0)).sum()),
        }
    return found


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _plain(interval: Interval | None) -> Document:
    if interval is None:
        return {"value": None, "low": None, "high": None, "infinite": False}
    return {
        "value": _finite(interval.value),
        "low": _finite(interval.low),
        "high": _finite(interval.high),
        "infinite": math.isinf(interval.value),
    }


def _change(found: tuple[Interval, Interval | None] | None) -> Document | None:
    if found is None:
        return None
    difference, relative = found
    return {
        "difference": _plain(difference) | {"clear": difference.clear},
        "relative": None if relative is None else _plain(relative) | {"sign": 1 if relative.value > 0 else -1},
    }
