"""Synthetic runs with numbers that can be checked by hand."""

from __future__ import annotations

import random

from gyges.metrics.records import RequestRecord, TimelineSample, TransformationEvent


def request(name: str = "r", *, at: float = 0.0, first: float = 1.0, gap: float = 0.1, tokens: int = 3, **changes):
    """Completed: sent on time, scheduled half way to its first token, one token every ``gap`` seconds."""
    times = [at + first + i * gap for i in range(tokens)]
    values = {
        "sent_s": at,
        "first_scheduled_s": at + first / 2,
        "token_times": times,
        "chunk_times": list(times),
        "end_s": times[-1],
        "prompt_tokens": 100,
        "output_tokens": tokens,
        "target_output_tokens": tokens,
        "status": "completed",
        "instance": "i0",
    }
    return RequestRecord(name, at, **(values | changes))


def lost(name: str = "x", *, at: float = 0.0, status: str = "failed", **changes) -> RequestRecord:
    """Failed or rejected half a second after its arrival, without a token."""
    values = {"sent_s": at, "end_s": at + 0.5, "prompt_tokens": 100, "target_output_tokens": 3, "reason": "worker died"}
    return RequestRecord(name, at, status=status, **(values | changes))


def sample(t: float, instance: str, devices: tuple[int, ...], used: int = 0, total: int = 100, **changes):
    values = {"tp": len(devices), "running": 1, "waiting": 0} | changes
    return TimelineSample(t, instance, devices, kv_used_blocks=used, kv_total_blocks=total, **values)


def busy_run(seed: int = 0, requests: int = 200, seconds: float = 60.0):
    """A run that looks like one: eight devices, two merges to TP4 and back, prompts of all lengths, a few failures."""
    rng = random.Random(seed)
    records = []
    for i in range(requests):
        at = rng.uniform(0, seconds * 0.8)
        prompt = int(2 ** rng.uniform(5, 16.5))
        if rng.random() < 0.05:
            records.append(lost(f"r{i}", at=at, status=rng.choice(["failed", "rejected"]), prompt_tokens=prompt))
            continue
        first = 0.05 + prompt / 20000 + rng.expovariate(3)
        records.append(
            request(
                f"r{i}",
                at=at,
                first=first,
                gap=rng.uniform(0.01, 0.08),
                tokens=rng.randint(1, 120),
                prompt_tokens=prompt,
            )
        )
    merges = [(12.0, 12.9, (0, 1, 2, 3)), (25.0, 26.1, (4, 5, 6, 7))]
    splits = [(38.0, 38.6, (0, 1, 2, 3)), (50.0, 51.2, (4, 5, 6, 7))]
    events = [TransformationEvent("merge", v, s, e, 1 << 30, 0.02, "long request") for s, e, v in merges]
    events += [TransformationEvent("split", v, s, e, 1 << 29, 0.01, "low load") for s, e, v in splits]
    for event in events:
        wide, narrow = (4,), (1, 1, 1, 1)
        event.before, event.after = (narrow, wide) if event.kind == "merge" else (wide, narrow)
        event.asked_s, event.overlap, event.steps, event.tokens = event.start_s - 0.01, event.kind == "merge", 9, 70
    samples = []
    for step in range(int(seconds * 2) + 1):
        t = step / 2
        for group, (merged, parted) in enumerate([(12.9, 38.6), (26.1, 51.2)]):
            members = tuple(range(4 * group, 4 * group + 4))
            layout = [members] if merged <= t < parted else [(m,) for m in members]
            for devices in layout:
                load = 0.3 + 0.3 * rng.random() + (0.2 if len(devices) > 1 else 0)
                samples.append(
                    sample(
                        t,
                        f"tp{len(devices)}-{devices[0]}",
                        devices,
                        used=int(400 * load * len(devices)),
                        total=400 * len(devices),
                        running=rng.randint(1, 6) * len(devices),
                        waiting=rng.randint(0, 4),
                    )
                )
    return records, samples, events
