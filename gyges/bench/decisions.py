"""How long a policy takes to decide, on hosts of 8 to 1,000 instances. No engine: views are made up, and only the policy's own
call is timed, in CPU time of its thread. A decision waits for nothing, so that is its time on a core that is free; wall time
would add what the machine gave to other processes meanwhile (steps of 4 ms where cores are short).

A **scene** is a host in several snapshots, whose instances keep their devices and change their load:

    narrow   all TP1, so that a long request makes instances merge
    mixed    TP1, TP2 and TP4; wide instances that serve long requests, wide ones that nobody needs, some that are transforming

Calls go through the snapshots in turn, with time passing between them. Decisions are counted and not carried out: the next view
is the next snapshot, whatever was decided. Lengths are those of the paper's host (PAPER.md section 1: Qwen2.5-32B on H20).
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gyges.errors import UserError
from gyges.metrics.definitions import percentile
from gyges.scheduling.routing import POLICIES, Ask, HostView, InstanceView, RoutingPolicy
from gyges.scheduling.specification import VARIANTS, make_policy

Progress = Callable[[str], None]
Clock = Callable[[], int]
Document = dict[str, Any]

MAX_TOKENS = {1: 3_840, 2: 42_240, 4: 123_392}  # PAPER.md section 1, 1K = 1,024
NARROW, MIXED = "narrow", "mixed"
ROUTE, REVIEW = "route", "review"
LIMITS_S = {8: 50e-6, 1000: 1e-3}  # instances -> longest that p99 of a decision should take

_MIXED_DEGREES = (1, 1, 1, 2, 1, 1, 2, 4)  # of every eight instances
_SNAPSHOTS = 8
_ROUNDS = 4  # each of all policies in turn, so that a slow moment of the machine meets them all
_WARM_UP = 20  # calls before the first that counts
_STEP_S = 0.05  # host time between two calls
_SHORT, _LONG, _LONGEST = (256, 3_500), (10_000, 40_000), (50_000, 120_000)  # tokens


def every_policy() -> tuple[str, ...]:
    """The specifications of all registered policies and their variants."""
    return (*POLICIES.names(), *VARIANTS.names())


@dataclass(frozen=True, slots=True)
class DecisionsConfig:
    """What to time. ``policies``: specifications.   instances: sizes of hosts.   calls: of ``route``, and of ``review``, in each
    scene.

    Raises UserError for a policy that does not exist and for sizes below 1.
    """

    policies: tuple[str, ...]
    instances: tuple[int, ...] = (8, 64, 1000)
    calls: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.policies:
            raise UserError(f"name at least one policy of: {', '.join(every_policy())}")
        for text in self.policies:
            make_policy(text)
        if not self.instances or min(self.instances) < 1:
            raise UserError("the instances of a host are 1 or more, as in 8,64,1000")
        if self.calls < _ROUNDS:
            raise UserError(f"{self.calls} calls are too few; give {_ROUNDS} or more")


@dataclass(frozen=True, slots=True)
class Scene:
    """``snapshots``: views of one host at several moments.   asks: requests to place, each with the name of its kind."""

    name: str
    snapshots: tuple[tuple[InstanceView, ...], ...]
    asks: tuple[tuple[str, Ask], ...]
    host: HostView = field(default_factory=lambda: HostView(MAX_TOKENS))


def make_scene(name: str, instances: int, calls: int, seed: int) -> Scene:
    """A function of its arguments. ``asks``: ``calls`` of them, half of them long."""
    draw = random.Random(f"{seed}/{name}/{instances}")
    degrees = [_MIXED_DEGREES[i % 8] if name == MIXED else 1 for i in range(instances)]
    snapshots = tuple(tuple(_views(degrees, draw)) for _ in range(_SNAPSHOTS))
    return Scene(name, snapshots, tuple(_asks(name, calls, draw)))


def _views(degrees: Sequence[int], draw: random.Random) -> Iterator[InstanceView]:
    first, wide = 0, 0
    for index, degree in enumerate(degrees):
        room, running = MAX_TOKENS[degree], draw.randrange(12)
        held = min(room, 200 * running)
        wide += degree > 1
        needed = degree > 1 and wide % 2 == 1  # every second wide instance serves a long request
        transforming = degree > 1 and draw.random() < 0.1
        yield InstanceView(
            name=f"i{index}",
            degree=degree,
            devices=tuple(range(first, first + degree)),
            max_tokens=room,
            free_tokens=room - held - (MAX_TOKENS[1] if needed else 0),
            running=running + needed,
            waiting=draw.randrange(3),
            remaining_tokens=draw.randrange(8_000),
            longest_tokens=room if needed else min(held, MAX_TOKENS[1]),
            transforming=transforming,
            prefill_tokens=draw.randrange(4_000),
            held_tokens=held + (MAX_TOKENS[1] if needed else 0),
            long_requests=int(needed),
            becoming=(1,) * degree if transforming else (),
        )
        first += degree


def _asks(scene: str, calls: int, draw: random.Random) -> Iterator[tuple[str, Ask]]:
    for index in range(calls):
        if index % 2 == 0:
            kind, low, high = "short", *_SHORT
        else:
            kind, (low, high) = f"long, {scene}", _LONGEST if index % 4 == 3 else _LONG
        length = draw.randint(low, high)
        yield kind, Ask(length, length - 64, index * _STEP_S, f"r{index}")


class Timing:
    """One policy on one scene, call by call. ``seconds``, ``answers``: of what was timed, by kind of call."""

    def __init__(self, policy: RoutingPolicy, scene: Scene, clock: Clock = time.thread_time_ns) -> None:
        self.policy, self.scene, self.clock = policy, scene, clock
        self.seconds: dict[tuple[str, str], list[float]] = {}
        self.answers: dict[tuple[str, str], Counter[str]] = {}
        self._next = 0
        if (foresee := getattr(policy, "foresee", None)) is not None:
            foresee([ask for _, ask in scene.asks])

    def run(self, calls: int, *, counted: bool = True) -> None:
        """The next so many requests, each followed by a review."""
        scene, policy, clock = self.scene, self.policy, self.clock
        for _ in range(calls):
            index, self._next = self._next, self._next + 1
            views, (kind, ask) = scene.snapshots[index % len(scene.snapshots)], scene.asks[index % len(scene.asks)]
            now = index * _STEP_S
            began = clock()
            decision = policy.route(ask, views, scene.host, now)
            ended = clock()
            if counted:
                self._note(ROUTE, kind, ended - began, type(decision).__name__)
            began = clock()
            wishes = policy.review(views, scene.host, now)
            ended = clock()
            if counted:
                said = ", ".join(sorted({type(wish).__name__ for wish in wishes})) or "nothing"
                self._note(REVIEW, scene.name, ended - began, said)

    def _note(self, call: str, kind: str, nanoseconds: int, answer: str) -> None:
        self.seconds.setdefault((call, kind), []).append(nanoseconds * 1e-9)
        self.answers.setdefault((call, kind), Counter())[answer] += 1


def bench_decisions(config: DecisionsConfig, progress: Progress) -> Document:
    """The document of `gyges bench decisions`; seconds everywhere."""
    policies: dict[str, dict[str, Document]] = {text: {} for text in config.policies}
    for instances in config.instances:
        progress(f"{instances} instances")
        scenes = [make_scene(name, instances, config.calls, config.seed) for name in (NARROW, MIXED)]
        timings = {text: [Timing(make_policy(text), scene) for scene in scenes] for text in config.policies}
        for each in (timing for both in timings.values() for timing in both):
            each.run(_WARM_UP, counted=False)
        for round_ in range(_ROUNDS):
            calls = config.calls * (round_ + 1) // _ROUNDS - config.calls * round_ // _ROUNDS
            for each in (timing for both in timings.values() for timing in both):
                each.run(calls)
        for text, both in timings.items():
            policies[text][str(instances)] = _figures(both)
    document: Document = {"instances": list(config.instances), "calls": config.calls, "policies": policies}
    document["goals"] = goals(document)
    return document


def _figures(timings: Sequence[Timing]) -> Document:
    """``route`` and ``review`` over all kinds together, and ``kinds``: each alone, with what was answered how often."""
    document: Document = {}
    for call in (ROUTE, REVIEW):
        together: dict[str, tuple[list[float], Counter[str]]] = {}
        for timing in timings:
            for (its_call, kind), seconds in timing.seconds.items():
                if its_call == call:
                    known, answers = together.setdefault(kind, ([], Counter()))
                    known += seconds
                    answers.update(timing.answers[its_call, kind])
        document[call] = spread([each for seconds, _ in together.values() for each in seconds])
        document[call]["kinds"] = {
            kind: spread(seconds) | {"answers": dict(sorted(answers.items()))}
            for kind, (seconds, answers) in together.items()
        }
    return document


def spread(seconds: Sequence[float]) -> Document:
    """``count``, ``p50``, ``p99`` and ``max`` (seconds)."""
    return {
        "count": len(seconds),
        "p50": percentile(seconds, 50),
        "p99": percentile(seconds, 99),
        "max": max(seconds),
    }


def goals(document: Mapping[str, Any]) -> list[Document]:
    """Each goal with the slowest policy's p99; ``met`` is None where no host of that size was measured."""
    found: list[Document] = []
    for instances, limit in LIMITS_S.items():
        for call in (ROUTE, REVIEW):
            p99 = {
                text: sizes[str(instances)][call]["p99"]
                for text, sizes in document["policies"].items()
                if str(instances) in sizes
            }
            slowest = max(p99, key=lambda text: p99[text]) if p99 else None
            reached = p99[slowest] if slowest else None
            found.append(
                {
                    "name": f"{call}, {instances:,} instances, p99",
                    "aim": f"under {limit * 1e6:.0f} us" if limit < 1e-3 else f"under {limit * 1e3:.0f} ms",
                    "limit": limit,
                    "unit": "s",
                    "reached": reached,
                    "where": slowest or "",
                    "met": None if reached is None else reached < limit,
                }
            )
    return found
