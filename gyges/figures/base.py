"""What a figure is made of. An extension is one file plus one ``register``, and a line in catalogue.py.

Who calls what: gyges.figures.run (and a notebook) calls ``make`` for the rows and the lines, then ``draw``, which has nothing
but these rows. So a plot shows what the CSV holds, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from gyges.registry import Registry
from gyges.sim.simulator import SimRequest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
Unit = Literal["tokens", "tok/s", "s", "bytes", "share", "x", "count"]
BEYOND = "beyond the paper"  # of a figure that it does not have
GROUPS = ("trade-off", "transformation", "scheduling", "end to end", "beyond")


@dataclass(frozen=True, slots=True)
class Line:
    """One claim of the paper beside what is found here.

    paper: a number, the two ends of a range, or None where the paper has no such figure.   here: None: not to be had (``note``
    says why).   unit: of both; a share is 0.1 for 10 %, signed where it is a change.
    source: "simulated", "arithmetic", "measured on ..." or "fitted": how the figure here came about.
    note: why the two differ, or which reading of the paper was taken.
    """

    what: str
    paper: float | tuple[float, float] | None
    here: float | None
    unit: Unit
    source: str
    note: str = ""

    @property
    def deviation(self) -> float | None:
        """``here / paper - 1``; of shares the difference; of a range from its nearer end, 0 inside. None: nothing to compare."""
        if self.paper is None or self.here is None:
            return None
        low, high = sorted(self.paper) if isinstance(self.paper, tuple) else (self.paper, self.paper)
        near = min(max(self.here, low), high)
        return self.here - near if self.unit == "share" else self.here / near - 1

    def text(self) -> str:
        """ "what: paper X, here Y, deviation Z, source". One line, without the note."""
        return f"{self.what}: paper {self.paper_text}, here {self.here_text}, deviation {self.deviation_text}, {self.source}"

    @property
    def paper_text(self) -> str:
        if isinstance(self.paper, tuple):
            return f"{shown(self.paper[0], self.unit)} to {shown(self.paper[1], self.unit)}"
        return shown(self.paper, self.unit)

    @property
    def here_text(self) -> str:
        return shown(self.here, self.unit)

    @property
    def deviation_text(self) -> str:
        value = self.deviation
        if value is None:
            return "-"
        if isinstance(self.paper, tuple) and value == 0:
            return "within"
        return f"{100 * value:+.1f} points" if self.unit == "share" else f"{100 * value:+.1f} %"

    def to_json(self) -> dict[str, Any]:
        """The fields, the deviation, and both as text."""
        words = {"paper": self.paper_text, "here": self.here_text, "deviation": self.deviation_text}
        return {**asdict(self), "deviation": self.deviation, "text": self.text(), "shown": words}


def shown(value: float | None, unit: Unit) -> str:
    """With its unit, three digits: 41250 tokens -> "41.2K tokens"."""
    if value is None:
        return "-"
    if unit == "share":
        return f"{100 * value:+.1f} %" if value < 0 else f"{100 * value:.3g} %"
    if unit == "x":
        return f"{value:.2f}x"
    if unit == "count":
        return f"{value:g}"
    if unit == "s" and not value:
        return "0 s"
    if unit == "s":
        for limit, scale, name in ((1e-3, 1e6, "us"), (1.0, 1e3, "ms"), (1e4, 1.0, "s")):
            if abs(value) < limit:
                return f"{value * scale:.3g} {name}"
        return f"{value:.3g} s"
    for limit, scale, prefix in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "K")):
        if abs(value) >= limit:
            return (
                f"{value / scale:.4g}{prefix} tokens"
                if unit == "tokens"
                else f"{value / scale:.3g} {prefix}{_short(unit)}"
            )
    return f"{value:.4g} {_short(unit)}"


def _short(unit: Unit) -> str:
    return "B" if unit == "bytes" else unit


@dataclass(frozen=True, slots=True)
class Data:
    """What a figure shows. rows: of one table, all with the columns of the first.   readings: what was assumed of the paper,
    and why a figure here is what it is; one sentence each.   facts: for the manifest (hardware, traces)."""

    rows: Sequence[Row]
    lines: Sequence[Line]
    readings: Sequence[str] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    def where(self, **wanted: Any) -> list[Row]:
        """The rows with these values."""
        return [row for row in self.rows if all(row[name] == value for name, value in wanted.items())]


class TraceRequest(Protocol):
    """Seconds from the trace's start; tokens."""

    @property
    def arrival_s(self) -> float: ...
    @property
    def prompt_tokens(self) -> int: ...
    @property
    def output_tokens(self) -> int: ...


class Trace(Protocol):
    """What workloads.Trace is; the library does not import it."""

    @property
    def name(self) -> str: ...
    @property
    def requests(self) -> Sequence[TraceRequest]: ...
    @property
    def content_sha256(self) -> str: ...
    def manifest(self) -> dict[str, Any]: ...


class ReadTrace(Protocol):
    """What workloads.published.published_trace does. rate: requests/s, None: the trace's own.   limit: requests at most.
    mix_in: a synthetic trace to add."""

    def __call__(
        self, name: str, *, rate: float | None = None, limit: int | None = None, mix_in: str | None = None
    ) -> Trace: ...


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests to replay, sorted by arrival, and the name of the trace that they are from."""

    name: str
    requests: Sequence[SimRequest]


@dataclass(frozen=True, slots=True)
class Context:
    """What figures are made with.

    read_trace: reads or generates a trace.   used: gets the manifest of each one that was read, by content.
    quick: coarse grids and few requests, for tests and notebooks; same columns and lines.
    measured: folder of ``gyges bench transform``, None: figures do without it and say so.
    progress: told what is done now.
    """

    read_trace: ReadTrace
    quick: bool = False
    measured: Path | None = None
    progress: Callable[[str], None] = lambda text: None
    used: dict[str, Any] = field(default_factory=dict)

    def workload(
        self, name: str, *, rate: float | None = None, limit: int | None = None, mix_in: str | None = None
    ) -> Workload:
        """Raises UserError for a trace that there is none of."""
        trace = self.read_trace(name, rate=rate, limit=limit, mix_in=mix_in)
        about = trace.manifest()
        if about["provenance"]["format"] == "synthetic":
            about["provenance"].pop("details")  # the source is a specification that says it all
        self.used[trace.content_sha256] = about
        requests = [SimRequest(r.arrival_s, r.prompt_tokens, r.output_tokens) for r in trace.requests]
        return Workload(trace.name, requests)


@dataclass(frozen=True, slots=True)
class FigureKind:
    """group: which notebook shows it.   where: in the paper (of gyges' text in arXiv 2509.19729), or "beyond the paper".
    make: seconds to a minute.   draw: the plot of the rows."""

    title: str
    group: str
    where: str
    make: Callable[[Context], Data]
    draw: Callable[[Data], Figure]

    def __post_init__(self) -> None:
        assert self.group in GROUPS, f"{self.group} is not one of the groups {GROUPS}"


FIGURES: Registry[FigureKind] = Registry("figure")
