"""A system whose prices are numbers that a test chooses, and a policy that transforms for no reason."""

from dataclasses import dataclass, field
from itertools import pairwise

from gyges.scheduling.routing import Merge, Policy, Reject, Send, Split, Wait
from gyges.sim.sequence import Pace
from gyges.sim.system import Switch


@dataclass
class Flat:
    """``kv_tokens``: by degree. Merges work behind the pause, splits ahead of it; every held token costs ``token_s`` more."""

    costs: dict
    kv_tokens: dict
    pause_s: float = 0.0
    beside_s: float = 0.0
    slowdown: float = 1.0
    token_s: float = 0.0
    pace: Pace | None = None
    keeps_kv: bool = True
    restart_s: float = 1.0
    block_size: int = 16
    name: str = "flat"
    policy: str = "static"
    asked: list = field(default_factory=list)

    @property
    def degrees(self):
        return tuple(sorted(self.kv_tokens))

    def switch(self, before, after, held_tokens):
        assert sum(before) == sum(after)
        assert (len(before) == 1) != (len(after) == 1)
        self.asked.append((before, after, tuple(held_tokens)))
        merging = len(after) == 1
        return Switch(
            pause_s=self.pause_s + self.token_s * sum(held_tokens),
            ahead_s=0.0 if merging else self.beside_s,
            behind_s=self.beside_s if merging else 0.0,
            slowdown=self.slowdown,
            bytes_moved=10 * sum(held_tokens),
            keeps_kv=self.keeps_kv,
            pace=self.pace,
        )

    def restart(self, before, after):
        return Switch(pause_s=self.restart_s, keeps_kv=False)

    def work_s(self, tokens, degree):
        return tokens / (1000 * degree)


class Restless(Policy):
    """Merges and splits whatever it may, at every few reviews; requests go in turn to what can hold them."""

    transforms = True

    def __init__(self, every=2):
        self.every, self.calls, self.reviews = every, 0, 0

    def route(self, ask, instances, host, now):
        self.calls += 1
        fitting = [i for i, view in enumerate(instances) if view.max_tokens >= ask.length]
        if fitting:
            return Send(fitting[self.calls % len(fitting)])
        if ask.length > max(host.max_tokens.values()):
            return Reject("no room: tokens of KV cache")
        free = [i for i, view in enumerate(instances) if not view.transforming]
        if len(free) == len(instances) and sum(v.degree for v in instances) in host.max_tokens and len(free) > 1:
            return Merge(tuple(free), "needs all")
        return Wait()

    def review(self, instances, host, now):
        self.reviews += 1
        if self.reviews % self.every:
            return []
        free = [i for i, view in enumerate(instances) if not view.transforming]
        wide = [i for i in free if instances[i].degree % 2 == 0 and instances[i].degree // 2 in host.max_tokens]
        if wide and self.reviews % 3:
            half = instances[wide[0]].degree // 2
            return [Split(wide[0], (half, half), "restless")]
        for a, b in pairwise(free):
            if instances[a].degree + instances[b].degree in host.max_tokens:
                return [Merge((a, b), "restless")]
        return []
