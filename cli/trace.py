"""``gyges trace``: list known traces, look into one, convert one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.option_groups import takes
from cli.output import JsonOption, emit, human_console
from cli.trace_options import build_trace_options
from workloads.options import TraceOptions

if TYPE_CHECKING:
    from rich.console import Console

    from workloads.schema import Trace

app = typer.Typer(
    name="trace",
    help="Traces: what arrives, when, and how long it is.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

SpecArgument = Annotated[
    str,
    typer.Argument(
        metavar="TRACE",
        help="A file, a dataset folder, hf:owner/name[:split], synthetic:SHAPE?..., or a name from `gyges trace list`.",
    ),
]


@app.command(
    "list",
    epilog="Examples:  [cyan]gyges trace list[/cyan]   [cyan]gyges trace list --json[/cyan]",
)
def list_traces(json: JsonOption = False) -> None:
    """Known traces (home, licence, schema), synthetic ones, and the formats that can be read."""
    from workloads.known import KNOWN
    from workloads.sources import FORMATS
    from workloads.synthetic import MIXES, SHAPES

    console = human_console(json)
    table = _table("Synthetic, bundled", "name", "what")
    for name, mix in MIXES.items():
        table.add_row(name, mix.description)
    table.add_row("synthetic:SHAPE?...", f"shapes: {', '.join(SHAPES.names())}")
    console.print(table)
    table = _table("Known, to be fetched from their homes", "name", "what; schema, licence, home")
    for name, known in KNOWN.items():
        count = f" ({known.requests:,} requests)" if known.requests else ""
        home = known.hub or known.home.removeprefix("https://")
        note = f"\n{known.notes}" if known.notes else ""
        about = f"{known.format}, {known.licence}, {home}"
        table.add_row(name, f"{known.description}{count}\n[dim]{about}{note}[/dim]")
    console.print(table)
    table = _table("Formats of files, recognised by their columns", "name", "what")
    for name, format_ in FORMATS.items():
        table.add_row(name, format_.description)
    console.print(table)
    if json:
        emit(
            {
                "synthetic": {
                    name: {"description": mix.description, "parameters": dict(mix.defaults)}
                    for name, mix in MIXES.items()
                },
                "shapes": SHAPES.names(),
                "known": {name: known.to_json() for name, known in KNOWN.items()},
                "formats": {name: format_.description for name, format_ in FORMATS.items()},
            }
        )


@app.command(
    epilog="Examples:  [cyan]gyges trace stats default[/cyan]   "
    "[cyan]gyges trace stats conv.csv --plot conv.png[/cyan]   "
    "[cyan]gyges trace stats mooncake.jsonl --dequantize --json[/cyan]",
)
@takes(options=build_trace_options)
def stats(
    *,
    trace: SpecArgument = "default",
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="PATH", help="Draw the trace to PATH as .png and .svg.")
    ] = None,
    json: JsonOption = False,
    options: TraceOptions,
) -> None:
    """Counts, lengths, long contexts and burstiness of a trace, as it would be replayed."""
    from workloads.load import load_trace
    from workloads.stats import trace_stats

    loaded = load_trace(trace, options)
    figures = trace_stats(loaded)
    console = human_console(json)
    _print_stats(console, figures)
    _print_provenance(console, loaded)
    paths: list[Path] = []
    if plot is not None:
        from workloads.plot import plot_trace

        paths = plot_trace(loaded, plot)
        console.print(f"plot: {', '.join(map(str, paths))}", soft_wrap=True, highlight=False)
    if json:
        emit({"stats": figures, "trace": loaded.manifest(), "plots": [str(path) for path in paths]})


@app.command(
    epilog="Examples:  [cyan]gyges trace convert conv.csv conv.parquet[/cyan]   "
    "[cyan]gyges trace convert mooncake.jsonl small.jsonl --dequantize --length-scale 0.02 --limit 100[/cyan]   "
    "[cyan]gyges trace convert hf:owner/chats:train chats.jsonl --rate 2[/cyan]",
)
@takes(options=build_trace_options)
def convert(
    *,
    trace: SpecArgument,
    output: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write: .jsonl, .csv or .parquet.")],
    to: Annotated[str | None, typer.Option("--to", help="jsonl, csv or parquet, whatever OUT's suffix is.")] = None,
    json: JsonOption = False,
    options: TraceOptions,
) -> None:
    """Write a trace in the canonical schema, with its provenance beside it in OUT.manifest.json."""
    from workloads.convert import convert as write
    from workloads.load import load_trace

    loaded = load_trace(trace, options)
    manifest = write(loaded, output, to)
    console = human_console(json)
    console.print(f"wrote {len(loaded):,} requests to {output}", soft_wrap=True, highlight=False)
    _print_provenance(console, loaded)
    if json:
        emit(manifest)


def _table(title: str, *columns: str) -> Any:
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, no_wrap=index == 0, overflow="fold")
    return table


def _print_stats(console: Console, figures: dict[str, Any]) -> None:
    table = _table(figures["name"], "", "mean", "p50", "p90", "p95", "p99", "max")
    for column in table.columns[1:]:
        column.justify = "right"
    for label, key in (("prompt (tokens)", "prompt_tokens"), ("output (tokens)", "output_tokens")):
        row = figures[key]
        table.add_row(label, *(f"{row[each]:,.0f}" for each in ("mean", "p50", "p90", "p95", "p99", "max")))
    gaps = figures["gaps_s"]
    table.add_row("gap (s)", *(_shown(gaps[each]) for each in ("mean", "p50", "p90", "p95", "p99", "max")))
    console.print(table)
    rate = figures["requests_per_s"]
    line = f"{figures['requests']:,} requests over {figures['duration_s']:,.1f} s"
    if rate is not None:
        line += f": {rate:.3g}/s, at most {figures['peak_requests_per_s']:.0f} in a second"
    console.print(line, highlight=False)
    console.print(f"gap CV {_shown(gaps['cv'])} (1 is Poisson; more is burstier)", highlight=False)
    shares = ", ".join(f"{step} {share:.2%}" for step, share in figures["share_over"].items())
    console.print(f"prompt + output over {shares}", highlight=False)
    if figures["sessions"]:
        console.print(f"{figures['sessions']:,} sessions", highlight=False)
    if figures["prefix_reuse"] is not None:
        console.print(f"{figures['prefix_reuse']:.1%} of prompt blocks repeat an earlier prefix", highlight=False)


def _print_provenance(console: Console, trace: Trace) -> None:
    provenance = trace.provenance
    hashes = f"sha256 {provenance.sha256[:16]}, content {trace.content_sha256[:16]}"
    console.print(f"{provenance.format}, {provenance.licence}; {hashes}", style="dim", highlight=False)
    for record in provenance.transforms:
        effect = ", ".join(f"{key} {_shown(value)}" for key, value in record.effect.items())
        console.print(f"{record.name}: {effect}", style="dim", highlight=False)
    for kind, count in provenance.repairs.items():
        console.print(f"repaired: {count:,} rows {kind.replace('_', ' ')}", style="yellow", highlight=False)
    for note in provenance.notes:
        console.print(f"note: {note}", style="yellow", highlight=False)


def _shown(value: Any) -> str:
    return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else f"{value:,}"
