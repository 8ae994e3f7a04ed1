"""Write a trace in its canonical form; the plain readers read it back equal.

Beside ``trace.jsonl`` stands ``trace.jsonl.manifest.json`` with the full provenance, which reading picks up again.
"""

from __future__ import annotations

import csv
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gyges.errors import UserError
from gyges.registry import Registry
from workloads.load import MANIFEST_SUFFIX
from workloads.schema import Trace
from workloads.sources.containers import file_sha256

COLUMNS = ("arrival_s", "prompt_tokens", "output_tokens", "session", "prefix_hashes", "hash_block", "text")

WRITERS: Registry[Callable[[Trace, Path], None]] = Registry("output format")


def convert(trace: Trace, path: Path, container: str | None = None) -> dict[str, Any]:
    """Write ``trace`` to ``path`` as jsonl, csv or parquet (None: by the suffix) and its manifest beside it.

    Returns the manifest. The file appears whole or not at all.
    """
    name = container or path.suffix.removeprefix(".").lower()
    writer = WRITERS.get(name)
    if not path.parent.is_dir():
        raise UserError(f"cannot write {path}: there is no folder {path.parent}")
    try:
        _replace(path, lambda temporary: writer(trace, temporary))
    except UnicodeEncodeError as error:
        raise UserError(f"cannot write {path}: a text holds {error.object[error.start]!r}, no character") from None
    manifest = {"file": path.name, "format": name, "file_sha256": file_sha256(path), **trace.manifest()}
    document = json.dumps(manifest, indent=2, sort_keys=True) + "\n"
    beside = path.with_name(path.name + MANIFEST_SUFFIX)
    _replace(beside, lambda temporary: temporary.write_text(document, encoding="utf-8"))
    return manifest


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes private files; this is an ordinary one
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@WRITERS.register("jsonl")
def _write_jsonl(trace: Trace, path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for request in trace.requests:
            file.write(json.dumps(request.to_json(), separators=(",", ":")) + "\n")


@WRITERS.register("csv")
def _write_csv(trace: Trace, path: Path) -> None:
    used = _used_columns(trace)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)  # with its default line end it quotes a bare CR inside a text, as reading needs
        writer.writerow(used)
        for request in trace.requests:
            row = request.to_json()
            if "prefix_hashes" in row:
                row["prefix_hashes"] = " ".join(map(str, row["prefix_hashes"]))
            writer.writerow([row.get(name, "") for name in used])


@WRITERS.register("parquet")
def _write_parquet(trace: Trace, path: Path) -> None:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    types = {
        "arrival_s": arrow.float64(),
        "prompt_tokens": arrow.int64(),
        "output_tokens": arrow.int64(),
        "session": arrow.string(),
        "prefix_hashes": arrow.list_(arrow.uint64()),
        "hash_block": arrow.int64(),
        "text": arrow.string(),
    }
    rows = [request.to_json() for request in trace.requests]
    schema = arrow.schema([(name, types[name]) for name in _used_columns(trace)])
    parquet.write_table(arrow.Table.from_pylist(rows, schema=schema), path)


def _used_columns(trace: Trace) -> list[str]:
    """The three columns that every trace has, and those of the others that some request uses."""
    used = set().union(*(request.to_json() for request in trace.requests))
    return [name for name in COLUMNS if name in used]
