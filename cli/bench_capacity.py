"""What ``gyges bench capacity`` shows. The figures are those of gyges.bench.capacity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cli.bench_tables import met, stopwatch, table
from gyges.bench.capacity import capacity
from gyges.config import EngineConfig, format_bytes


def capacity_command(console: Console, config: EngineConfig, *, check: bool) -> dict[str, Any]:
    document = capacity(config, check=check, progress=stopwatch())
    render(console, document)
    return document


def render(console: Console, document: Mapping[str, Any]) -> None:
    """Tables that fit in 80 columns."""
    console.print(
        f"[bold]{escape(document['model'])}[/], {document['dtype']}, {document['devices']} devices of "
        f"{format_bytes(document['device_bytes'])}, pages of {format_bytes(document['page_bytes'])}, "
        f"{document['layout']}, FFN {'padded' if document['padding'] else 'packed'}, "
        f"blocks of {document['block_size']} tokens",
        highlight=False,
    )
    console.print(tokens_table(document))
    console.print(bytes_table(document))
    if document["check"] is not None:
        console.print(check_table(document))


def tokens_table(document: Mapping[str, Any]) -> Table:
    rows = table("Tokens")
    rows.add_column("instances", no_wrap=True)
    for head in ("longest\ncontext", "set by", "KV tokens,\nall together", "of them thanks to\nreleased weights"):
        rows.add_column(head, justify="right", no_wrap=True)
    for each in document["degrees"]:
        rows.add_row(
            f"{each['instances']} x TP{each['degree']}",
            f"{each['context']:,}",
            each["limited_by"],
            f"{each['total']:,}",
            f"{each['released_tokens']:,}" if each["released_tokens"] else "-",
        )
    if any(each["limited_by"] == "model" for each in document["degrees"]):
        rows.caption = f"the model has {document['max_position']:,} positions"
        rows.caption_justify = "left"
    return rows


def bytes_table(document: Mapping[str, Any]) -> Table:
    rows = table("Memory of a device")
    rows.add_column("", no_wrap=True)
    for head in ("resident\nweights", "FFN\nweights", "of it\npadding", "KV cache", "reserve", "rest"):
        rows.add_column(head, justify="right", no_wrap=True)
    for each in document["degrees"]:
        names = ("resident_bytes", "ffn_bytes", "padding_bytes", "kv_bytes", "reserve_bytes", "rest_bytes")
        rows.add_row(f"TP{each['degree']}", *(format_bytes(each[name]) for name in names))
    rows.caption = "reserve: what a transformation needs to make progress when every other page is in use"
    rows.caption_justify = "left"
    return rows


def check_table(document: Mapping[str, Any]) -> Table:
    """What the engine did with requests of exactly these lengths."""
    rows = table("Tried on the engine, merging step by step")
    rows.add_column("", no_wrap=True)
    for head in ("context", "completes", "one more is rejected"):
        rows.add_column(head, justify="right", no_wrap=True)
    for each in document["check"]:
        rows.add_row(
            f"TP{each['degree']}", f"{each['context']:,}", met(each["completed"]), met(each["longer_rejected"])
        )
    return rows
