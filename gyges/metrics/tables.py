"""Records, samples and events as Parquet tables and back. pyarrow is imported where it is used.

requests.parquet: the fields of RequestRecord, and ``ttft_s, tpot_s, e2e_s, queue_s`` derived from them (infinite where
a request failed; null where undefined). timeline.parquet: samples and transformations in one schema; the column
``row`` says which, and columns of the other kind are null. For a transformation ``t_s`` is its start.

Files written before a field existed are read with the field's default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gyges.metrics import definitions
from gyges.metrics.arrow import arrow_array
from gyges.metrics.atomic import write_bytes
from gyges.metrics.records import RequestRecord, TimelineSample, TransformationEvent

if TYPE_CHECKING:
    import pyarrow as pa

_DERIVED = {
    "ttft_s": definitions.ttft_s,
    "tpot_s": definitions.tpot_s,
    "e2e_s": definitions.e2e_s,
    "queue_s": definitions.queue_s,
}
_REQUEST_FIELDS = [f.name for f in fields(RequestRecord)]
_SAMPLE_FIELDS = [f.name for f in fields(TimelineSample)]
_EVENT_FIELDS = [f.name for f in fields(TransformationEvent)]
_EVENT_DEFAULTS = {f.name: f.default for f in fields(TransformationEvent) if f.default is not MISSING}
_TEXT = ("request_id", "status", "reason", "instance", "tokens_digest", "row", "kind", "cause", "stopped", "error")
_UNIQUE = ("request_id", "tokens_digest")
_DEVICES = ("devices", "before", "after")
_INTEGERS = (
    "prompt_tokens",
    "output_tokens",
    "target_output_tokens",
    "preemptions",
    "tp",
    "running",
    "waiting",
    "kv_used_blocks",
    "kv_total_blocks",
    "bytes_moved",
    "extra_bytes",
    "steps",
    "tokens",
)


def _schema(names: Sequence[str]) -> pa.Schema:
    import pyarrow as pa

    types = dict.fromkeys(names, pa.float64())
    types.update({name: pa.string() for name in names if name in _TEXT})
    types.update({name: pa.int64() for name in names if name in _INTEGERS})
    types.update({name: pa.list_(pa.float64()) for name in names if name in ("token_times", "chunk_times")})
    types.update({name: pa.list_(pa.int32()) for name in names if name in _DEVICES})
    types.update({name: pa.bool_() for name in names if name == "overlap"})
    return pa.schema(list(types.items()))


def request_table(records: Sequence[RequestRecord]) -> pa.Table:
    """One row per request."""
    columns: dict[str, list[Any]] = {name: [getattr(r, name) for r in records] for name in _REQUEST_FIELDS}
    columns.update({name: [figure(r) for r in records] for name, figure in _DERIVED.items()})
    return _table(columns)


def timeline_table(samples: Sequence[TimelineSample], events: Sequence[TransformationEvent]) -> pa.Table:
    """One row per sample and one per transformation."""
    names = ["row", *_SAMPLE_FIELDS, "end_s", *(n for n in _EVENT_FIELDS if n not in ("devices", "start_s", "end_s"))]
    rows = [{"row": "sample", **{name: getattr(s, name) for name in _SAMPLE_FIELDS}} for s in samples]
    for event in events:
        row = {name: getattr(event, name) for name in _EVENT_FIELDS}
        rows.append({"row": "transformation", "t_s": row.pop("start_s"), **row})
    return _table({name: [row.get(name) for row in rows] for name in names})


def _table(columns: Mapping[str, Sequence[Any]]) -> pa.Table:
    import pyarrow as pa

    schema = _schema(list(columns))
    arrays = [arrow_array(columns[field.name], field.type) for field in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def write_table(path: Path, table: pa.Table) -> None:
    """Atomically. Dictionaries only where text repeats: on times they cost and save nothing."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    repeated = [name for name in table.column_names if name in _TEXT and name not in _UNIQUE]
    pq.write_table(table, sink, compression="zstd", use_dictionary=repeated)
    write_bytes(path, memoryview(sink.getvalue()))


def read_requests(path: str | Path) -> list[RequestRecord]:
    """The records of a requests.parquet."""
    import pyarrow.parquet as pq

    names = [name for name in _REQUEST_FIELDS if name in pq.read_schema(path).names]
    table = pq.read_table(path, columns=names)
    columns = (table.column(name).to_pylist() for name in names)
    return [RequestRecord(**dict(zip(names, values, strict=True))) for values in zip(*columns, strict=True)]


def read_timeline(path: str | Path) -> tuple[list[TimelineSample], list[TransformationEvent]]:
    """The samples and transformations of a timeline.parquet."""
    import pyarrow.parquet as pq

    samples, events = list[TimelineSample](), list[TransformationEvent]()
    for row in pq.read_table(path).to_pylist():
        row["devices"] = tuple(row["devices"])
        if row["row"] == "sample":
            samples.append(TimelineSample(**{name: row[name] for name in _SAMPLE_FIELDS}))
        else:
            row["start_s"] = row["t_s"]
            known = {name: row.get(name) for name in _EVENT_FIELDS}
            known |= {name: tuple(known[name] or ()) for name in ("before", "after")}
            # Null where the file is older than the field; asked_s may be null in any file.
            known |= {name: value for name, value in _EVENT_DEFAULTS.items() if known[name] is None}
            events.append(TransformationEvent(**known))
    return samples, events
