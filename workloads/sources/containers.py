"""How rows lie in a file: CSV, JSON lines, a JSON array, Parquet. What the columns mean is the formats' business."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from gyges.errors import UserError
from gyges.registry import Registry
from workloads.sources.values import RowError

NumberedRow = tuple[int, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Container:
    """``columns(path)`` names the columns of the first row; ``rows(path)`` yields (line from 1, row)."""

    columns: Callable[[Path], tuple[str, ...]]
    rows: Callable[[Path], Iterator[NumberedRow]]


@dataclass(frozen=True, slots=True)
class Head:
    """What can be known of a file from its beginning."""

    container: str
    columns: tuple[str, ...]


CONTAINERS: Registry[Container] = Registry("trace container")


def read_head(path: Path) -> Head:
    """Which container the file is, by content rather than by name, and its columns."""
    with _open(path) as file:
        start = file.read(4096)
    if not start.strip():
        raise UserError(f"{path} is empty; a trace needs at least one request")
    first = start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    container = "parquet" if start[:4] == b"PAR1" else {b"{": "jsonl", b"[": "json"}.get(first, "csv")
    return Head(container, CONTAINERS.get(container).columns(path))


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def _lines(path: Path) -> Iterator[str]:
    """Decoded lines with their ends. Decoding line by line is what lets a bad byte name its line."""
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise RowError(str(path), number, "text", line[error.start : error.end], "not UTF-8") from None


def _csv_reader(path: Path) -> tuple[tuple[str, ...], Iterator[tuple[int, list[str]]]]:
    csv.field_size_limit(max(csv.field_size_limit(), 1 << 30))  # a prompt of 100k tokens exceeds the default 128 KiB
    reader = csv.reader(_lines(path), strict=True)

    def numbered() -> Iterator[tuple[int, list[str]]]:
        while True:
            line = reader.line_num + 1  # a quoted cell may span lines; name the one where the row begins
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise RowError(str(path), line, "row", "", f"not CSV: {error}") from None
            if cells:
                yield line, cells

    rows = numbered()
    header = tuple(cell.strip() for cell in next(rows, (0, []))[1])
    doubled = {name for name in header if header.count(name) > 1}
    if doubled:
        raise UserError(f"{path}: column {sorted(doubled)[0]!r} appears twice in the header")
    return header, rows


def _csv_columns(path: Path) -> tuple[str, ...]:
    return _csv_reader(path)[0]


def _csv_rows(path: Path) -> Iterator[NumberedRow]:
    header, rows = _csv_reader(path)
    for line, cells in rows:
        if len(cells) != len(header):
            problem = f"{len(cells)} cells where the header has {len(header)}"
            raise RowError(str(path), line, "row", ",".join(cells), problem)
        yield line, dict(zip(header, cells, strict=True))


def _jsonl_rows(path: Path) -> Iterator[NumberedRow]:
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RowError(str(path), number, "row", line.strip(), f"not JSON: {error}") from None
        if not isinstance(row, dict):
            raise RowError(str(path), number, "row", row, "not a JSON object")
        yield number, row


def _json_rows(path: Path) -> Iterator[NumberedRow]:
    try:
        with _open(path) as file:
            records = json.loads(file.read())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} begins like a JSON array but is not one: {error}") from None
    for number, row in enumerate(records, start=1):
        if not isinstance(row, dict):
            raise RowError(str(path), number, "record", row, "not a JSON object")
        yield number, row


def _first_columns(rows: Callable[[Path], Iterator[NumberedRow]]) -> Callable[[Path], tuple[str, ...]]:
    def columns(path: Path) -> tuple[str, ...]:
        for _, row in rows(path):
            return tuple(row)
        raise UserError(f"{path} holds no rows; a trace needs at least one request")

    return columns


def _parquet_columns(path: Path) -> tuple[str, ...]:
    import pyarrow.parquet as parquet

    try:
        return tuple(parquet.read_schema(path).names)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} begins like Parquet but cannot be read: {error}") from None


def _parquet_rows(path: Path) -> Iterator[NumberedRow]:
    import pyarrow.parquet as parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: Parquet broke off after record {number}: {error}") from None


CONTAINERS.add("csv", Container(_csv_columns, _csv_rows))
CONTAINERS.add("jsonl", Container(_first_columns(_jsonl_rows), _jsonl_rows))
CONTAINERS.add("json", Container(_first_columns(_json_rows), _json_rows))
CONTAINERS.add("parquet", Container(_parquet_columns, _parquet_rows))
