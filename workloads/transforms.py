"""Transformations: pure functions from a trace to a trace, each of which records what it was asked and what it did."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise

from gyges.errors import UnknownNameError, UserError
from workloads.options import OVER_CONTEXT
from workloads.schema import Trace, TraceRequest, TransformRecord

_US = 1_000_000


def limit(trace: Trace, requests: int) -> Trace:
    """The first ``requests`` requests."""
    _positive("limit", requests)
    kept = trace.requests[:requests]
    return trace.transformed(kept, TransformRecord("limit", {"requests": requests}, _dropped(trace, len(kept))))


def duration(trace: Trace, seconds: float) -> Trace:
    """The requests that arrive in the first ``seconds`` of the trace, [0, seconds)."""
    kept = [request for request in trace.requests if request.arrival_s < seconds]
    return trace.transformed(kept, TransformRecord("duration", {"seconds": seconds}, _dropped(trace, len(kept))))


def time_scale(trace: Trace, factor: float) -> Trace:
    """Arrivals, and so gaps, times ``factor``: 0.5 replays twice as fast, 2 at half the rate."""
    _positive("time-scale", factor)
    requests = [replace(request, arrival_s=request.arrival_s * factor) for request in trace.requests]
    effect = {"duration_s_before": trace.duration_s, "duration_s_after": trace.duration_s * factor}
    return trace.transformed(requests, TransformRecord("time_scale", {"factor": factor}, effect))


def length_scale(trace: Trace, factor: float) -> Trace:
    """Prompt and output lengths times ``factor``, rounded, at least 1 token. Hash blocks shrink or grow alike, so that
    requests share the same part of their prompts as before; texts no longer fit their lengths and are left out.
    """
    _positive("length-scale", factor)
    raised = 0
    texts = 0
    requests = []
    for request in trace.requests:
        lengths = [round(request.prompt_tokens * factor), round(request.output_tokens * factor)]
        raised += sum(length < 1 for length in lengths)
        texts += request.text is not None
        prompt, output = (max(1, length) for length in lengths)
        hashes, block = _scaled_hashes(request, prompt, factor)
        requests.append(
            replace(
                request,
                prompt_tokens=prompt,
                output_tokens=output,
                prefix_hashes=hashes,
                hash_block=block,
                text=None,
            )
        )
    effect = {"raised_to_one_token": raised, "texts_removed": texts}
    return trace.transformed(requests, TransformRecord("length_scale", {"factor": factor}, effect))


def max_context(trace: Trace, tokens: int, policy: str = "drop") -> Trace:
    """Hold prompt + output to ``tokens``. ``drop`` leaves longer requests out; ``clamp`` cuts the end of the prompt,
    and the output only where it alone is too long. Either way they are counted.
    """
    if policy not in OVER_CONTEXT:
        raise UnknownNameError("over-context policy", policy, OVER_CONTEXT)
    over = sum(request.total_tokens > tokens for request in trace.requests)
    parameters = {"tokens": tokens, "policy": policy}
    if policy == "drop":
        kept = [request for request in trace.requests if request.total_tokens <= tokens]
        return trace.transformed(kept, TransformRecord("max_context", parameters, _dropped(trace, len(kept))))
    cut_outputs = sum(request.output_tokens > tokens - 1 for request in trace.requests)
    requests = [_clamped(request, tokens) for request in trace.requests]
    effect = {"clamped": over, "outputs_cut": cut_outputs}
    return trace.transformed(requests, TransformRecord("max_context", parameters, effect))


def dequantize(trace: Trace, seed: int, tick_s: float | None = None) -> Trace:
    """Spread the requests that share a timestamp evenly at random over the clock tick that begins there.

    A logger that writes one time for a whole tick makes bursts that nobody sent. Each request moves within
    [t, t + tick), and never past the next timestamp, so the order of requests stays. ``tick_s`` None: detected.
    """
    import numpy as np

    tick = detect_tick(trace) if tick_s is None else tick_s
    _positive("tick", tick)
    groups = Counter(request.arrival_s for request in trace.requests)
    times = list(groups)  # sorted, as the trace is
    widths = [min(tick, after - time) for time, after in pairwise(times)] + [tick]
    rng = np.random.default_rng([seed, 0xDE9])
    arrivals: list[float] = []
    for time, width in zip(times, widths, strict=True):
        offsets = np.sort(rng.random(groups[time])) * width
        end = max(time, math.nextafter(time + width, 0.0))  # a sum may round up to the tick's end, which is not in it
        arrivals.extend(min(time + float(offset), end) for offset in offsets)
    requests = [replace(each, arrival_s=arrival) for each, arrival in zip(trace.requests, arrivals, strict=True)]
    effect = {
        "tick_s": tick,
        "distinct_times": len(times),
        "largest_group": max(groups.values()),
        "jittered": len(requests),
    }
    parameters = {"tick_s": tick_s, "seed": seed}
    return trace.transformed(requests, TransformRecord("dequantize", parameters, effect))


def detect_tick(trace: Trace) -> float:
    """The clock tick of a trace, seconds: the spacing that distinct timestamps commonly have, else what divides all.

    Mooncake's timestamps lie 2.999, 3.000 or 3.001 s apart: the first rule; BurstGPT's whole seconds need the second.
    """
    times = sorted({request.arrival_s for request in trace.requests})
    gaps = sorted(after - before for before, after in pairwise(times))
    if not gaps:
        raise UserError(f"all requests of {trace.name!r} arrive at one time; give the clock's tick with --tick")
    median = gaps[len(gaps) // 2]
    if sum(abs(gap - median) <= 0.01 * median for gap in gaps) * 2 > len(gaps):
        nearest = Counter(round(gap * _US) for gap in gaps).most_common(1)[0][0] / _US
        return nearest if abs(nearest - median) <= 0.01 * median else median
    common = math.gcd(*(round(gap * _US) for gap in gaps)) / _US
    if common < 1e-3:
        raise UserError(
            f"trace {trace.name!r} has no clock tick of 1 ms or more to spread arrivals in; leave --dequantize out, "
            "or give --tick SECONDS"
        )
    return common


def rate(trace: Trace, per_second: float) -> Trace:
    """Gaps scaled alike, so that (requests - 1) / duration becomes ``per_second``."""
    _positive("rate", per_second)
    if trace.duration_s == 0:
        raise UserError(f"all requests of {trace.name!r} arrive at one time; a rate has no meaning for it")
    return time_scale(trace, (len(trace) - 1) / trace.duration_s / per_second)


def long_share(trace: Trace, share: float, over_tokens: int, seed: int) -> Trace:
    """``share`` of the requests (rounded, evenly spread) over ``over_tokens`` of prompt + output, the others not; times stay.

    Lengths are drawn from the trace's own requests of each kind, so both must be there. Texts and prefixes are left out.
    """
    import numpy as np

    long = [r for r in trace.requests if r.total_tokens > over_tokens]
    short = [r for r in trace.requests if r.total_tokens <= over_tokens]
    count = round(share * len(trace))
    if (count and not long) or (count < len(trace) and not short):
        kind = "longer" if not long else "shorter"
        raise UserError(f"trace {trace.name!r} has no request {kind} than {over_tokens} tokens to draw lengths from")
    rng = np.random.default_rng([seed, 0x10E6])
    places = {int((i + 0.5) * len(trace) / count) for i in range(count)}
    requests = []
    for index, request in enumerate(trace.requests):
        kind_of = long if index in places else short
        like = kind_of[int(rng.integers(len(kind_of)))]
        requests.append(TraceRequest(request.arrival_s, like.prompt_tokens, like.output_tokens))
    parameters = {"share": share, "over_tokens": over_tokens, "seed": seed}
    effect = {"long_before": len(long), "long_after": len(places), "requests": len(trace)}
    return trace.transformed(requests, TransformRecord("long_share", parameters, effect))


def mix_in(trace: Trace, spec: str, seed: int) -> Trace:
    """The trace's requests and those of a synthetic spec, by time; its parts last as long as the trace unless they say.

    At equal times the trace's own come first. Lengths are taken as written: no scaling applies to what is mixed in.
    """
    from workloads.synthetic import load_synthetic

    if trace.duration_s == 0 and "duration=" not in spec:
        raise UserError(
            f"all requests of {trace.name!r} arrive at one time; give --mix-in a duration: '{spec}&duration=60'"
        )
    added = load_synthetic(spec, seed, duration_s=trace.duration_s)
    merged = sorted([*trace.requests, *added.requests], key=lambda request: request.arrival_s)
    effect = {"before": len(trace), "added": len(added), "after": len(merged), "sha256": added.provenance.sha256}
    return trace.transformed(merged, TransformRecord("mix_in", {"spec": spec, "seed": seed}, effect))


def _scaled_hashes(request: TraceRequest, prompt: int, factor: float) -> tuple[tuple[int, ...] | None, int | None]:
    if request.prefix_hashes is None or request.hash_block is None:
        return None, None
    exact = request.hash_block * factor
    block = max(1, round(exact))
    # Block j of the scaled prompt begins at token j * block, which lies in block j * block / exact of the original.
    sources = (math.floor(j * block / exact + 1e-9) for j in range(-(-prompt // block)))
    hashes = tuple(request.prefix_hashes[source] for source in sources if source < len(request.prefix_hashes))
    return (hashes, block) if hashes else (None, None)


def _clamped(request: TraceRequest, tokens: int) -> TraceRequest:
    if request.total_tokens <= tokens:
        return request
    output = min(request.output_tokens, tokens - 1)
    prompt = min(request.prompt_tokens, tokens - output)
    hashes = request.prefix_hashes
    if hashes is not None and request.hash_block is not None:
        hashes = hashes[: -(-prompt // request.hash_block)]
    text = request.text if prompt == request.prompt_tokens else None
    return replace(request, prompt_tokens=prompt, output_tokens=output, prefix_hashes=hashes, text=text)


def _dropped(trace: Trace, kept: int) -> dict[str, int]:
    return {"before": len(trace), "after": kept, "dropped": len(trace) - kept}


def _positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise UserError(f"{name} must be a positive number, got {value}")
