"""The workers of a test of collectives, each in a process of its own."""

import multiprocessing
from collections.abc import Callable
from typing import Any

_DEADLINE_S = 90


def run_workers(main: Callable[..., None], count: int, *about: Any) -> None:
    """``main(worker, *about)`` of each; all have to end well."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=main, args=(worker, *about), daemon=True) for worker in range(count)]
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join(_DEADLINE_S)
        assert [process.exitcode for process in processes] == [0] * count
    finally:
        for process in processes:
            process.kill()
