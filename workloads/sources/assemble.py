"""Judge a source's rows and make them requests: all of them, or none and an error."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from gyges.errors import UserError
from workloads.schema import TraceRequest
from workloads.sources.base import RawRow
from workloads.sources.values import RowError, Seconds

DROPPED_LENGTH = "dropped_non_positive_length"
DROPPED_TIME = "dropped_non_finite_time"
SORTED = "sorted_out_of_order"


@dataclass(frozen=True, slots=True)
class Assembled:
    """``shift_s``: seconds subtracted from the source's times. ``repairs``: rows repaired, by kind."""

    requests: tuple[TraceRequest, ...]
    rows_read: int
    shift_s: float
    repairs: dict[str, int]


def assemble(
    rows: Iterable[RawRow],
    where: str,
    *,
    repair: bool = False,
    keep_origin: bool = False,
    arrivals: Callable[[int], Sequence[float]] | None = None,
) -> Assembled:
    """The requests of all rows, shifted so that the first arrives at 0 s (``keep_origin``: only if it is negative).

    arrivals: for a source without times, a function from a count to that many sorted seconds.
    repair: drop rows with a length below 1 or a time that is not finite, and sort by time, all counted. Without it any
    of them raises :class:`RowError`. A row that cannot be parsed at all has raised before it came here, either way:
    repairing it would mean guessing.
    """
    repairs: Counter[str] = Counter()
    kept: list[RawRow] = []
    latest: Seconds | None = None
    count = 0
    for row in rows:
        count += 1
        if problem := _length_problem(where, row):
            if not repair:
                raise problem
            repairs[DROPPED_LENGTH] += 1
            continue
        if arrivals is None:
            assert row.arrival is not None, "a row without a time comes with generated arrivals"
            if not math.isfinite(row.arrival):
                if not repair:
                    raise RowError(where, row.line, "arrival", row.arrival, _or_repair("not a finite time", "drop"))
                repairs[DROPPED_TIME] += 1
                continue
            if latest is not None and row.arrival < latest:
                if not repair:
                    shown = f"earlier than a row before it ({float(latest):.9g} s)"
                    raise RowError(where, row.line, "arrival", float(row.arrival), _or_repair(shown, "sort"))
                repairs[SORTED] += 1
            else:
                latest = row.arrival
        kept.append(row)
    if not kept:
        dropped = f"; {sum(repairs.values())} rows were dropped by repair" if repairs else ""
        raise UserError(f"{where} holds no usable rows{dropped}; a trace needs at least one request")
    if arrivals is not None:
        return Assembled(tuple(map(_request, kept, arrivals(len(kept)))), count, 0.0, dict(repairs))
    if repairs[SORTED]:
        kept.sort(key=_arrival)  # stable: rows of one instant stay in file order
    first = _arrival(kept[0])
    origin = first if first < 0 or not keep_origin else 0
    # Subtract on the source's own, exact clock, and round to a float once.
    requests = tuple(_request(row, float(_arrival(row) - origin)) for row in kept)
    return Assembled(requests, count, float(origin), dict(+repairs))


def _arrival(row: RawRow) -> Seconds:
    assert row.arrival is not None, "only rows with times are ordered by time"
    return row.arrival


def _request(row: RawRow, arrival_s: float) -> TraceRequest:
    hashes, block = row.prefix_hashes, row.hash_block
    if hashes is None:
        block = None
    return TraceRequest(arrival_s, row.prompt_tokens, row.output_tokens, row.session, hashes, block, row.text)


def _length_problem(where: str, row: RawRow) -> RowError | None:
    for name, tokens in (("prompt length", row.prompt_tokens), ("output length", row.output_tokens)):
        if tokens < 1:
            return RowError(where, row.line, name, tokens, _or_repair("a length is at least 1 token", "drop"))
    if row.prefix_hashes is not None and row.hash_block is not None and row.hash_block < 1:
        return RowError(where, row.line, "hash_block", row.hash_block, _or_repair("at least 1 token", "drop"))
    return None


def _or_repair(problem: str, remedy: str) -> str:
    return f"{problem}; --repair would {remedy} such rows and count them"
