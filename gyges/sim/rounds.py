"""Several rounds of ``gyges sim agree`` as one answer: figures pooled over the rounds, and how the machine drifted meanwhile.

A round is runs between two profiles. One round's error holds what the machine's speed did in it beside what the simulation does
wrong; over several rounds the former averages out and the latter stays. So goals are judged on the pooled figure, and each
round's own error stands beside it.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from gyges.models.hub import resolve_model
from gyges.sim.compare import pair
from gyges.sim.cost.base import CostModel, StepShape
from gyges.sim.cost.bundle import read_bundle
from gyges.sim.cost.tables import TableCost

Document = Mapping[str, Any]

# Several, since the time of one alone is one noisy point of a profile.
DRIFT_SEQUENCES, _CONTEXT = (1, 2, 4, 8, 16), 256


def pool(rounds: Sequence[Mapping[str, Document]]) -> dict[str, dict[str, Any]]:
    """Figure -> ``measured``, ``simulated`` (means of the rounds' means), their ``error``, ``limit``, ``met``, and ``rounds``:
    each round's own error. None in it: the round has no such figure, for example no split that anybody noticed.

    ``rounds``: of each, run -> document of :func:`gyges.sim.agree.agree`. Figures are those that have a goal: ``throughput``,
    ``ttft_s``, ``tpot_s``, and ``merge_pause_s_<run>``, ``split_pause_s_<run>`` of runs that merge and split.
    """
    found: dict[str, dict[int, Document]] = defaultdict(dict)
    limits: dict[str, float] = {}
    for number, runs in enumerate(rounds):
        for run, document in runs.items():
            for goal, value in document["goals"].items():
                name, figure = _figure(run, document, goal)
                found[name][number], limits[name] = figure, value["limit"]
    return {
        name: _pooled(limits[name], [by_round.get(number) for number in range(len(rounds))])
        for name, by_round in found.items()
    }


def _figure(run: str, document: Document, goal: str) -> tuple[str, Document]:
    if "pauses" in document:
        return f"{goal}_pause_s_{run}", document["pauses"][goal]
    return goal, document[goal] if goal in document else document["latencies"][goal]["mean"]


def _pooled(limit: float, rounds: Sequence[Document | None]) -> dict[str, Any]:
    there = [each for each in rounds if each is not None]
    means = (statistics.fmean(each[side] for each in there) for side in ("measured", "simulated"))
    pooled = pair(*means)
    error = pooled["error"]
    return {
        **pooled,
        "limit": limit,
        "met": None if error is None else abs(error) <= limit,
        "rounds": [each["error"] if each else None for each in rounds],
    }


def drift(profiles: Sequence[Path]) -> dict[str, list[float]]:
    """TP degree ("tp1") -> a ratio for each two profiles in a row: what decode steps of :data:`DRIFT_SEQUENCES` sequences take
    together by the later one, over the same by the earlier one. 1.1: the machine was 10 % slower after the round than before.

    Raises UserError for a folder that is no profile.
    """
    bundles = [read_bundle(profile) for profile in profiles]
    meta = bundles[0].meta
    geometry = resolve_model(meta["model"], weights=False).config.geometry(meta["dtype"])
    ratios = {}
    for degree in bundles[0].degrees:
        times = [_decode_s(TableCost(bundle, geometry, degree)) for bundle in bundles]
        ratios[f"tp{degree}"] = [after / before for before, after in pairwise(times)]
    return ratios


def _decode_s(cost: CostModel) -> float:
    return sum(cost.step_s(StepShape(n, n * _CONTEXT, _CONTEXT, (), n)) for n in DRIFT_SEQUENCES)
