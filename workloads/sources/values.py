"""One cell of a trace file to one exact value, or an error that names file, line, column and value."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

from gyges.errors import UserError

# Seconds, exact wherever the source is: a Fraction for fixed-point clocks, an int or float as it was written otherwise.
Seconds = int | float | Fraction

_INTEGER = re.compile(r"[+-]?[0-9]{1,18}", re.ASCII)
_LARGEST = 10**12  # tokens; more is damage
_INSTANT = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[ T](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?\s*(Z|[+-]\d\d:?\d\d)?",
    re.ASCII,
)


class RowError(UserError):
    """A row that cannot be used. ``line`` counts from 1 in the file (records, for Parquet and datasets)."""

    def __init__(self, where: str, line: int, column: str, value: object, problem: str) -> None:
        shown = repr(value)
        if len(shown) > 80:
            shown = shown[:77] + "..."
        self.where, self.line, self.column, self.value = where, line, column, value
        super().__init__(f"{where}, line {line}: {column} = {shown}: {problem}")


class BadValue(ValueError):  # noqa: N818 - becomes a RowError once the line is known
    """A cell that is not what its column should hold."""


def to_length(value: object) -> int:
    """A token count as an int; its sign is judged later, where ``--repair`` may drop the row."""
    if isinstance(value, bool) or value is None:
        raise BadValue("not a whole number of tokens")
    if isinstance(value, str):
        text = value.strip()
        value = int(text) if _INTEGER.fullmatch(text) else _to_float(text, "not a whole number of tokens")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int):
        raise BadValue("not a whole number of tokens")
    if abs(value) > _LARGEST:
        raise BadValue("no plausible number of tokens")
    return value


def to_seconds(value: object) -> Seconds:
    """A time in seconds: a number, or an instant such as ``2023-11-16 18:15:46.6805900`` (every digit kept)."""
    if isinstance(value, bool) or value is None:
        raise BadValue("not a time")
    if isinstance(value, int) and abs(value) > 10**18:
        raise BadValue("no plausible time")
    if isinstance(value, int | float):
        return value
    if isinstance(value, datetime):
        aware = value if value.tzinfo else value.replace(tzinfo=UTC)
        since = aware - datetime(1970, 1, 1, tzinfo=UTC)
        return Fraction((since.days * 86400 + since.seconds) * 10**6 + since.microseconds, 10**6)
    if isinstance(value, str):
        text = value.strip()
        if _INTEGER.fullmatch(text):
            return int(text)
        if _INSTANT.fullmatch(text):
            return Fraction(instant_ns(text), 10**9)
        return _to_float(text, "neither seconds nor an instant like 2023-11-16 18:15:46.6805900")
    raise BadValue("not a time")


def instant_ns(text: str) -> int:
    """Nanoseconds since 1970 of an ISO instant with up to nine fractional digits.

    Integer arithmetic throughout: ``datetime`` stops at microseconds and Azure writes seven digits.
    """
    match = _INSTANT.fullmatch(text.strip())
    if match is None:
        raise BadValue("not an instant like 2023-11-16 18:15:46.6805900")
    year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
    try:
        moment = datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError as error:
        raise BadValue(f"not a date: {error}") from None
    seconds = (moment.toordinal() - 719_163) * 86400 + hour * 3600 + minute * 60 + second
    offset = match[8]
    if offset and offset != "Z":
        sign = 1 if offset[0] == "+" else -1
        seconds -= sign * (int(offset[1:3]) * 3600 + int(offset[-2:]) * 60)
    return seconds * 10**9 + int((match[7] or "").ljust(9, "0"))


def to_name(value: object) -> str | None:
    """A session id as text, or None where the cell is empty."""
    if value is None or value == "":
        return None
    if isinstance(value, float) and value != value:  # what a data frame makes of an empty cell
        return None
    if isinstance(value, str | int | float):
        return str(value)
    raise BadValue("neither a name nor a number")


def to_text(value: object) -> str | None:
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return value
    raise BadValue("not text")


def to_hashes(value: object) -> tuple[int, ...] | None:
    """Prefix hashes: a list of integers, or text with blanks between them; None where empty."""
    if value is None or value == "":
        return None
    if isinstance(value, str):
        value = json_or_none(value) if value.lstrip().startswith("[") else value.split()
    if not isinstance(value, list | tuple):
        raise BadValue("not a list of block hashes")
    hashes = []
    for item in value:
        if isinstance(item, str) and item.isascii() and item.isdigit() and len(item) <= 20:
            item = int(item)
        if isinstance(item, bool) or not isinstance(item, int):
            raise BadValue(f"block hash {item!r} is not an integer")
        if not 0 <= item < 2**64:
            raise BadValue(f"block hash {item} is outside 0 .. 2**64 - 1")
        hashes.append(item)
    return tuple(hashes) or None


def json_or_none(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return None


def _to_float(text: str, problem: str) -> float:
    if "_" in text:  # float() would take "1_000"
        raise BadValue(problem)
    try:
        return float(text)
    except ValueError:
        raise BadValue(problem) from None
