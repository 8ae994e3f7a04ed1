"""What is compared: result folders as sides, each with the replays that it has."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gyges.errors import UserError
from gyges.metrics.records import RequestRecord, TimelineSample, TransformationEvent
from gyges.metrics.results import load_manifest
from gyges.metrics.tables import read_requests, read_timeline


@dataclass(frozen=True)
class Replay:
    """One run's records by request id, and what happened meanwhile."""

    records: dict[str, RequestRecord]
    samples: list[TimelineSample]
    events: list[TransformationEvent]


@dataclass(frozen=True)
class Side:
    """``name``: as it was given.   trace_sha256: of what was replayed; None: not recorded.   replays: one per repeat."""

    name: str
    path: Path
    trace_sha256: str | None
    scheduler: str | None
    replays: list[Replay]


@dataclass(frozen=True)
class Pair:
    """``b`` is compared with ``a``. ``name``: of the cell that both are; empty: of no ablation."""

    name: str
    a: Side
    b: Side


def pairs_of(paths: Sequence[Path], *, any_trace: bool) -> list[Pair]:
    """Every path but the first against the first; of ablations, cell by cell.

    Raises UserError for fewer than two, for ablations beside others, and for different traces unless ``any_trace``.
    """
    if len(paths) < 2:
        raise UserError(
            "give at least two result folders to compare: the first one is what the others are compared with"
        )
    ablations = [path for path in paths if _kind(path) == "ablation"]
    if ablations and len(ablations) < len(paths):
        cells = ", ".join(sorted(path.name for path in (ablations[0] / "cells").iterdir() if path.is_dir()))
        raise UserError(
            f"{ablations[0]} is an ablation and others are not; name one of its cells, {ablations[0]}/cells/NAME: {cells}"
        )
    found = []
    for other in paths[1:]:
        if ablations:
            found += _by_cell(paths[0], other)
        else:
            found.append(Pair("", read_side(paths[0]), read_side(other)))
    for pair in found:
        _check_traces(pair, any_trace)
    return found


def _by_cell(a: Path, b: Path) -> list[Pair]:
    names = [{path.name for path in (root / "cells").iterdir() if _repeats(path)} for root in (a, b)]
    common = sorted(names[0] & names[1])
    if not common:
        raise UserError(f"{a} and {b} have no cell in common: {sorted(names[0])} and {sorted(names[1])}")
    return [Pair(name, read_side(a / "cells" / name, str(a)), read_side(b / "cells" / name, str(b))) for name in common]


def _kind(path: Path) -> str:
    """ "run", "cell" or "ablation"."""
    if not (path / "manifest.json").is_file() and _repeats(path):
        return "cell"
    kind = str(load_manifest(path).get("kind"))
    if kind not in ("run", "ablation"):
        raise UserError(
            f"{path} is a result folder of kind {kind}; bench compare takes runs, ablations, and their cells"
        )
    return kind


def _repeats(path: Path) -> list[Path]:
    """Folders of complete runs, r1 r2 ..., in their order."""
    found = [each for each in path.iterdir() if re.fullmatch(r"r\d+", each.name)] if path.is_dir() else []
    found.sort(key=lambda each: int(each.name[1:]))
    return [each for each in found if (each / "manifest.json").is_file() and load_manifest(each)["state"] == "complete"]


def read_side(path: Path, name: str | None = None) -> Side:
    """A run, or a cell with its complete repeats."""
    folders = _repeats(path) if _kind(path) == "cell" else [path]
    manifests = [load_manifest(folder) for folder in folders]
    return Side(
        name or str(path),
        path,
        manifests[0].get("trace_sha256"),
        _scheduler(manifests[0]),
        [_read(folder) for folder in folders],
    )


def _scheduler(manifest: dict[str, Any]) -> str | None:
    found = (manifest.get("configuration") or {}).get("scheduler")
    return str(found) if found else None


def _read(folder: Path) -> Replay:
    try:
        records = read_requests(folder / "requests.parquet")
        samples, events = read_timeline(folder / "timeline.parquet")
    except OSError as error:
        raise UserError(f"{folder} has no requests to compare ({error}); did the run end?") from error
    return Replay({record.request_id: record for record in records}, samples, [e for e in events if not e.error])


def _check_traces(pair: Pair, any_trace: bool) -> None:
    a, b = pair.a, pair.b
    if any_trace or (a.trace_sha256 is not None and a.trace_sha256 == b.trace_sha256):
        return
    shown = [f"{side.path}: {(side.trace_sha256 or 'not recorded')[:12]}" for side in (a, b)]
    raise UserError(
        f"these replayed different traces ({'; '.join(shown)}), so their requests are no pairs; "
        "with --any-trace those of equal id and lengths are compared"
    )
