"""The options of a trace, once, for every command that takes one.

A command takes them all with ``@takes(options=build_trace_options)`` (cli.option_groups).
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from workloads.options import TraceOptions, parse_columns

_READ = "Reading a trace"
_CHANGE = "Changing a trace"


def _option(*names: str, panel: str, help: str, **more: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, help=help, **more)


FormatOption = Annotated[
    str | None, _option("--format", panel=_READ, help="Format of a file; recognised by its columns if left out.")
]
ColumnsOption = Annotated[
    str | None,
    _option(
        "--columns",
        panel=_READ,
        metavar="ROLE=COLUMN,...",
        help="Which column is arrival, prompt, output, session, hashes, hash_block, text, output_text or chat.",
    ),
]
RepairOption = Annotated[
    bool, _option("--repair", panel=_READ, help="Drop rows with impossible lengths or times, and sort; counted.")
]
RateOption = Annotated[
    float | None,
    _option("--rate", panel=_READ, metavar="REQ/S", help="Generate Poisson arrivals, replacing any in the data."),
]
TokenizerOption = Annotated[
    str | None,
    _option("--tokenizer", panel=_READ, help="Hugging Face tokenizer (folder or id) that measures texts and chats."),
]
RevisionOption = Annotated[
    str | None, _option("--revision", panel=_READ, help="Branch, tag or commit of a hub dataset; recorded as a commit.")
]
SplitOption = Annotated[str | None, _option("--split", panel=_READ, help="Split of a Hugging Face dataset.")]
DequantizeOption = Annotated[
    bool,
    _option("--dequantize", panel=_CHANGE, help="Spread requests that share a timestamp over the clock's tick."),
]
TickOption = Annotated[
    float | None, _option("--tick", panel=_CHANGE, metavar="SECONDS", help="The tick for --dequantize; else detected.")
]
LengthScaleOption = Annotated[
    float, _option("--length-scale", panel=_CHANGE, help="Multiply prompt and output lengths, to fit a small model.")
]
MaxContextOption = Annotated[
    int | None, _option("--max-context", panel=_CHANGE, metavar="TOKENS", help="Hold prompt + output to this.")
]
OverContextOption = Annotated[
    str, _option("--over-context", panel=_CHANGE, help="Requests over --max-context: drop, or clamp the prompt.")
]
TimeScaleOption = Annotated[
    float, _option("--time-scale", panel=_CHANGE, help="Multiply gaps between arrivals: 0.5 is twice as fast.")
]
DurationOption = Annotated[
    float | None, _option("--duration", panel=_CHANGE, metavar="SECONDS", help="Only the first seconds, as replayed.")
]
LimitOption = Annotated[
    int | None, _option("--limit", panel=_CHANGE, metavar="N", help="Only the first N requests, as replayed.")
]
MixInOption = Annotated[
    str | None,
    _option(
        "--mix-in",
        panel=_CHANGE,
        metavar="SPEC",
        help="Add a synthetic trace's requests: 'poisson?rate=0.02&prompt=50000&output=200'.",
    ),
]
SeedOption = Annotated[int, _option("--seed", panel=_CHANGE, help="Seed of whatever is random.")]


def build_trace_options(
    *,
    format: FormatOption = None,
    columns: ColumnsOption = None,
    repair: RepairOption = False,
    rate: RateOption = None,
    tokenizer: TokenizerOption = None,
    revision: RevisionOption = None,
    split: SplitOption = None,
    dequantize: DequantizeOption = False,
    tick: TickOption = None,
    length_scale: LengthScaleOption = 1.0,
    max_context: MaxContextOption = None,
    over_context: OverContextOption = "drop",
    time_scale: TimeScaleOption = 1.0,
    duration: DurationOption = None,
    limit: LimitOption = None,
    mix_in: MixInOption = None,
    seed: SeedOption = 0,
) -> TraceOptions:
    """The options as the library wants them; raises UserError for a value out of range."""
    return TraceOptions(
        format=format,
        columns=parse_columns(columns),
        repair=repair,
        rate=rate,
        tokenizer=tokenizer,
        revision=revision,
        split=split,
        dequantize=dequantize,
        tick_s=tick,
        length_scale=length_scale,
        max_context=max_context,
        over_context=over_context,
        time_scale=time_scale,
        duration=duration,
        limit=limit,
        mix_in=mix_in,
        seed=seed,
    )
