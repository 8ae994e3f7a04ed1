"""What ``gyges bench transform`` does: measure, keep, show. The figures are those of gyges.bench.transform."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cli.bench_tables import met, reached, span, stopwatch, table
from cli.render import number, percent
from gyges.bench.transform.micro import describe, find_cell
from gyges.bench.transform.run import MICRO, PADDING, PAUSE, TransformConfig, bench_transform, memcpy_drift
from gyges.errors import UserError
from gyges.metrics.atomic import write_bytes
from gyges.metrics.results import ResultFolder

_UNSTEADY = 0.15
_PACKED = "  FFN packed"  # the row below the layout's own, whose FFN shards are padded to pages


def percentages(text: str) -> tuple[float, ...]:
    """``"10,50,90"`` -> (0.1, 0.5, 0.9)."""
    try:
        return tuple(sorted({float(part) / 100 for part in text.split(",") if part.strip()}))
    except ValueError:
        raise UserError(f"cannot read {text!r} as percentages; write for example 10,50,90") from None


def degrees(text: str) -> tuple[int, ...]:
    """``"2,4"`` -> (2, 4)."""
    try:
        return tuple(sorted({int(part) for part in text.split(",") if part.strip()}))
    except ValueError:
        raise UserError(f"cannot read {text!r} as TP degrees; write for example 2,4") from None


def transform_command(console: Console, config: TransformConfig, out: Path | None) -> dict[str, Any]:
    """Returns transform.json's fields plus ``folder`` and ``plots``."""
    started = time.monotonic()
    with ResultFolder.create(out, "bench-transform", configuration=asdict(config), seed=config.seed) as folder:
        document = bench_transform(config, stopwatch())
        document["duration_s"] = time.monotonic() - started
        folder.write_json("transform.json", document)
        from gyges.bench.transform.plot import write_plots
        from gyges.bench.transform.rows import to_csv

        write_bytes(folder.path / "transform.csv", to_csv(document).encode())
        plots = write_plots(folder.plots, document)
    render(console, document)
    console.print(f"results: {folder.path}", soft_wrap=True, highlight=False)
    return {**document, "folder": str(folder.path), "plots": [str(path) for path in plots]}


def render(console: Console, document: Mapping[str, Any]) -> None:
    """Tables that fit in 80 columns."""
    for model in (document[MICRO] or {"models": []})["models"]:
        console.print(micro_table(model))
    for result in (document[PAUSE] or {"models": []})["models"]:
        console.print(pause_table(result))
        for engine in result["engines"]:
            if engine["error"]:
                console.print(f"[red]{engine['layout']}[/]: {escape(engine['error'])}", highlight=False)
    if document[PADDING] is not None:
        console.print(memory_table(document[PADDING]))
        if document[PADDING]["gemm"]:
            console.print(gemm_table(document[PADDING]))
    console.print(goals_table(document))
    for line in remarks(document):
        console.print(f"[dim]{escape(line)}[/]", highlight=False)


def micro_table(model: Mapping[str, Any]) -> Table:
    """At the highest fill, in milliseconds; the other fills are in the CSV."""
    fill = max(cell["fill"] for cell in model["cells"])
    rows = table(f"{describe(model)}\nKV {fill:.0%} full, one stop, ms")
    rows.add_column("layout", no_wrap=True)
    heads = ("merge", "its KV", "its FFN", "KV, of\nmemcpy", "KV\ncopies", "extra\nmemory", "all at\nonce", "split")
    for head in heads:
        rows.add_column(head, justify="right", no_wrap=True)
    for layout in dict.fromkeys(cell["layout"] for cell in model["cells"]):
        for padding in (True, False):
            merge = find_cell(model, layout=layout, padding=padding, fill=fill, kind="merge")
            split = find_cell(model, layout=layout, padding=padding, fill=fill, kind="split")
            if merge is None or split is None:
                continue
            rows.add_row(
                layout if padding else _PACKED,
                *(_ms(merge[name]) for name in ("total_s", "kv_s", "weights_s")),
                f"{merge['of_memcpy']['median']:.0%}",
                _count(merge["kv_descriptors"]),
                percent(merge["extra_share"]),
                f"{merge['at_once_share']:.0%}",
                _ms(split["total_s"]),
            )
    copy = model["memcpy"]
    everyone, one = (span(copy[name], 1e9) for name in ("all_bytes_per_s", "one_bytes_per_s"))
    rows.caption = (
        f"memcpy: {everyone} GB/s by {copy['processes']} processes, {one} by one\n"
        "extra memory: of the KV cache in use; all at once: if nothing moved in rounds\n"
        "FFN shards are padded to pages, or packed"
    )
    rows.caption_justify = "left"
    return rows


def _ms(figure: Mapping[str, Any]) -> str:
    return number(1e3 * figure["median"])


def _count(value: int) -> str:
    return str(value) if value < 10_000 else f"{value / 1e3:.0f}k" if value < 1_000_000 else f"{value / 1e6:.1f}M"


