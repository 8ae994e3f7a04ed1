"""What ``gyges bench compare`` does: results side by side, request by request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cli.bench_tables import table
from cli.render import seconds
from gyges.bench.compare.document import compare
from gyges.bench.compare.sides import pairs_of
from gyges.metrics.results import ResultFolder

_DETAILED = 3  # comparisons for which everything is printed


def compare_command(
    console: Console, paths: Sequence[Path], *, any_trace: bool, metric: str, out: Path | None
) -> dict[str, Any]:
    """Returns compare.json's fields plus ``folder`` and ``plots``."""
    pairs = pairs_of(paths, any_trace=any_trace)
    document = compare(pairs, metric)
    traces = {side.trace_sha256 for pair in pairs for side in (pair.a, pair.b)}
    about: dict[str, Any] = {
        "configuration": {"paths": [str(path) for path in paths], "any_trace": any_trace, "metric": metric}
    }
    with ResultFolder.create(
        out, "compare", **about, trace_sha256=next(iter(traces)) if len(traces) == 1 else None
    ) as folder:
        folder.write_json("compare.json", document)
        from gyges.bench.compare.plot import write_plots

        plots = write_plots(folder.plots, document)
    render(console, document)
    console.print(f"results: {folder.path}", soft_wrap=True, highlight=False)
    return {**document, "folder": str(folder.path), "plots": [str(path) for path in plots]}


def render(console: Console, document: Mapping[str, Any]) -> None:
    """Tables that fit in 80 columns."""
    comparisons = document["comparisons"]
    for index, each in enumerate(comparisons, start=1):
        title = each["name"] or f"comparison {index}"
        if len(comparisons) > 1:
            console.print(f"[bold]{escape(title)}[/]", highlight=False)
        for side in ("a", "b"):
            about = each[side]
            scheduler = f", {about['scheduler']}" if about["scheduler"] else ""
            repeats = f", {about['repeats']} repeats" if about["repeats"] > 1 else ""
            console.print(f"{side}: {escape(about['name'])}{scheduler}{repeats}", soft_wrap=True, highlight=False)
        console.print(metric_table(each))
        if len(comparisons) <= _DETAILED:
            console.print(group_table(each, document["metric"]))
            if each["worst"]:
                console.print(worst_table(each, document["metric"]))
        for line in remarks(each):
            console.print(f"[dim]{line}[/]", highlight=False)


def metric_table(each: Mapping[str, Any]) -> Table:
    """Percentiles of both sides and the mean of each request's own difference."""
    rows = table(f"{each['requests']['paired']} requests, b against a")
    rows.add_column("", no_wrap=True)
    for head in ("p50\na", "p50\nb", "p99\na", "p99\nb", "difference, ms\nmean [95 %]", "slower", "faster"):
        rows.add_column(head, justify="right", no_wrap=True)
    for name, found in each["metrics"].items():
        sides = [
            seconds(found[f"{side}_s"][p], infinite=found[f"{side}_s"]["infinite"] > 0)
            for p in ("p50", "p99")
            for side in ("a", "b")
        ]
        rows.add_row(name.upper(), *sides, _difference(found), str(found["slower"]), str(found["faster"]))
    rows.caption = "slower, faster: by more than 5 %; of requests that completed on both sides"
    rows.caption_justify = "left"
    return rows


def _difference(found: Mapping[str, Any]) -> str:
    change = found["difference_s"]
    if change is None:
        return "-"
    if change["low"] is None:
        return _ms(change["value"])
    return escape(f"{_ms(change['value'])} [{_ms(change['low'])} {_ms(change['high'])}]")


def _ms(value: float) -> str:
    return f"{1e3 * value:+.3g}" if abs(value) < 1 else f"{1e3 * value:+.0f}"


def group_table(each: Mapping[str, Any], metric: str) -> Table:
    """By prompt length and by nearness to a transformation in b."""
    rows = table(f"{metric.upper()} by prompt length and by nearness to a transformation of b")
    rows.add_column("", no_wrap=True)
    for head in ("requests", "slower", "faster", "difference, ms\nmean [95 %]"):
        rows.add_column(head, justify="right", no_wrap=True)
    groups = [(f"{b['bucket']} tokens", b) for b in each["buckets"]] + [(n["nearness"], n) for n in each["nearness"]]
    for index, (name, found) in enumerate(groups):
        last = index == len(each["buckets"]) - 1
        rows.add_row(
            name,
            str(found["requests"]),
            str(found["slower"]),
            str(found["faster"]),
            _difference(found),
            end_section=last,
        )
    return rows


def worst_table(each: Mapping[str, Any], metric: str) -> Table:
    """The requests that got slowest by the clock."""
    rows = table(f"Requests that got worse, {metric.upper()}")
    rows.add_column("request", no_wrap=True)
    for head in ("prompt\ntokens", "a", "b"):
        rows.add_column(head, justify="right", no_wrap=True)
    rows.add_column("in b it", no_wrap=True)
    for found in each["worst"]:
        shown = [seconds(found[side]) for side in ("a_s", "b_s")]
        rows.add_row(escape(found["request"]), str(found["prompt_tokens"]), *shown, found["nearness"])
    return rows


def remarks(each: Mapping[str, Any]) -> list[str]:
    """What no table says."""
    requests = each["requests"]
    lines = []
    for name, what in (("lost_in_b", "completed in a, not in b"), ("gained_in_b", "completed in b, not in a")):
        if requests[name]:
            shown = ", ".join(requests[name][:8]) + (" ..." if len(requests[name]) > 8 else "")
            lines.append(f"{len(requests[name])} {what}: {escape(shown)}")
    if requests["different_outputs"]:
        lines.append(f"{requests['different_outputs']} requests have other output tokens in b than in a")
    if requests["unpaired"]:
        lines.append(f"{requests['unpaired']} requests have no partner of the same id and lengths")
    return lines
