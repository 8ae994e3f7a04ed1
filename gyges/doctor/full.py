"""``--full``: the checks, one after the other, each in a process of its own, within one budget of time.

What has been found is handed over after every check, so a run that is stopped keeps what it has. Nothing is resumed.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

from gyges.bench.child import Child, ChildError
from gyges.config import available_cores
from gyges.doctor.ability import abilities
from gyges.doctor.checks import Check, Document, load
from gyges.doctor.facts import Fact, to_document
from gyges.errors import UserError

BUDGET_S = 460.0  # with the facts and the tables, less than 8 minutes
_USER_ERROR = f"{UserError.__name__}: "
_LEAST_S = 5.0  # a check that would have less than this is not begun

State = Literal["passed", "failed", "cannot", "no time"]
Progress = Callable[[str], None]
Keep = Callable[[Document], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """``why``: of every state but passed.   cannot: it does not apply to this machine.   seconds: that it took."""

    name: str
    title: str
    state: State
    why: str = ""
    summary: str = ""
    seconds: float = 0.0
    figures: Document = field(default_factory=dict)
    goals: list[Document] = field(default_factory=list)


class Runner:
    """What the child answers with: the function that a check names."""

    def run(self, target: str) -> Document:
        module, name = target.split(":")
        found: Document = getattr(importlib.import_module(module), name)() or {}
        return found


def choose(only: Iterable[str] = (), skip: Iterable[str] = ()) -> list[Check]:
    """In the order of the registry. Raises UnknownNameError for names that no check has."""
    checks = load()
    wanted, unwanted = {checks.get(name).name for name in only}, {checks.get(name).name for name in skip}
    return [check for name, check in checks.items() if (not wanted or name in wanted) and name not in unwanted]


def document_of(facts: Sequence[Fact], outcomes: Sequence[Outcome] = (), *, planned: int = 0) -> Document:
    """The one JSON document. ``planned``: how many checks were to run; fewer outcomes: it was stopped."""
    states = [outcome.state for outcome in outcomes]
    return {
        "facts": to_document(facts),
        "abilities": [ability.to_dict() for ability in abilities(facts)],
        "checks": [asdict(outcome) for outcome in outcomes],
        "counts": {state: states.count(state) for state in ("passed", "failed", "cannot", "no time")},
        "planned": planned,
        "complete": len(outcomes) == planned,
    }


def run_checks(
    checks: Sequence[Check],
    facts: Sequence[Fact],
    progress: Progress,
    keep: Keep,
    *,
    budget_s: float = BUDGET_S,
    clock: Callable[[], float] = time.monotonic,
) -> list[Outcome]:
    """``keep`` gets the document as it stands after every check."""
    until = clock() + budget_s
    outcomes: list[Outcome] = []
    keep(document_of(facts, outcomes, planned=len(checks)))
    for check in checks:
        outcome = _run(check, facts, until - clock(), progress)
        outcomes.append(outcome)
        keep(document_of(facts, outcomes, planned=len(checks)))
        said = outcome.summary if outcome.state == "passed" else outcome.why.splitlines()[0]
        progress(f"{check.name}: {outcome.state}{': ' if said else ''}{said}")
    return outcomes


def _run(check: Check, facts: Sequence[Fact], left_s: float, progress: Progress) -> Outcome:
    why = check.cannot(facts)
    if why:
        return Outcome(check.name, check.title, "cannot", why)
    if left_s < _LEAST_S:
        return Outcome(check.name, check.title, "no time", "the time for all checks was used up")
    progress(f"{check.name}: {check.title} ...")
    deadline_s = min(check.deadline_s, left_s)
    began = time.monotonic()
    try:
        with Child("gyges.doctor.full:Runner", available_cores()) as child:
            found = child.call("run", deadline_s, target=check.target)
    except ChildError as error:
        took = time.monotonic() - began
        state = _state_of(error, cut_short=took >= deadline_s and left_s < check.deadline_s)
        return Outcome(check.name, check.title, state, str(error).removeprefix(_USER_ERROR), seconds=took)
    return Outcome(
        check.name, check.title, "passed", "", found.get("summary", ""), time.monotonic() - began,
        found.get("figures", {}), found.get("goals", []),
    )  # fmt: skip


def _state_of(error: ChildError, *, cut_short: bool) -> State:
    """A UserError names what this machine lacks and the remedy: nothing of ours has failed."""
    if cut_short:
        return "no time"
    return "cannot" if str(error).startswith(_USER_ERROR) else "failed"
