"""Errors whose text is meant for the person at the terminal.

Two kinds of failure are told apart: a :class:`UserError` names its remedy and ends a command with exit code 2;
an ``assert`` with a sentence marks a broken invariant of ours and may end in a traceback.
"""

from __future__ import annotations

from collections.abc import Iterable


class UserError(ValueError):
    """Bad input. The message says what was wrong, where, and what to do instead."""


class UnknownNameError(UserError):
    """A name that no registry knows; the message lists the names that exist."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        listed = ", ".join(sorted(known)) or "none"
        super().__init__(f"unknown {kind} {name!r}; known: {listed}" + (f". {hint}" if hint else ""))


class EngineError(RuntimeError):
    """The engine could not go on. Carries which worker failed and what it last said, where that is known."""


class WorkerDied(EngineError):  # noqa: N818 - reads as what happened
    """A worker process ended while it was needed.

    Attributes: ``worker`` (its index), ``exit_code`` (negative: the signal), ``last_words`` (end of its stderr).
    """

    def __init__(self, worker: int, exit_code: int | None, last_words: str) -> None:
        self.worker, self.exit_code, self.last_words = worker, exit_code, last_words
        how = (
            "exit code unknown"
            if exit_code is None
            else f"signal {-exit_code}"
            if exit_code < 0
            else f"exit code {exit_code}"
        )
        said = f"; its last words:\n{last_words}" if last_words.strip() else "; it wrote nothing to stderr"
        super().__init__(f"worker {worker} died ({how}){said}")
