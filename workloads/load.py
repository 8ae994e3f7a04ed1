"""A spec to a trace: the one entry point of every command.

A spec is a path (file or dataset folder), ``hf:owner/name[:split]``, ``synthetic:...`` or a registered name
(``default``, ``paper-mix``, ``sharegpt`` ...).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from gyges.errors import UnknownNameError, UserError
from workloads.known import KNOWN, KnownTrace, known_by_sha256
from workloads.options import TraceOptions, parse_columns
from workloads.schema import Provenance, Trace

DEFAULT_TRACE = "default"
DEFAULT_RATE = 1.0  # requests/s, for a dataset without arrivals where no --rate was given
MANIFEST_SUFFIX = ".manifest.json"


def load_trace(spec: str, options: TraceOptions | None = None) -> Trace:
    """Read or generate the trace that ``spec`` names, then apply what ``options`` ask for, all recorded.

    Raises :class:`gyges.errors.UserError` for anything wrong with the spec, the options or the data; nothing is ever
    returned half-read.
    """
    options = options or TraceOptions()
    return apply_options(_load(spec.strip(), options), options)


def apply_options(trace: Trace, options: TraceOptions) -> Trace:
    """The transformations of ``options`` in their fixed order: first the clock and the lengths of the source, then
    what is replayed, so that ``duration`` and ``limit`` count seconds and requests as replayed.
    """
    from workloads import transforms

    if options.dequantize:
        trace = transforms.dequantize(trace, options.seed, options.tick_s)
    if options.length_scale != 1:
        trace = transforms.length_scale(trace, options.length_scale)
    if options.max_context is not None:
        trace = transforms.max_context(trace, options.max_context, options.over_context)
    if options.time_scale != 1:
        trace = transforms.time_scale(trace, options.time_scale)
    if options.duration is not None:
        trace = transforms.duration(trace, options.duration)
    if options.limit is not None:
        trace = transforms.limit(trace, options.limit)
    if options.mix_in is not None:
        trace = transforms.mix_in(trace, options.mix_in, options.seed)
    return trace


def _load(spec: str, options: TraceOptions) -> Trace:
    if spec.startswith("synthetic:"):
        return _synthetic(spec, options)
    if spec.startswith("hf:"):
        return _hub(spec, spec.removeprefix("hf:"), options, None)
    path = Path(spec).expanduser()
    if path.is_dir():
        return _hub(f"hf:{path}", path.name, options, None)
    if path.is_file():
        try:
            return _file(path, spec, options)
        except (OSError, EOFError) as error:  # not permitted; a .gz that breaks off
            raise UserError(f"cannot read {path}: {error}") from None
    if spec in KNOWN:
        known = KNOWN.get(spec)
        if known.hub is None:
            raise known.absent()
        columns = {**parse_columns(known.columns), **options.columns}
        return _hub(known.hub, known.name, replace(options, columns=columns), known)
    from workloads.synthetic import MIXES

    if spec.partition("?")[0] in MIXES:
        return _synthetic(spec, options)
    hint = (
        "Otherwise give the path of a file or dataset folder (there is none at this path), hf:owner/name or "
        "synthetic:SHAPE?rate=..."
    )
    raise UnknownNameError("trace", spec, [*MIXES.names(), *KNOWN.names()], hint)


def _synthetic(spec: str, options: TraceOptions) -> Trace:
    from workloads.synthetic import load_synthetic

    reading = ("format", "columns", "repair", "rate", "tokenizer", "revision", "split")
    options.refuse(reading, f"{spec!r} is generated, not read; its parameters go into the spec, as in {spec}?rate=2")
    return load_synthetic(spec, options.seed)


def _file(path: Path, spec: str, options: TraceOptions) -> Trace:
    from workloads.sources import FORMATS
    from workloads.sources.assemble import assemble
    from workloads.sources.base import ReadOptions
    from workloads.sources.containers import file_sha256, read_head
    from workloads.sources.plain import plain_format
    from workloads.sources.text import text_measure

    options.refuse(("revision", "split"), f"{spec} is a file; they belong to Hugging Face datasets")
    wanted = None if options.format is None else FORMATS.get(options.format)
    head = read_head(path)
    if wanted is not None:
        format_ = wanted
    elif options.columns:  # whoever names columns knows better than recognition
        format_ = plain_format(path, head)
    else:
        format_ = next(each for _, each in FORMATS.items() if each.sniff(path, head))
    reading = ReadOptions(options.columns, text_measure(options.tokenizer), options.rate is not None)
    arrivals = None if options.rate is None else _generated(options, options.rate)
    sha256 = file_sha256(path)
    assembled = assemble(
        format_.read(path, head, reading),
        str(path),
        repair=options.repair,
        keep_origin=format_.keeps_origin(head, reading),
        arrivals=arrivals,
    )
    known = known_by_sha256(sha256)
    details: dict[str, Any] = {"columns": dict(options.columns)} if options.columns else {}
    converted = _sidecar(path, sha256)
    if converted is not None:
        details["converted_from"] = converted
    if options.rate is not None:
        details["arrivals"] = _arrivals_record(options, options.rate)
    provenance = Provenance(
        source=spec,
        format=format_.name,
        sha256=sha256,
        licence=known.licence if known else (converted or {}).get("licence", "unknown"),
        home=known.home if known else (converted or {}).get("home"),
        arrival_shift_s=assembled.shift_s,
        rows_read=assembled.rows_read,
        repairs=assembled.repairs,
        details=details,
        notes=_notes(reading.measure.note if reading.measure.used else None, options.rate),
    )
    return Trace(known.name if known else path.name, assembled.requests, provenance)


def _hub(spec: str, name: str, options: TraceOptions, known: KnownTrace | None) -> Trace:
    from workloads.sources.assemble import assemble
    from workloads.sources.base import ReadOptions
    from workloads.sources.huggingface import load_dataset_rows, parse_ref
    from workloads.sources.text import text_measure

    options.refuse(("format",), f"{spec} is read through `datasets`")
    ref = parse_ref(spec, options.split)
    reading = ReadOptions(options.columns, text_measure(options.tokenizer), options.rate is not None)
    loaded = load_dataset_rows(ref, options, reading)
    rate = options.rate if loaded.has_arrivals or options.rate is not None else DEFAULT_RATE
    assembled = assemble(
        loaded.rows,
        spec,
        repair=options.repair,
        keep_origin=loaded.keep_origin,
        arrivals=None if rate is None else _generated(options, rate),
    )
    details = {**loaded.details}
    if rate is not None:
        details["arrivals"] = _arrivals_record(options, rate)
    provenance = Provenance(
        source=spec,
        format="huggingface",
        sha256=loaded.sha256,
        licence=known.licence if known else "see the dataset card",
        home=known.home if known else None if ref.is_local else f"https://huggingface.co/datasets/{ref.location}",
        arrival_shift_s=assembled.shift_s,
        rows_read=assembled.rows_read,
        repairs=assembled.repairs,
        details=details,
        notes=_notes(reading.measure.note if reading.measure.used else None, rate),
    )
    return Trace(name, assembled.requests, provenance)


def _generated(options: TraceOptions, rate: float) -> Callable[[int], Sequence[float]]:
    from workloads.synthetic import poisson_arrivals

    return partial(poisson_arrivals, rate=rate, seed=options.seed)


def _arrivals_record(options: TraceOptions, rate: float) -> dict[str, Any]:
    return {"generated": "poisson", "rate": rate, "seed": options.seed}


def _notes(measure: str | None, rate: float | None) -> tuple[str, ...]:
    generated = None if rate is None else f"arrivals are generated: Poisson at {rate:g} requests/s"
    return tuple(note for note in (measure, generated) if note)


def _sidecar(path: Path, sha256: str) -> dict[str, Any] | None:
    """The provenance that ``convert`` wrote beside a file, so that the chain to the source does not break.

    Only if it speaks of these very bytes; a stale or foreign file there is none of ours.
    """
    try:
        manifest = json.loads(path.with_name(path.name + MANIFEST_SUFFIX).read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(manifest, dict) or manifest.get("file_sha256") != sha256:
        return None
    provenance = manifest.get("provenance")
    return provenance if isinstance(provenance, dict) else None


__all__ = ["DEFAULT_TRACE", "apply_options", "load_trace"]
