"""What a report shows of a result folder, as data. A new kind of folder is one function in :data:`KINDS`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gyges.bench.ablation.figures import FIGURES, HEADLINES
from gyges.bench.ablation.table import footnotes, label, shown, shown_change
from gyges.config import format_bytes
from gyges.errors import UserError
from gyges.metrics.results import load_manifest
from gyges.metrics.tables import read_requests, read_timeline
from gyges.registry import Registry

Document = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Cell:
    """``text`` as shown, ``value`` to sort by: a number, text, or None, which comes last."""

    text: str
    value: float | str | None

    @property
    def sort(self) -> str:
        if self.value is None:
            return ""
        return self.value if isinstance(self.value, str) else repr(self.value).replace("inf", "Infinity")

    @property
    def numeric(self) -> bool:
        return not isinstance(self.value, str)


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of as many cells as there are heads; the first cell names the row."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Plot:
    """``file``: an SVG.   caption: also what is read out instead of it."""

    file: Path
    caption: str


@dataclass(frozen=True, slots=True)
class Content:
    """``warnings``: what must be known before any figure is read.   facts: name -> text."""

    title: str
    warnings: Sequence[str]
    facts: Mapping[str, str]
    tables: Sequence[Table]
    plots: Sequence[Plot]
    manifest: Document
    steps: Sequence[str] = field(default=())


KINDS: Registry[Callable[[Path, dict[str, Any]], Content]] = Registry("kind of result folder that a report can show")


def read_content(folder: Path) -> Content:
    """Raises UserError where ``folder`` is no result folder, or none that a report can show."""
    manifest = load_manifest(folder)
    return KINDS.get(str(manifest.get("kind")))(folder, manifest)


# -- what all have ----------------------------------------------------------------------------------------------------

_CAPTIONS = {
    "bars": "Headline figures of every cell, with 95 % intervals",
    "contributions": "What each part adds to everything off",
    "latency_cdf": "Fraction of requests within so many seconds",
    "timeline": "Output tokens per second over time, above the TP degree of each device",
    "throughput_queue": "Output tokens per second, requests running and waiting, KV use over time",
    "device_map": "TP degree of each device over time",
}


def _plots(folder: Path) -> list[Plot]:
    """Those in the folder, in the order of the captions."""
    found = []
    names = list(_CAPTIONS)
    for path in sorted((folder / "plots").glob("*.svg")):
        base, _, number = path.stem.partition("-")
        if base in _CAPTIONS:
            found.append(
                (names.index(base), int(number or 0), Plot(path, _CAPTIONS[base] + (f" ({number})" if number else "")))
            )
    return [plot for _, _, plot in sorted(found, key=lambda each: each[:2])]


def _read(folder: Path, name: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((folder / name).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} has no {name} to report on ({error}); did the run end?") from error
    return found


def _facts(manifest: Document) -> dict[str, str]:
    hardware, trace = manifest["hardware"], manifest.get("trace") or {}
    facts = {
        "started": f"{manifest['started'][:19].replace('T', ' ')} UTC",
        "machine": f"{hardware['cpu']}, {manifest['cores']} of {hardware['machine_cores']} cores, "
        f"{format_bytes(hardware['memory_bytes'])} memory",
    }
    if trace:
        facts["trace"] = (
            f"{trace.get('name')}: {trace.get('requests')} requests, sha256 {str(trace.get('content_sha256'))[:12]}"
        )
    engine = (manifest.get("configuration") or {}).get("engine") or (manifest.get("configuration") or {}).get("base")
    if engine:
        instances = ", ".join(f"TP{degree}" for degree in engine["instances"])
        facts["engine"] = f"{engine['model']} on {instances}; {format_bytes(engine['device_memory'])} a device"
    return facts


def _steps(manifest: Document) -> list[str]:
    """Shell lines that make the result again."""
    git = manifest.get("git")
    return ([f"git checkout {git['commit']}"] if git else []) + [str(manifest["command"])]


def _state(manifest: Document) -> list[str]:
    warnings = list(manifest.get("warnings") or [])
    if manifest["state"] != "complete":
        warnings.insert(0, f"{manifest['state']}: {manifest.get('reason') or 'no reason is known'}")
    elif manifest.get("reason"):
        warnings.insert(0, str(manifest["reason"]))
    if (manifest.get("git") or {}).get("dirty"):
        warnings.append("made by a working tree with uncommitted changes")
    return warnings


# -- an ablation ------------------------------------------------------------------------------------------------------


@KINDS.register("ablation")
def _ablation(folder: Path, manifest: dict[str, Any]) -> Content:
    document = _read(folder, "ablation.json")
    warnings = _state(manifest) + list(document["notes"])
    if document["simulated"]:
        warnings.insert(0, "simulated: no figure below was measured")
    facts = _facts(manifest)
    facts["toggles"] = "; ".join(f"{t['name']}: {t['on']} or {t['off']}" for t in document["toggles"])
    if document["sets"]:
        facts["other axes"] = "; ".join(f"{name}: {', '.join(values)}" for name, values in document["sets"].items())
    facts["repeats"] = str(document["repeats"])
    tables = [_figure_table(document), _change_table(document)]
    return Content("Ablation", warnings, facts, tables, _plots(folder), manifest, _steps(manifest))


def _figure_table(document: Document) -> Table:
    keys = [key for key in FIGURES if key != "goodput" or document["configuration"]["slo"]]
    heads = ["cell"]
    for key in keys:
        figure = FIGURES[key]
        heads.append(" ".join(filter(None, (figure.group, figure.label))) + (f", {figure.unit}" if figure.unit else ""))
    rows = [
        [Cell(label(cell), cell["name"])] + [_figure_cell(cell["figures"][key], FIGURES[key].scale) for key in keys]
        for cell in document["cells"]
    ]
    return Table("Figures", heads, rows, footnotes(document))


def _figure_cell(figure: Document, scale: float) -> Cell:
    return Cell(shown(figure, scale), math.inf if figure["infinite"] else figure["value"])


def _change_table(document: Document) -> Table:
    keys = [key for key in FIGURES if key in HEADLINES or key.endswith(("_p50_s", "_p99_s"))]
    heads = ["cell", "against"]
    heads += [" ".join(filter(None, (FIGURES[key].group, FIGURES[key].label))) + ", %" for key in keys]
    rows = []
    for cell in document["cells"]:
        if cell["reference"]:
            row = [Cell(label(cell), cell["name"]), Cell(cell["reference"], cell["reference"])]
            for key in keys:
                change = cell["figures"][key]["change"]
                relative = (change or {}).get("relative") or {}
                value = math.inf if relative.get("infinite") else relative.get("value")
                row.append(Cell(shown_change(change), value))
            rows.append(row)
    return Table("Changes, paired, with 95 % intervals", heads, rows)


# -- a run ------------------------------------------------------------------------------------------------------------

_LATENCIES = {
    "TTFT": "ttft_s", "TPOT": "tpot_s", "ITL (token gap)": "itl_s", "E2E": "e2e_s", "queueing": "queue_s",
}  # fmt: skip


@KINDS.register("run")
def _run(folder: Path, manifest: dict[str, Any]) -> Content:
    summary = _read(folder, "summary.json")
    warnings = _state(manifest) + list(summary["notes"])
    if summary["simulated"]:
        warnings.insert(0, "simulated: no figure below was measured")
    if not summary["replay"]["valid"]:
        warnings.insert(0, f"invalid: {summary['replay']['reason']}")
    requests, rates = summary["requests"], summary["throughput"]
    facts = _facts(manifest)
    facts["scheduler"] = str((manifest.get("configuration") or {}).get("scheduler"))
    facts["requests"] = ", ".join(f"{count} {name}" for name, count in requests.items())
    facts["throughput"] = f"{_text(rates['output_tokens_per_s'])} output tokens/s over {_text(summary['window_s'])} s"
    if summary["slo"]:
        facts["goodput"] = f"{_text(summary['goodput']['requests_per_s'])} requests/s within {summary['slo']}"
    tables = [_latency_table(summary), _bucket_table(summary), *_event_tables(folder)]
    return Content("Run", warnings, facts, tables, _plots(folder) or _made_plots(folder), manifest, _steps(manifest))


def _made_plots(folder: Path) -> list[Plot]:
    """A cell of an ablation has none of its own until somebody looks at it."""
    from gyges.metrics.plots import write_plots

    if not (folder / "requests.parquet").is_file():
        return []
    records = read_requests(folder / "requests.parquet")
    write_plots(folder / "plots", records, *read_timeline(folder / "timeline.parquet"))
    return _plots(folder)


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _ms(figures: Document, name: str) -> Cell:
    value = figures[name]
    if value is None:
        return Cell("inf", math.inf) if figures["infinite"] and name != "mean" else Cell("-", None)
    return Cell(_text(1e3 * value), value)


def _latency_table(summary: Document) -> Table:
    names = ("mean", "p50", "p90", "p99", "max")
    rows = [[Cell(title, title), *(_ms(summary[key], name) for name in names)] for title, key in _LATENCIES.items()]
    notes = ["from the scheduled arrival; the mean is over finite values only; inf: some requests never got there"]
    return Table("Latency, milliseconds", ["", *names], rows, notes)


def _bucket_table(summary: Document) -> Table:
    heads = ["prompt tokens", "offered", "completed", "output tok/s"]
    heads += [f"{name} {p}, ms" for name in ("TTFT", "TPOT") for p in ("p50", "p99")]
    rows = []
    for index, (name, bucket) in enumerate(summary["buckets"].items()):
        requests, rate = bucket["requests"], bucket["throughput"]["output_tokens_per_s"]
        rows.append(
            [
                Cell(name, f"{index:03d}"),
                Cell(str(requests["offered"]), float(requests["offered"])),
                Cell(str(requests["completed"]), float(requests["completed"])),
                Cell(_text(rate), rate),
                *(_ms(bucket[key], p) for key in ("ttft_s", "tpot_s") for p in ("p50", "p99")),
            ]
        )
    return Table("By prompt length", heads, rows)


def _mib(count: int | None) -> Cell:
    return Cell("-", None) if count is None else Cell(_text(count / 2**20), float(count))


def _event_tables(folder: Path) -> list[Table]:
    try:
        _, events = read_timeline(folder / "timeline.parquet")
    except OSError:
        return []
    if not events:
        return []
    heads = ["transformation", "devices", "start, s", "took, ms", "pause, ms", "moved, MiB", "extra, MiB", "cause"]
    rows = []
    for index, event in enumerate(events, start=1):
        took = event.end_s - event.start_s
        before, after = ("+".join(f"TP{degree}" for degree in side) for side in (event.before, event.after))
        kind = f"{index}: {event.kind} {before} to {after}" + (" (broke)" if event.error else "")
        rows.append(
            [
                Cell(kind, f"{index:06d}"),
                Cell(", ".join(map(str, event.devices)), ",".join(map(str, event.devices))),
                Cell(f"{event.start_s:.2f}", event.start_s),
                Cell(_text(1e3 * took), took),
                Cell(_text(1e3 * event.pause_s), event.pause_s),
                _mib(event.bytes_moved),
                _mib(event.extra_bytes),
                Cell(event.error.splitlines()[0] if event.error else event.cause, event.error or event.cause),
            ]
        )
    return [Table("Transformations", heads, rows)]
