"""What a run shows while it goes on: a live view on a terminal, plain log lines anywhere else.

``update`` only stores what it is given. A draw takes some 6 ms, in the process that also has to send requests on
schedule; at one per second fewer than 1 % of requests fall due during a draw, so p99 send lag does not measure it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from gyges.metrics.records import TimelineSample

LOG_INTERVAL_S = 5.0
_DRAWS_PER_S = 1
_MAX_ROWS = 16
_DOING = {"merge": "merging", "split": "splitting"}


@dataclass(frozen=True, slots=True)
class LiveSnapshot:
    """Where a run stands. Counts are of requests so far; ``finished`` are those that completed.

    elapsed_s: since the run's start.   instances: the latest sample of each living instance.
    output_tokens_per_s: over the last moments, all instances together.   transforming: instance -> "merge" or "split".
    """

    elapsed_s: float
    sent: int
    finished: int
    failed: int = 0
    rejected: int = 0
    instances: Sequence[TimelineSample] = ()
    output_tokens_per_s: float = 0.0
    transforming: Mapping[str, str] = field(default_factory=dict)

    @property
    def ended(self) -> int:
        return self.finished + self.failed + self.rejected

    @property
    def in_flight(self) -> int:
        return self.sent - self.ended


class LiveView:
    """``with LiveView(console, total) as view: view.update(snapshot)``. total: requests to offer; None: unknown."""

    def __init__(
        self,
        console: Console,
        total: int | None = None,
        *,
        title: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console, self._total, self._title, self._clock = console, total, title, clock
        self._snapshot: LiveSnapshot | None = None
        self._logged: LiveSnapshot | None = None
        self._next_log = clock() + LOG_INTERVAL_S
        self._live: Live | None = None
        if console.is_terminal:
            self._live = Live(console=console, get_renderable=self._render, refresh_per_second=_DRAWS_PER_S)

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def update(self, snapshot: LiveSnapshot) -> None:
        """Cheap: call it as often as there is news."""
        self._snapshot = snapshot
        if self._live is None and self._clock() >= self._next_log:
            self._next_log = self._clock() + LOG_INTERVAL_S
            self._log()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()  # draws the last state once more and leaves it standing
        else:
            self._log()

    def _log(self) -> None:
        if self._snapshot is not None and self._snapshot is not self._logged:
            self._logged = self._snapshot
            # soft_wrap: a log line is one line, however narrow the "terminal" that rich assumes.
            self._console.print(self._line(self._snapshot), soft_wrap=True, highlight=False, markup=False)

    def _line(self, now: LiveSnapshot) -> str:
        of = "" if self._total is None else f"/{self._total}"
        running = sum(s.running for s in now.instances)
        waiting = sum(s.waiting for s in now.instances)
        parts = [
            f"[{now.elapsed_s:7.1f} s] {now.ended}{of} ended ({now.failed} failed, {now.rejected} rejected)",
            f"{now.in_flight} in flight, {running} running, {waiting} waiting",
            f"{now.output_tokens_per_s:.0f} tokens/s",
        ]
        if now.instances:
            parts.append(f"KV {_kv_use(now.instances):.0%}")
            parts.append(_degrees(now.instances))
            parts += [f"{_DOING[kind]} {_devices(s)}" for s in now.instances if (kind := _kind(now, s))]
        return ", ".join(parts)

    def _render(self) -> RenderableType:
        now = self._snapshot
        if now is None:
            return Text(f"{self._title} starting".strip())
        bar = ProgressBar(total=self._total or None, completed=min(now.ended, self._total or now.ended), width=30)
        head = Table.grid(padding=(0, 1))
        of = "" if self._total is None else f"/{self._total}"
        head.add_row(Text(self._title, style="bold"), bar, f"{now.ended}{of}", f"{now.elapsed_s:.0f} s")
        lost = f", {now.failed} failed, {now.rejected} rejected" if now.failed or now.rejected else ""
        counts = Text(
            f"{now.sent} sent, {now.in_flight} in flight{lost}, {now.output_tokens_per_s:.0f} output tokens/s"
        )
        return Group(head, counts, _instance_table(now)) if now.instances else Group(head, counts)


def _kind(now: LiveSnapshot, sample: TimelineSample) -> str:
    """ "merge" or "split" while its workers change; a step that only has to end first is not worth showing."""
    kind = now.transforming.get(sample.instance, "")
    return kind if kind in _DOING else ""


def _devices(sample: TimelineSample) -> str:
    """(0, 1, 2, 5) -> "0-2,5"."""
    runs: list[list[int]] = []
    for device in sorted(sample.devices):
        if runs and device == runs[-1][-1] + 1:
            runs[-1].append(device)
        else:
            runs.append([device])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _instance_table(now: LiveSnapshot) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("instance", no_wrap=True, max_width=24)
    table.add_column("devices", no_wrap=True, max_width=16)
    for name in ("TP", "running", "waiting"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("KV use", no_wrap=True)
    table.add_column("", no_wrap=True)
    ordered = sorted(now.instances, key=lambda s: sorted(s.devices))
    for s in ordered[:_MAX_ROWS]:
        if not s.tp:
            table.add_row(Text("-"), _devices(s), "-", "-", "-", "", "no instance")
            continue
        filled = round(10 * s.kv_use)
        use = f"{'#' * filled}{'.' * (10 - filled)} {s.kv_use:4.0%}"
        state = _DOING.get(_kind(now, s), "")
        table.add_row(Text(s.instance), _devices(s), str(s.tp), str(s.running), str(s.waiting), use, state)
    if len(ordered) > _MAX_ROWS:
        table.add_row(Text(f"and {len(ordered) - _MAX_ROWS} more", style="dim"))
    return table


def _kv_use(instances: Sequence[TimelineSample]) -> float:
    total = sum(s.kv_total_blocks for s in instances)
    return sum(s.kv_used_blocks for s in instances) / total if total else 0.0


def _degrees(instances: Sequence[TimelineSample]) -> str:
    """ "2xTP1 1xTP4": how many instances of each degree there are; "(1 without instance)": devices that nobody has."""
    counts: dict[int, int] = {}
    for s in instances:
        counts[s.tp] = counts.get(s.tp, 0) + 1
    bare = sum(len(s.devices) for s in instances if not s.tp)
    named = [f"{counts[tp]}xTP{tp}" for tp in sorted(counts) if tp]
    return " ".join([*named, f"({bare} without instance)"] if bare else named)
