"""Published traces that a figure asks for: the file where there is one, else a generated trace of its shape, which it says."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from workloads import transforms
from workloads.known import KNOWN
from workloads.load import load_trace
from workloads.options import TraceOptions
from workloads.schema import Trace
from workloads.sources.containers import file_sha256


@dataclass(frozen=True, slots=True)
class StandIn:
    """spec: a synthetic trace with the published one's rate, duration, and means and p99 of the lengths.
    dequantize: arrivals of the published one lie on a coarse tick."""

    spec: str
    dequantize: bool = False


STAND_INS = {
    "azure-2023-conv": StandIn(
        "synthetic:poisson?rate=5.53&prompt=lognormal:944:0.635:3:14050&output=lognormal:160:0.75:7:1000&duration=3500"
    ),
    "mooncake-conversation": StandIn(
        "synthetic:poisson?rate=3.4&prompt=lognormal:6500:1.1:891:126195&output=lognormal:235:0.9:1:2000&duration=3537",
        dequantize=True,
    ),
}


def published_trace(
    name: str,
    *,
    folder: Path | None = None,
    rate: float | None = None,
    limit: int | None = None,
    mix_in: str | None = None,
    seed: int = 0,
) -> Trace:
    """The known trace ``name`` from a file in ``folder`` (recognised by its sha256, under any name) or a generated stand-in;
    other names are those of :func:`workloads.load_trace`.

    rate: requests/s that its arrivals are stretched to, before ``mix_in``, a synthetic spec, is added; limit: the first so many.
    """
    options = TraceOptions(seed=seed)
    stand_in = STAND_INS.get(name)
    if stand_in is None:
        trace = load_trace(name, options)
    else:
        path = _file(name, folder)
        trace = load_trace(str(path), options) if path else _generated(name, stand_in, options)
        if path and stand_in.dequantize:
            trace = transforms.dequantize(trace, seed)
    if rate is not None:
        trace = transforms.rate(trace, rate)
    if mix_in is not None:
        trace = transforms.mix_in(trace, mix_in, seed)
    return trace if limit is None or limit >= len(trace) else transforms.limit(trace, limit)


def _file(name: str, folder: Path | None) -> Path | None:
    wanted = KNOWN.get(name).sha256
    files = sorted(folder.iterdir()) if folder else []
    return next((path for path in files if path.is_file() and file_sha256(path) == wanted), None)


def _generated(name: str, stand_in: StandIn, options: TraceOptions) -> Trace:
    trace = load_trace(stand_in.spec, options)
    note = f"generated in place of {name}, which was not at hand: its rate, and means and p99 of its lengths"
    provenance = replace(trace.provenance, notes=(*trace.provenance.notes, note))
    return Trace(f"{name} (generated)", trace.requests, provenance)
