"""What a trace format is, and how its rows become requests.

A format is declared, not programmed: which columns tell it apart, which column plays which role, the unit of its clock,
the tokens per prefix hash. One file, one ``FORMATS.add``; a format with a twist overrides :meth:`TraceFormat.read`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

from gyges.errors import UserError
from gyges.registry import Registry
from workloads.sources.containers import CONTAINERS, Head
from workloads.sources.text import TextMeasure, split_chat
from workloads.sources.values import (
    BadValue,
    RowError,
    Seconds,
    to_hashes,
    to_length,
    to_name,
    to_seconds,
    to_text,
)

T = TypeVar("T")
Roles = Mapping[str, tuple[str, ...]]  # role -> column names that may play it, best first


@dataclass(slots=True)
class RawRow:
    """One row, parsed but not yet judged: lengths may be zero and times NaN or out of order.

    ``arrival`` is seconds on the source's own clock, None where the source has none.
    """

    line: int
    arrival: Seconds | None
    prompt_tokens: int
    output_tokens: int
    session: str | None = None
    prefix_hashes: tuple[int, ...] | None = None
    hash_block: int | None = None
    text: str | None = None


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """What reading needs to know: the user's column mapping, how to measure text, whether arrivals are generated."""

    columns: Mapping[str, str]
    measure: TextMeasure
    generate_arrivals: bool = False


class RowMapper:
    """Turns rows (column -> value) into :class:`RawRow`, having resolved once which column plays which role."""

    def __init__(
        self,
        where: str,
        available: Sequence[str],
        roles: Roles,
        options: ReadOptions,
        *,
        seconds_per_unit: Fraction = Fraction(1),
        hash_block: int | None = None,
        optional_arrival: bool = False,
        sparse: bool = False,
    ) -> None:
        self.where, self.available, self.measure = where, tuple(available), options.measure
        self.seconds_per_unit, self.hash_block = seconds_per_unit, hash_block
        self.constants: dict[str, int] = {}
        self.columns: dict[str, str] = {}
        for role in {**roles, **options.columns}:
            column = self._resolve(role, roles.get(role, ()), options.columns.get(role))
            if column is not None:
                self.columns[role] = column
        # Lengths in the data win over a text that would only be measured, and a text named by the user over a chat.
        measured = not (self._has("prompt") and self._has("output")) and "text" not in options.columns
        self.chat = self.columns.get("chat") if measured else None
        if options.generate_arrivals:
            self.columns.pop("arrival", None)
        elif "arrival" not in self.columns and not optional_arrival:
            raise self._missing("arrival", "or give --rate to generate Poisson arrivals")
        if not self._has("prompt") and self.chat is None and "text" not in self.columns:
            raise self._missing("prompt", "or map text or chat to measure it")
        if not self._has("output") and self.chat is None and "output_text" not in self.columns:
            raise self._missing("output", "or give a number, as in output=128")
        unsized = "hashes" in self.columns and not self._has("hash_block") and hash_block is None
        if unsized and ("hashes" in options.columns or not sparse):
            raise UserError(f"{where}: column {self.columns['hashes']!r} holds hashes; say hash_block=TOKENS")
        if sparse:
            self._expect_more(roles)

    @property
    def has_arrivals(self) -> bool:
        return "arrival" in self.columns

    def __call__(self, line: int, row: Mapping[str, Any]) -> RawRow:
        raw = RawRow(line, None, 0, 0)
        if "arrival" in self.columns:
            seconds = self.cell(line, row, "arrival", to_seconds)
            raw.arrival = self._scaled(seconds)
        if self.chat is not None:
            prompt, reply = self.cell(line, row, "chat", split_chat)
            raw.text = prompt or None
            raw.prompt_tokens, raw.output_tokens = self.measure.count(prompt), self.measure.count(reply)
        elif "text" in self.columns:
            raw.text = self.cell(line, row, "text", to_text)
        if self._has("prompt"):
            raw.prompt_tokens = self._length(line, row, "prompt")
        elif self.chat is None:
            raw.prompt_tokens = self.measure.count(raw.text)
        if self._has("output"):
            raw.output_tokens = self._length(line, row, "output")
        elif "output_text" in self.columns:
            raw.output_tokens = self.measure.count(self.cell(line, row, "output_text", to_text))
        if "session" in self.columns:
            raw.session = self.cell(line, row, "session", to_name)
        if "hashes" in self.columns:
            raw.prefix_hashes = self.cell(line, row, "hashes", to_hashes)
            if raw.prefix_hashes is not None:
                given = self._has("hash_block")  # else the format's own
                raw.hash_block = self._length(line, row, "hash_block") if given else self.hash_block
        return raw

    def cell(self, line: int, row: Mapping[str, Any], role: str, parse: Callable[[object], T]) -> T:
        """The parsed value of a role in one row; a bad one raises :class:`RowError`."""
        column = self.columns[role]
        value = row.get(column)
        try:
            if value is None and role in ("arrival", "prompt", "output", "chat"):
                raise BadValue("missing")
            return parse(value)
        except BadValue as error:
            raise RowError(self.where, line, column, value, str(error)) from None

    def _expect_more(self, roles: Roles) -> None:
        """JSON leaves absent fields out, so the first record need not have all that a later one has."""
        for role in ("session", "hashes", "text"):
            if role in roles and (role != "text" or self._has("prompt")):
                self.columns.setdefault(role, roles[role][0])
        if "hash_block" in roles and not self._has("hash_block"):
            self.columns["hash_block"] = roles["hash_block"][0]

    def _length(self, line: int, row: Mapping[str, Any], role: str) -> int:
        return self.constants[role] if role in self.constants else self.cell(line, row, role, to_length)

    def _scaled(self, seconds: Seconds) -> Seconds:
        if self.seconds_per_unit == 1:
            return seconds
        if isinstance(seconds, float):  # as written, so exactness was never there; a NaN stays one
            return seconds * self.seconds_per_unit.numerator / self.seconds_per_unit.denominator
        return seconds * self.seconds_per_unit

    def _has(self, role: str) -> bool:
        return role in self.columns or role in self.constants

    def _resolve(self, role: str, candidates: tuple[str, ...], chosen: str | None) -> str | None:
        if chosen is None:
            return next((name for name in candidates if name in self.available), None)
        if chosen in self.available:
            return chosen
        if role in ("prompt", "output", "hash_block") and chosen.isascii() and chosen.isdigit():
            self.constants[role] = int(chosen)
            return None
        raise UserError(f"{self.where} has no column {chosen!r} (asked for {role}); its columns: {self._listed()}")

    def _missing(self, role: str, otherwise: str) -> UserError:
        return UserError(
            f"{self.where}: no column is known to hold {role}; its columns: {self._listed()}. "
            f"Say which with --columns {role}=COLUMN, {otherwise}"
        )

    def _listed(self) -> str:
        return ", ".join(self.available) or "none"


