"""What the tests of live transformation share: requests that run while something else is done, and what they must say."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from gyges import Engine, EngineConfig, Request, SamplingParams
from gyges.core import RequestOutput

WAIT_S = 60
# A host of four that may take any degree, with batches so small that prompts take several steps.
FOUR = EngineConfig(
    model="tiny",
    instances=(1, 1, 1, 1),
    tp_degrees=(1, 2, 4),
    device_memory=16 << 20,
    threads=1,
    max_batch_tokens=64,
    pages_per_step=32,
)


def prompts(*lengths: int) -> list[list[int]]:
    return [[(13 * i + 5 * j * j + j) % 2000 + 3 for j in range(n)] for i, n in enumerate(lengths)]


class Running:
    """Requests submitted to an engine; ``tokens`` grow as they come. Every wait has a deadline."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.tokens: dict[str, list[int]] = {}
        self.ends: dict[str, RequestOutput] = {}
        self.seen = 0
        self._changed = threading.Condition()

    def submit(self, *requests: Request) -> None:
        for request in requests:
            self.tokens[request.request_id] = []
            self.engine.submit(request, self._deliver)

    def _deliver(self, output: RequestOutput) -> None:
        with self._changed:
            self.tokens[output.request_id] += output.token_ids
            self.seen += len(output.token_ids)
            if output.finished:
                self.ends[output.request_id] = output
            self._changed.notify_all()

    def wait_for_tokens(self, count: int) -> bool:
        """Until ``count`` tokens have come in all, or everything has ended (False)."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.seen >= count or self._over(), WAIT_S), "no progress"
            return not self._over()

    def wait_for_end(self, name: str) -> None:
        """Until this request has ended."""
        with self._changed:
            assert self._changed.wait_for(lambda: name in self.ends, WAIT_S), f"{name} does not end"

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Until something that no delivery announces is so."""
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < deadline, "it does not come about"
            with self._changed:
                self._changed.wait(0.02)

    def finish(self) -> dict[str, list[int]]:
        """All tokens, once every request has ended well."""
        with self._changed:
            ended = self._changed.wait_for(self._over, WAIT_S)
        assert ended, f"unfinished: {sorted(self.tokens.keys() - self.ends.keys())}; {self.engine.failure}"
        bad = {name: (end.finish_reason, end.error) for name, end in self.ends.items() if end.finish_reason != "length"}
        assert not bad, bad
        return self.tokens

    def _over(self) -> bool:
        return len(self.ends) == len(self.tokens)


def requests(prompts: list[list[int]], counts: list[int], name: str = "r", **sampling) -> list[Request]:
    return [
        Request(f"{name}{i}", tuple(p), SamplingParams(max_tokens=n, ignore_eos=True, **sampling))
        for i, (p, n) in enumerate(zip(prompts, counts, strict=True))
    ]


def static_tokens(config: EngineConfig, wanted: list[Request]) -> dict[str, list[int]]:
    """What one TP1 instance with plenty of room says."""
    alone = config.with_(instances=(1,), device_memory=64 << 20, overlap=True, layout="shard-pages", padding=True)
    with Engine(alone) as engine:
        running = Running(engine)
        running.submit(*wanted)
        return running.finish()


def result(future: Future):
    return future.result(WAIT_S)
