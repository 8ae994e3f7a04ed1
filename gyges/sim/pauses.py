"""What transformations of a run of this project's engine should have cost, and the signed errors against what they did.

A request that decodes while its instance merges or splits sees one gap that is longer than the others. Simulated, that gap is
the step it would have waited for anyway (step times: the profile), and what the transformation adds to it, read off a curve over
the bytes that move between devices. The curve is what ``gyges bench transform`` measured, part ``pause``: no constant comes from
the run. Of the run, only its state is taken: which transformation when, and how many requests and tokens there were just before.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gyges.config import EngineConfig
from gyges.errors import UserError
from gyges.metrics.records import TimelineSample, TransformationEvent
from gyges.sim.compare import pair
from gyges.sim.cost.base import CostModel, StepShape
from gyges.sim.cost.curves import Curve
from gyges.transform.host import HostShape
from gyges.transform.price import bytes_to_move

PAUSE_GOAL = 0.20  # of the mean, by kind


class PauseTable:
    """Seconds that a transformation adds to the gap between two tokens, by kind and overlap, over the bytes between devices:
    the mean of one or several measurements of it."""

    def __init__(self, measurements: Sequence[Mapping[tuple[str, bool], Curve]]) -> None:
        assert measurements
        self._measurements = [dict(curves) for curves in measurements]

    @classmethod
    def read(cls, folders: Sequence[Path], config: EngineConfig, wide: int) -> PauseTable:
        """From folders of ``gyges bench transform`` whose part ``pause`` has this engine's model, layout and padding, and
        instances of TP ``wide`` on the wide side. Raises UserError that says what one lacks."""
        return cls([_curves(folder, config, wide) for folder in folders])

    def pause_s(self, kind: str, overlap: bool, moved: int) -> float:
        """Beyond an ordinary gap. ``moved``: bytes between devices. Raises UserError where one of the measurements has nothing
        like it: a mean of the others would be of another time."""
        curves = [each[kind, overlap] for each in self._measurements if (kind, overlap) in each]
        if len(curves) < len(self._measurements):
            raise UserError(f"no {kind} was measured with the overlap {'on' if overlap else 'off'}")
        return statistics.fmean(curve(moved) for curve in curves)


def _curves(folder: Path, config: EngineConfig, wide: int) -> dict[tuple[str, bool], Curve]:
    path = folder / "transform.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} is not a result folder of gyges bench transform: cannot read {path}") from error
    found: dict[tuple[str, bool], dict[float, list[float]]] = {}
    models = (document.get("pause") or {"models": []})["models"]
    for result in models:
        if result["model"] != config.model or result["degree"] != wide:
            continue
        for cell in result["cells"]:
            if cell["layout"] == config.layout and cell["padding"] == config.padding and cell["pause_s"]:
                moved = cell["kv_peer_bytes"]["median"] + cell["weights_peer_bytes"]["median"]
                points = found.setdefault((cell["kind"], cell["overlap"]), {})
                points.setdefault(moved, []).append(cell["pause_s"]["median"])
    if not found:
        has = sorted({f"{result['model']} TP{result['degree']}" for result in models})
        raise UserError(
            f"{folder} has no pauses of {config.model} TP{wide} with {config.layout}, padding "
            f"{'on' if config.padding else 'off'} (it has {', '.join(has) or 'no part pause'}); run gyges bench transform "
            f"--parts pause --pause-models {config.model} --layouts {config.layout} --degrees {wide}"
        )
    return {
        key: Curve(sorted(points), [statistics.fmean(points[x]) for x in sorted(points)])
        for key, points in found.items()
    }


def compare_pauses(
    events: Sequence[TransformationEvent],
    samples: Sequence[TimelineSample],
    host: HostShape,
    costs: Mapping[int, CostModel],
    table: PauseTable,
) -> dict[str, Any]:
    """``transformations``: of each that was carried out and that a decoding request noticed, ``pause_s`` and ``bytes`` as
    (measured, simulated, error).   ``pauses``: by kind, the mean of them, and ``count``.   ``goals``: as of
    :func:`gyges.sim.compare.compare`.   ``unseen``: transformations without a request that noticed. Seconds, bytes.
    """
    rows: list[dict[str, Any]] = []
    unseen = 0
    for event in events:
        sources = _sources(event, samples)
        if event.error or not event.pause_s or not sources:
            unseen += 1
            continue
        held = sum(sample.kv_used_blocks for sample in sources) * host.block_size
        moved = bytes_to_move(host, event.before, event.after, held)
        step_s = max(costs[sample.tp].step_s(_decoding(sample, host.block_size)) for sample in sources)
        rows.append(
            {
                "kind": event.kind,
                "before": list(event.before),
                "after": list(event.after),
                "overlap": event.overlap,
                "start_s": event.start_s,
                "held_tokens": held,
                "step_s": step_s,
                "pause_s": pair(event.pause_s, step_s + table.pause_s(event.kind, event.overlap, moved)),
                "bytes": pair(event.bytes_moved, moved),
            }
        )
    pauses = {}
    for kind in dict.fromkeys(row["kind"] for row in rows):
        own = [row["pause_s"] for row in rows if row["kind"] == kind]
        means = (statistics.fmean(each[side] for each in own) for side in ("measured", "simulated"))
        pauses[kind] = {**pair(*means), "count": len(own)}
    return {
        "transformations": rows,
        "unseen": unseen,
        "pauses": pauses,
        "goals": {
            kind: {"limit": PAUSE_GOAL, "error": value["error"], "met": abs(value["error"]) <= PAUSE_GOAL}
            for kind, value in pauses.items()
        },
    }


def _sources(event: TransformationEvent, samples: Sequence[TimelineSample]) -> list[TimelineSample]:
    """The last sample before it of each instance that it replaces, those with running requests."""
    latest: dict[int, TimelineSample] = {}
    for sample in samples:
        if sample.t_s <= event.start_s:
            for device in sample.devices:
                if device in event.devices and (device not in latest or sample.t_s >= latest[device].t_s):
                    latest[device] = sample
    found = {sample.instance: sample for sample in latest.values()}
    return [sample for sample in found.values() if sample.tp in event.before and sample.running]


def _decoding(sample: TimelineSample, block_size: int) -> StepShape:
    """All that run, with the mean context; the last block of each is half full."""
    tokens = max(sample.kv_used_blocks * block_size - sample.running * block_size // 2, sample.running)
    return StepShape(sample.running, tokens, -(-tokens // sample.running), (), sample.running)
