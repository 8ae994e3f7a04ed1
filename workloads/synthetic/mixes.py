"""Streams of one kind of request, mixes of streams, and the mixes that have a name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gyges.errors import UserError
from gyges.registry import Registry
from workloads.schema import Provenance, Trace, TraceRequest, sha256_json
from workloads.synthetic.lengths import LengthDistribution, parse_lengths
from workloads.synthetic.shapes import SHAPES, Shape

# Bumped when the same parameters and seed would give other requests than before.
GENERATOR_VERSION = 1


@dataclass(frozen=True, slots=True)
class Stream:
    """Requests of one kind: when they come and how long they are."""

    shape: Shape
    prompt: LengthDistribution
    output: LengthDistribution
    duration_s: float

    def to_json(self) -> dict[str, Any]:
        name = next(name for name, kind in SHAPES.items() if kind is type(self.shape))
        return {
            "shape": name,
            **asdict(self.shape),
            "prompt": str(self.prompt),
            "output": str(self.output),
            "duration": self.duration_s,
        }


@dataclass(frozen=True, slots=True)
class NamedMix:
    """A mix with a name: what it is for, its parameters with their defaults, and how they become streams."""

    description: str
    defaults: Mapping[str, float]
    streams: Callable[[Mapping[str, float]], list[Stream]]


MIXES: Registry[NamedMix] = Registry("synthetic trace")


def generate(source: str, name: str, streams: list[Stream], seed: int) -> Trace:
    """The streams' requests, merged by time. The same streams and seed give the same trace (with the same numpy)."""
    parameters = {"streams": [stream.to_json() for stream in streams], "seed": seed, "generator": GENERATOR_VERSION}
    arrivals, prompts, outputs = [], [], []
    for index, stream in enumerate(streams):
        stream.shape.check(stream.duration_s)
        rng = np.random.default_rng([seed, index])  # a stream does not depend on those beside it
        times = stream.shape.arrivals(stream.duration_s, rng)
        arrivals.append(times)
        prompts.append(stream.prompt.draw(len(times), rng))
        outputs.append(stream.output.draw(len(times), rng))
    at = np.concatenate(arrivals)
    if not len(at):
        raise UserError(f"{source} makes no request with seed {seed}; raise the rate or the duration")
    order = np.argsort(at, kind="stable")
    columns = zip(
        at[order].tolist(),
        np.concatenate(prompts)[order].tolist(),
        np.concatenate(outputs)[order].tolist(),
        strict=True,
    )
    requests = tuple(TraceRequest(*row) for row in columns)
    provenance = Provenance(
        source=source,
        format="synthetic",
        sha256=sha256_json(parameters),
        licence="none (generated)",
        rows_read=len(requests),
        details=parameters,
    )
    return Trace(name, requests, provenance)


def poisson_arrivals(count: int, rate: float, seed: int) -> list[float]:
    """``count`` Poisson arrivals from 0 s on, for data that has lengths but no times."""
    gaps = np.random.default_rng([seed, 0xA77]).exponential(1 / rate, count)
    gaps[0] = 0.0
    return [float(value) for value in np.cumsum(gaps)]


def _stream(shape: str, prompt: str, output: str, duration_s: float, **parameters: float) -> Stream:
    return Stream(SHAPES.get(shape)(**parameters), parse_lengths(prompt), parse_lengths(output), duration_s)


def _default(p: Mapping[str, float]) -> list[Stream]:
    # Two cores that run `tiny` on four devices serve about 3,000 prompt and 600 output tokens/s together. This offers a
    # good half of that, so that queues come from bursts and long prompts rather than from overload.
    short = _stream(
        "poisson", "lognormal:720:0.5:256:2048", "lognormal:80:0.6:16:256", p["duration"], rate=p["short_rate"]
    )
    every = 1 / p["long_rate"]
    long = _stream(
        "constant",
        "uniform:2800:4000",
        "64",
        p["duration"],
        rate=p["long_rate"],
        start=min(every / 2, p["duration"] / 2),
    )
    return [short, long]