def pause_table(result: Mapping[str, Any]) -> Table:
    """At the highest fill, in milliseconds: with the overlap | in one stop."""
    fill = max((cell["asked_fill"] for cell in result["cells"]), default=0.0)
    rows = table(f"{result['model']}, running requests, KV {fill:.0%} full: longest token gap, ms")
    rows.add_column("layout", no_wrap=True)
    for head in ("usual\nTP1", f"usual\nTP{result['degree']}"):
        rows.add_column(head, justify="right", no_wrap=True)
    for kind in ("merge", "split"):
        for head in ("overlap", "one\nstop", "tok/s\nduring"):
            rows.add_column(f"{kind}\n{head}" if head == "overlap" else head, justify="right", no_wrap=True)
    for layout in dict.fromkeys(cell["layout"] for cell in result["cells"]):
        for padding in (True, False):
            cells = {
                (c["kind"], c["overlap"]): c
                for c in result["cells"]
                if c["layout"] == layout and c["padding"] == padding and c["asked_fill"] == fill
            }
            if not cells:
                continue
            merge = cells.get(("merge", True))
            row = [layout if padding else _PACKED]
            row += [_ms(merge["before_gap_s"]), _ms(merge["after_gap_s"])] if merge else ["-", "-"]
            for kind in ("merge", "split"):
                on, off = cells.get((kind, True)), cells.get((kind, False))
                row.append(_ms(on["max_gap_s"]) + ("*" if on["stopped"] else "") if on else "-")
                row.append(_ms(off["max_gap_s"]) if off else "-")
                row.append(number(on["during_tokens_per_s"]["median"]) if on else "-")
            rows.add_row(*row)
    if any(cell["stopped"] for cell in result["cells"]):
        rows.caption = "*: nothing could move beside running requests any more, so the rest went in one stop"
        rows.caption_justify = "left"
    return rows


def memory_table(padding: Mapping[str, Any]) -> Table:
    """What padding costs on a worker that holds all shards, uncut models."""
    low, high = padding["paper_share"]
    rows = table("Weight memory of padding, whole models in bf16, 2 MiB pages")
    rows.add_column("model", no_wrap=True)
    for head in ("up to", "MiB", "of FFN", "of all\nweights", "each matrix by\nitself: of FFN", "of all\nweights"):
        rows.add_column(head, justify="right", no_wrap=True)
    last = ""
    for each in padding["memory"]:
        rows.add_row(
            each["model"] if each["model"] != last else "",
            f"TP{each['max_degree']}",
            number(each["padding_bytes"] / 2**20),
            *(f"{each[name]:.2%}" for name in ("share_of_ffn", "share_of_weights")),
            *(f"{each[name]:.2%}" for name in ("by_matrix_share_of_ffn", "by_matrix_share_of_weights")),
        )
        last = each["model"]
    rows.caption = f"the paper says {low:.0%} to {high:.0%}, by model"
    rows.caption_justify = "left"
    return rows


def gemm_table(padding: Mapping[str, Any]) -> Table:
    """Medians of pairs, with their quartiles."""
    rows = table("FFN of one layer, one thread")
    rows.add_column("model", no_wrap=True)
    for head in ("rows", "ms", "padded against\npacked, %", "4 pieces against\n1 matrix pair, %"):
        rows.add_column(head, justify="right", no_wrap=True)
    for each in padding["gemm"]:
        rows.add_row(
            each["model"],
            str(each["rows"]),
            number(1e3 * each["packed_s"]),
            *(_signed(each[name]) for name in ("slowdown", "pieces_cost")),
        )
    rows.caption = escape("median of pairs [quartiles]; positive: slower")
    rows.caption_justify = "left"
    return rows


def _signed(figure: Mapping[str, Any]) -> str:
    low, middle, high = (100 * figure[name] for name in ("min", "median", "max"))
    return f"{middle:+.1f} [{low:+.1f} .. {high:+.1f}]"


def goals_table(document: Mapping[str, Any]) -> Table:
    """Each goal, what the worst of the models reached, and whether that is enough."""
    rows = table("Goals, at the highest fill")
    for head in ("", "aim"):
        rows.add_column(head, no_wrap=True)
    rows.add_column("reached", justify="right", no_wrap=True)
    rows.add_column("(worst)", no_wrap=True)
    rows.add_column("met", no_wrap=True)
    for goal in document["goals"]:
        shown = reached(goal["reached"], goal["unit"])
        rows.add_row(goal["name"], goal["aim"], shown, goal["where"], met(goal["met"]))
    return rows


def remarks(document: Mapping[str, Any]) -> list[str]:
    """What stands beside the tables, one line each."""
    lines = []
    if any(m["layers"] < m["layers_uncut"] for m in (document[MICRO] or {"models": []})["models"]):
        lines.append(
            "models are cut to few layers, of which the extra memory of packed FFN shards (a layer) is a large part"
        )
    for result in (document[PAUSE] or {"models": []})["models"]:
        same = result["same_tokens"]
        if same["tokens"] is not None:
            lines.append(
                f"{result['model']}: {percent(same['requests'])} of requests have the same tokens on all "
                f"{same['engines']} engines, {percent(same['tokens'])} of tokens come before a difference"
            )
    if document[PADDING] is not None:
        lines += [f"{name}: {error}" for name, error in document[PADDING]["errors"].items()]
    if (drift := memcpy_drift(document)) > _UNSTEADY:
        lines.append(f"unsteady machine: memcpy was up to {drift:.0%} off its median; repeat when it is quiet")
    return lines
