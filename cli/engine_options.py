"""The options of an engine, once, for every command that starts one."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from gyges.config import EngineConfig, parse_bytes, parse_instances
from gyges.errors import UserError

_MODEL, _HOST, _TOGGLES, _BATCH = "Model", "Devices", "Memory layout (each on its own)", "Batching"
_TRANSFORM = "Merges and splits"


def _option(*names: str, panel: str, help: str, **more: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, help=help, **more)


def parse_degrees(text: str) -> tuple[int, ...]:
    """``"1,2,4"``. Raises UserError."""
    try:
        degrees = tuple(int(part) for part in text.split(","))
    except ValueError:
        degrees = ()
    if not degrees or min(degrees) < 1:
        raise UserError(f"cannot read --tp-degrees {text!r}; write for example 1,2,4")
    return degrees


def build_engine_config(
    *,
    model: Annotated[
        str, _option("--model", panel=_MODEL, help="Preset (tiny, small), checkpoint folder, or hub id owner/name.")
    ] = "tiny",
    model_revision: Annotated[str | None, _option("--model-revision", panel=_MODEL, help="Of a hub id.")] = None,
    dtype: Annotated[
        str, _option("--dtype", panel=_MODEL, help="auto (the checkpoint's; on GPUs bfloat16), float32 or bfloat16.")
    ] = "auto",
    model_seed: Annotated[int, _option("--model-seed", panel=_MODEL, help="Seed of a preset's random weights.")] = 0,
    devices: Annotated[
        int | None, _option("--devices", panel=_HOST, min=1, help="That many TP1 instances. \\[default: 4]")
    ] = None,
    device: Annotated[
        str, _option("--device", panel=_HOST, help="What a device is: cpu, or cuda (not yet run on hardware).")
    ] = "cpu",
    collectives: Annotated[
        str,
        _option(
            "--collectives",
            panel=_HOST,
            help="How workers sum: auto, shm or gloo (cpu); nccl, peer or staged (cuda, not yet run on hardware).",
        ),
    ] = "auto",
    instances: Annotated[
        str | None, _option("--instances", panel=_HOST, metavar="tp1,tp1,tp2", help="TP degree of each instance.")
    ] = None,
    tp_degrees: Annotated[
        str | None,
        _option(
            "--tp-degrees",
            panel=_HOST,
            metavar="1,2,4",
            help="TP degrees the host may take; sets the shards. \\[default: as many as the run's merges and splits need]",
        ),
    ] = None,
    device_memory: Annotated[
        str, _option("--device-memory", panel=_HOST, metavar="SIZE", help="Budget of each device: weights and KV.")
    ] = "64MiB",
    page_size: Annotated[
        str | None, _option("--page-size", panel=_HOST, metavar="SIZE", help="Physical page. \\[default: by the model]")
    ] = None,
    threads: Annotated[int, _option("--threads", panel=_HOST, help="Per device; 0 shares the cores evenly.")] = 0,
    layout: Annotated[
        str,
        _option("--layout", panel=_TOGGLES, help="KV layout: token-first, page-friendly, header-centric, shard-pages."),
    ] = "shard-pages",
    padding: Annotated[
        bool, _option("--padding/--no-padding", panel=_TOGGLES, help="FFN shards start and end on a page.")
    ] = True,
    block_size: Annotated[
        int, _option("--block-size", panel=_TOGGLES, help="Tokens per KV block; 0: the layout's choice.")
    ] = 0,
    overlap: Annotated[
        bool,
        _option("--overlap/--no-overlap", panel=_TRANSFORM, help="Between serving steps, or all in one stop."),
    ] = True,
    pages_per_step: Annotated[
        int,
        _option(
            "--pages-per-step",
            panel=_TRANSFORM,
            metavar="N",
            help="Pages that a device moves between two steps (the paper's layers per step); 0 chooses: 1/64 of them.",
        ),
    ] = 0,
    max_batch_tokens: Annotated[
        int, _option("--max-batch-tokens", panel=_BATCH, help="Token budget of a step (chunked prefill).")
    ] = 512,
    max_seqs: Annotated[int, _option("--max-seqs", panel=_BATCH, help="Sequences of a step.")] = 64,
    max_model_len: Annotated[
        int,
        _option("--max-model-len", panel=_BATCH, help="Longest prompt + output; 0: what the model and memory allow."),
    ] = 0,
) -> EngineConfig:
    """Raises UserError for what cannot be read or cannot go together."""
    if devices is not None and instances is not None:
        degrees = parse_instances(instances)
        if sum(degrees) != devices:
            raise UserError(f"--instances {instances} takes {sum(degrees)} devices, --devices says {devices}; give one")
    else:
        degrees = parse_instances(instances) if instances else (1,) * (devices or 4)
    candidates = parse_degrees(tp_degrees) if tp_degrees else ()
    return EngineConfig(
        model=model,
        revision=model_revision,
        dtype=dtype,
        seed=model_seed,
        device=device,
        collectives=collectives,
        instances=degrees,
        tp_degrees=candidates,
        device_memory=parse_bytes(device_memory),
        page_bytes=parse_bytes(page_size) if page_size else 0,
        layout=layout,
        padding=padding,
        overlap=overlap,
        pages_per_step=pages_per_step,
        block_size=block_size,
        max_batch_tokens=max_batch_tokens,
        max_seqs=max_seqs,
        max_context=max_model_len,
        threads=threads,
    )
