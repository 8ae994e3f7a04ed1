"""Summaries as tables for people. Every figure fits at 80 columns; the full set is in summary.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gyges.config import format_bytes

_LATENCIES = (
    ("TTFT", "ttft_s"),
    ("  from send", "ttft_from_send_s"),
    ("TPOT", "tpot_s"),
    ("ITL (token gap)", "itl_s"),
    ("chunk gap", "chunk_gap_s"),
    ("E2E", "e2e_s"),
    ("  from send", "e2e_from_send_s"),
    ("queueing", "queue_s"),
)
_WIDE = 100  # columns from which the per-bucket table has room for everything


def render_summary(console: Console, summary: Mapping[str, Any], *, title: str = "Result") -> None:
    """Print the headline and the per-bucket table of a summary dict (as gyges.metrics.summary makes it)."""
    for line in _banners(summary):
        console.print(line)
    console.print(headline_table(summary, title))
    console.print(latency_table(summary))
    if len(summary["buckets"]) > 1:
        console.print(bucket_table(summary, wide=console.width >= _WIDE))
    for note in summary["notes"]:
        console.print(f"[dim]note: {escape(note)}[/dim]")


def seconds(value: float | None, *, infinite: bool = False) -> str:
    """Three significant digits with a unit: 0.0123 -> "12.3 ms". None: "inf" where it is infinite, else "-"."""
    if value is None:
        return "inf" if infinite else "-"
    if value == 0:
        return "0 s"
    # The thresholds lie where three digits would round up to the next unit: never "1e+03 ms".
    for limit, factor, unit in ((999.5e-6, 1e6, "us"), (0.9995, 1e3, "ms"), (1e5, 1.0, "s")):
        if abs(value) < limit:
            return f"{number(value * factor)} {unit}"
    return f"{value:.2e} s"


def number(value: float | int | None) -> str:
    """Three significant digits below 1000, whole numbers above, millions shortened; None is "-"."""
    if value is None:
        return "-"
    if isinstance(value, int) and abs(value) < 10_000_000:
        return str(value)
    if abs(value) >= 9_999_500:
        return f"{value / 1e6:.1f}M" if abs(value) < 1e9 else f"{value:.2e}"
    return f"{value:.0f}" if abs(value) >= 999.5 else f"{value:#.3g}".removesuffix(".")


def count(value: int) -> str:
    """Exact below 100,000, then to thousands: for columns where the exact number stands elsewhere."""
    return str(value) if value < 100_000 else f"{value // 1000}k"


def _plural(value: int, noun: str) -> str:
    return f"{value} {noun}" if value == 1 else f"{value} {noun}s"


def percent(fraction: float | None) -> str:
    """0.9666 -> "96.7%". Never rounded up to 100 %: one failure among many must show."""
    if fraction is None:
        return "-"
    return "100%" if fraction == 1 else f"{min(fraction * 100, 99.9):.1f}%"


def _banners(summary: Mapping[str, Any]) -> list[str]:
    lines = []
    if summary["simulated"]:
        lines.append("[bold]SIMULATED[/bold]: no figure below was measured")
    if summary["partial"]:
        lines.append("[bold yellow]PARTIAL[/bold yellow]: the run ended before its requests did")
    if not summary["replay"]["valid"]:
        lines.append(f"[bold red]INVALID[/bold red]: {escape(str(summary['replay']['reason']))}")
    return lines


def headline_table(summary: Mapping[str, Any], title: str = "Result") -> Table:
    """Requests, throughput, goodput, replay, transformations and KV use: one line each."""
    requests, rates, goodput = summary["requests"], summary["throughput"], summary["goodput"]
    replay, changes, kv = summary["replay"], summary["transformations"], summary["kv"]
    table = Table(title=escape(title), box=box.SIMPLE, show_header=False, pad_edge=False, title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    ended = [f"{requests[name]} {name}" for name in ("completed", "failed", "rejected", "partial")]
    table.add_row("requests", f"{requests['offered']} offered: " + ", ".join(ended))
    table.add_row(
        "throughput",
        f"{number(rates['output_tokens_per_s'])} output tokens/s, {number(rates['total_tokens_per_s'])} total "
        f"tokens/s, {number(rates['requests_per_s'])} requests/s over {seconds(summary['window_s'])}",
    )
    if summary["slo"]:
        limits = ", ".join(f"{name.removesuffix('_s')} <= {v:g} s" for name, v in summary["slo"].items())
        within = f"{percent(goodput['fraction'])} of offered, {number(goodput['requests_per_s'])} requests/s"
        table.add_row("goodput", f"{within} ({limits})")
    if replay["mode"] == "open":
        lag = f"send lag p99 {seconds(replay['lag_p99_s'])}, max {seconds(replay['lag_max_s'])}"
        table.add_row("replay", f"{'valid' if replay['valid'] else 'INVALID'}: {lag}")
    if changes["merges"] or changes["splits"] or changes["failed"]:
        counted = f"{_plural(changes['merges'], 'merge')}, {_plural(changes['splits'], 'split')}"
        counted += f", {changes['failed']} failed" if changes["failed"] else ""
        about = f"{seconds(changes['time_total_s'])} in all, {format_bytes(changes['bytes_moved'])} moved"
        table.add_row("transformations", f"{counted}; {about}; longest pause {seconds(changes['pause_max_s'])}")
    table.add_row("longest gap", f"{seconds(summary['max_token_gap_s'])} between two tokens of one request")
    if kv:
        mean, peak = sum(use["mean"] for use in kv.values()) / len(kv), max(use["max"] for use in kv.values())
        table.add_row("KV use", f"mean {percent(mean)}, highest {percent(peak)} over {len(kv)} devices")
    return table


def latency_table(summary: Mapping[str, Any]) -> Table:
    """mean, p50, p90, p99 and max of each latency. The mean is over the finite ones only, and "of" says how many."""
    table = _table("Latency, from the scheduled arrival where not said otherwise")
    table.caption = "mean: of the finite ones, how many in (of)"
    if any(summary[key]["infinite"] for _, key in _LATENCIES):
        table.caption += "; inf: requests that failed, were rejected or did not end"
    table.caption_justify = "left"
    table.add_column("", no_wrap=True)
    for name in ("mean", "(of)", "p50", "p90", "p99", "max"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, key in _LATENCIES:
        figures = summary[key]
        values = {p: seconds(figures[p], infinite=figures["infinite"] > 0) for p in ("p50", "p90", "p99", "max")}
        table.add_row(name, seconds(figures["mean"]), number(figures["count"]), *values.values())
    return table


def bucket_table(summary: Mapping[str, Any], *, wide: bool) -> Table:
    """One row per prompt-length bucket. ``wide`` adds what does not fit in 80 columns."""
    table = _table("By prompt length")
    table.add_column("prompt\ntokens", no_wrap=True)
    figures = [("TTFT\np50", "ttft_s", "p50"), ("TTFT\np99", "ttft_s", "p99"), ("TPOT\np50", "tpot_s", "p50")]
    figures += [("TPOT\np99", "tpot_s", "p99"), ("E2E\np99", "e2e_s", "p99")]
    if wide:
        figures += [("ITL\np99", "itl_s", "p99"), ("queue\np99", "queue_s", "p99")]
    heads = ["requests\ndone/all", "output\ntok/s", *(head for head, _, _ in figures), "good-\nput"]
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for label, bucket in summary["buckets"].items():
        requests = bucket["requests"]
        done = f"{count(requests['completed'])}/{count(requests['offered'])}"
        values = [seconds(bucket[key][p], infinite=bucket[key]["infinite"] > 0) for _, key, p in figures]
        rate, good = bucket["throughput"]["output_tokens_per_s"], bucket["goodput"]["fraction"]
        table.add_row(label, done, number(rate), *values, percent(good))
    return table


def _table(title: str) -> Table:
    return Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title_justify="left")
