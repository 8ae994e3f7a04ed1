"""What the tables of the benchmarks share."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from rich import box
from rich.table import Table

from cli.render import number, percent, seconds


def names(text: str) -> tuple[str, ...]:
    """``"a, b"`` -> ("a", "b"); empty text is none."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def table(title: str) -> Table:
    return Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title_justify="left")


def span(spread: Mapping[str, Any] | None, scale: float = 1.0, unit: str = "") -> str:
    """``"512 [498-530]"``, or the median alone where there is one value."""
    if spread is None:
        return "-"
    low, mid, high = (number(spread[key] / scale) for key in ("min", "median", "max"))
    return f"{mid}{unit}" if low == high else f"{mid}{unit} [{low}-{high}]"


def met(value: bool | None) -> str:
    return {True: "[green]yes[/]", False: "[bold red]no[/]", None: "-"}[value]


def reached(value: float | None, unit: str) -> str:
    """A goal's figure in its unit: share, ratio, s, count or bytes."""
    if value is None:
        return "-"
    shown: dict[str, Callable[[float], str]] = {
        "share": percent,
        "ratio": lambda v: f"{v:.2f}x",
        "s": seconds,
        "count": lambda v: f"{v:g}",
        "bytes": lambda v: "none" if not v else f"{v:g} B",
    }
    return shown[unit](value)


def stopwatch() -> Callable[[str], None]:
    """Says things on stderr, each with the seconds since this call."""
    started = time.monotonic()

    def progress(text: str) -> None:
        print(f"[{time.monotonic() - started:5.0f} s] {text}", file=sys.stderr, flush=True)

    return progress