def _mixed_long(p: Mapping[str, float]) -> list[Stream]:
    # For `tiny` on devices of 16 MiB: TP1 holds 3,104 tokens, TP2 8,928, TP4 more than the model takes. Short requests fit
    # TP1, `long` ones TP2, `longest` ones TP4 only. They come one after the other, so that merges and splits do too.
    short = _stream(
        "poisson", "lognormal:600:0.5:192:1600", "lognormal:64:0.6:16:192", p["duration"], rate=p["short_rate"]
    )
    long = _stream(
        "constant", "uniform:4000:5000", "48", p["duration"], rate=p["long_rate"], start=0.3 / p["long_rate"]
    )
    longest = _stream(
        "constant", "uniform:9000:9600", "32", p["duration"], rate=p["longest_rate"], start=0.5 / p["longest_rate"]
    )
    return [short, long, longest]


def _ablation_tiny(p: Mapping[str, float]) -> list[Stream]:
    # Ten cells, each in an engine of its own, in under five minutes: seconds of arrivals, and yet several requests that fit
    # no TP1 instance, with enough time between them that a scheduler may split again, or not. Prompts are long enough that
    # a send lag of the system's tick (4 ms) is under 5 % of the median TTFT, outputs that some decode while others merge.
    short = _stream(
        "poisson", "lognormal:850:0.4:300:1800", "lognormal:110:0.4:48:220", p["duration"], rate=p["short_rate"]
    )
    every = 1 / p["long_rate"]
    long = _stream("constant", "uniform:3300:3900", "32", p["duration"], rate=p["long_rate"], start=0.3 * every)
    return [short, long]


def _paper_mix(p: Mapping[str, float]) -> list[Stream]:
    output = f"{int(p['output'])}"
    return [
        _stream("poisson", "1000", output, p["duration"], rate=p["short_per_min"] / 60),
        _stream("poisson", "50000", output, p["duration"], rate=p["long_per_min"] / 60),
    ]


def _paper_mix_tiny(p: Mapping[str, float]) -> list[Stream]:
    # Of the paper's 1K and 50K tokens, the former are 27 % of what TP1 holds, the latter 21 % more than what TP2 holds.
    # A replay has but a few long ones, so they come evenly: chance would decide how many.
    rate = p["long_per_min"] / 60
    return [
        _stream("poisson", "830", "56", p["duration"], rate=p["short_per_min"] / 60),
        _stream("constant", "10800", "48", p["duration"], rate=rate, start=0.3 / rate),
    ]


@dataclass(frozen=True, slots=True)
class _Sizes:
    """Lengths of short and of long requests, for one size of model."""

    short: str
    short_output: str
    long: str
    long_output: str


# 50K tokens are the paper's long request: of Qwen2.5-32B on H20, TP1 holds 3.75K, TP2 41.25K and TP4 120.5K.
_PAPER = _Sizes(
    "lognormal:600:0.8:64:3000", "lognormal:150:0.6:16:500", "uniform:30000:60000", "lognormal:250:0.5:32:800"
)
# For `tiny` on devices of 16 MiB: TP1 holds 3,104 tokens, TP2 8,928, TP4 all that the model takes (16,384).
_TINY = _Sizes("lognormal:500:0.6:128:1600", "lognormal:56:0.6:16:160", "uniform:6000:10500", "48")


def _burst_long(sizes: _Sizes) -> Callable[[Mapping[str, float]], list[Stream]]:
    def streams(p: Mapping[str, float]) -> list[Stream]:
        bursts = {"rate": p["burst_rate"], "on": p["burst_s"], "off": p["quiet_s"]}
        return [
            _stream("poisson", sizes.short, sizes.short_output, p["duration"], rate=p["short_rate"]),
            _stream("on-off", sizes.long, sizes.long_output, p["duration"], **bursts),
        ]

    return streams


