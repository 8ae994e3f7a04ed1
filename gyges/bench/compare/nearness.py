"""Where a request was while instances transformed: the usual reason why it got slower."""

from __future__ import annotations

from collections.abc import Sequence

from gyges.bench.compare.sides import Replay
from gyges.metrics.records import RequestRecord, TransformationEvent

LOST, WAITED, DECODED, AFTER, AWAY = (
    "did not complete",
    "waited during a transformation",
    "decoded during a transformation",
    "came just after one",
    "away from any",
)
# The first one that applies counts.
NEARNESS = (LOST, WAITED, DECODED, AFTER, AWAY)
AFTER_S = 1.0  # "just after"


def nearness(record: RequestRecord, replay: Replay) -> str:
    """One of :data:`NEARNESS`, by transformations of devices that the request's instance has (of any, if that is not known).

    Waiting: from the scheduled arrival to the first token. A merge that a request waits for is one of those.
    """
    if record.status != "completed" or record.end_s is None:
        return LOST
    events = _concerned(record, replay)
    first = record.first_token_s if record.first_token_s is not None else record.end_s
    if any(e.start_s < first and e.end_s > record.scheduled_s for e in events):
        return WAITED
    if any(e.start_s < record.end_s and e.end_s > first for e in events):
        return DECODED
    if any(0 <= record.scheduled_s - e.end_s <= AFTER_S for e in events):
        return AFTER
    return AWAY


def _concerned(record: RequestRecord, replay: Replay) -> Sequence[TransformationEvent]:
    devices = {d for s in replay.samples if s.instance == record.instance for d in s.devices}
    return [e for e in replay.events if not devices or devices & set(e.devices)]
