"""What a simulated run leaves: one record per request, as of a real run (gyges.metrics.records)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gyges.metrics.records import RequestRecord
from gyges.sim.instance import SimInstance
from gyges.sim.sequence import SimSequence


def record_of(sequence: SimSequence) -> RequestRecord:
    """``token_times`` is an array: of a request that stayed in one instance, a view of the times of that instance's steps."""
    record = RequestRecord(
        f"r{sequence.order}",
        sequence.arrival_s,
        sent_s=sequence.arrival_s,
        prompt_tokens=sequence.prompt_tokens,
        target_output_tokens=sequence.max_tokens,
    )
    times = _times(sequence)
    record.token_times = times  # type: ignore[assignment]
    record.output_tokens, record.preemptions = len(times), sequence.preemptions
    if sequence.admitted_s >= 0:
        record.first_scheduled_s = sequence.admitted_s
    if sequence.instance:
        assert len(times) == sequence.max_tokens, "every request ends with all its tokens"
        record.status, record.instance, record.end_s = "completed", sequence.instance, float(times[-1])
        return record
    # As the engine says it: what was computed once has failed, what never began is rejected.
    begun = sequence.preemptions or sequence.lost or not sequence.reason
    record.status, record.reason = "failed" if begun else "rejected", sequence.reason or "the policy never placed it"
    record.end_s = float(times[-1]) if len(times) else sequence.arrival_s
    return record


def _times(sequence: SimSequence) -> np.ndarray:
    parts: Sequence[np.ndarray] = [_ends_of(sim)[first:end] for sim, first, end in sequence.stays]
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.empty(0)


def _ends_of(sim: SimInstance) -> np.ndarray:
    """float64 [steps]: when each step ended; in one piece from now on."""
    if len(sim.ends) != 1:
        sim.ends = [np.concatenate(sim.ends) if sim.ends else np.empty(0)]
    return sim.ends[0]