def _diurnal_long(sizes: _Sizes) -> Callable[[Mapping[str, float]], list[Stream]]:
    def streams(p: Mapping[str, float]) -> list[Stream]:
        # Short requests begin at their lowest rate, long ones at their highest: the share of long ones falls and rises again.
        day = {"amplitude": p["amplitude"], "period": p["period"]}
        return [
            _stream("diurnal", sizes.short, sizes.short_output, p["duration"], rate=p["short_rate"], **day),
            _stream("diurnal", sizes.long, sizes.long_output, p["duration"], rate=p["long_rate"], phase=0.5, **day),
        ]

    return streams


def _diurnal(p: Mapping[str, float]) -> list[Stream]:
    prompt, output = "lognormal:700:1.0:32:8000", "lognormal:180:0.7:8:1000"
    shape = {"rate": p["rate"], "amplitude": p["amplitude"], "period": p["period"]}
    return [_stream("diurnal", prompt, output, p["duration"], **shape)]


MIXES.add(
    "default",
    NamedMix(
        "the bundled default: many short, a few long requests, scaled to the tiny preset",
        {"duration": 40.0, "short_rate": 2.0, "long_rate": 0.125},
        _default,
    ),
)
MIXES.add(
    "mixed-long",
    NamedMix(
        "short requests and a few that make instances merge: tiny, --device-memory 16MiB, --scheduler on-demand",
        {"duration": 45.0, "short_rate": 1.5, "long_rate": 1 / 15, "longest_rate": 1 / 45},
        _mixed_long,
    ),
)
MIXES.add(
    "ablation-tiny",
    NamedMix(
        "the default of `bench ablation`: a few seconds of short requests, some that make instances merge",
        {"duration": 6.0, "short_rate": 3.0, "long_rate": 0.5},
        _ablation_tiny,
    ),
)
MIXES.add(
    "paper-mix",
    NamedMix(
        "the paper's scheduler test: 1K tokens at 60/min and 50K tokens at 1/min",
        {"duration": 600.0, "short_per_min": 60.0, "long_per_min": 1.0, "output": 200.0},
        _paper_mix,
    ),
)
MIXES.add(
    "paper-mix-tiny",
    NamedMix(
        "the same in proportion to what tiny holds on devices of 16 MiB, long ones evenly at 3/min",
        {"duration": 75.0, "short_per_min": 60.0, "long_per_min": 3.0},
        _paper_mix_tiny,
    ),
)
MIXES.add(
    "burst-long",
    NamedMix(
        "steady short requests and bursts of 30-60K-token ones",
        {"duration": 600.0, "short_rate": 2.0, "burst_rate": 0.2, "burst_s": 30.0, "quiet_s": 120.0},
        _burst_long(_PAPER),
    ),
)
MIXES.add(
    "burst-long-tiny",
    NamedMix(
        "the same for tiny on devices of 16 MiB: bursts of 6-10.5K-token requests, 8 s of every 30 s",
        {"duration": 75.0, "short_rate": 1.5, "burst_rate": 0.35, "burst_s": 8.0, "quiet_s": 22.0},
        _burst_long(_TINY),
    ),
)
MIXES.add(
    "diurnal",
    NamedMix(
        "a day's swing of chat traffic, compressed to an hour",
        {"duration": 3600.0, "rate": 2.0, "amplitude": 0.8, "period": 3600.0},
        _diurnal,
    ),
)
MIXES.add(
    "diurnal-long",
    NamedMix(
        "a day in an hour whose share of 30-60K-token requests shifts: high at night, low when chats peak",
        {"duration": 3600.0, "short_rate": 2.0, "long_rate": 0.03, "amplitude": 0.8, "period": 3600.0},
        _diurnal_long(_PAPER),
    ),
)
MIXES.add(
    "diurnal-long-tiny",
    NamedMix(
        "the same for tiny on devices of 16 MiB, a day in 80 s",
        {"duration": 80.0, "short_rate": 1.5, "long_rate": 0.06, "amplitude": 0.8, "period": 80.0},
        _diurnal_long(_TINY),
    ),
)