@dataclass(frozen=True)
class TraceFormat:
    """How one source writes its traces.

    signature: columns that must all be there for the format to be recognised; ``never``: columns that rule it out.
    roles: role -> column names. seconds_per_unit: of its clock. hash_block: tokens per prefix hash.
    shifts: whether its times count from an origin of their own and are moved to start at 0.
    """

    name: str
    description: str
    containers: tuple[str, ...]
    signature: frozenset[str]
    roles: Roles
    never: frozenset[str] = frozenset()
    seconds_per_unit: Fraction = field(default=Fraction(1))
    hash_block: int | None = None
    shifts: bool = True

    def sniff(self, path: Path, head: Head) -> bool:
        """Whether the file looks like this format, by its container and columns."""
        columns = frozenset(head.columns)
        return head.container in self.containers and self.signature <= columns and not (self.never & columns)

    def mapper(self, path: Path, head: Head, options: ReadOptions) -> RowMapper:
        if head.container not in self.containers:
            raise UserError(
                f"{path} is {head.container}, but format {self.name!r} is written as {' or '.join(self.containers)}"
            )
        return RowMapper(
            str(path),
            head.columns,
            self.roles,
            options,
            seconds_per_unit=self.seconds_per_unit,
            hash_block=self.hash_block,
            sparse=head.container in ("jsonl", "json"),
        )

    def read(self, path: Path, head: Head, options: ReadOptions) -> Iterator[RawRow]:
        """Every row of the file, in file order. Raises :class:`RowError` at the first malformed one."""
        mapper = self.mapper(path, head, options)
        for line, row in CONTAINERS.get(head.container).rows(path):
            yield mapper(line, row)

    def keeps_origin(self, head: Head, options: ReadOptions) -> bool:
        """Whether the file's times already count from the start of the trace and stay as they are."""
        return not self.shifts


FORMATS: Registry[TraceFormat] = Registry("trace format")


def register(format_: TraceFormat) -> TraceFormat:
    return FORMATS.add(format_.name, format_)
