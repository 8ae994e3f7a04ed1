"""The slow reference of the simulator: the engine's own Batcher, one step at a time, nothing skipped, everything recomputed."""

import math
from dataclasses import dataclass, field

from gyges.scheduling.batching import Batcher, Sequence
from gyges.scheduling.homes import choose_homes
from gyges.scheduling.routing import Ask, HostView, InstanceView, Merge, Reject, Restart, Send, Split
from gyges.sim.pipelined import shape_of
from gyges.sim.system import SystemPrices

NEVER = float("inf")


@dataclass
class Blocks:
    total: int
    num_free: int = field(init=False)

    def __post_init__(self):
        self.num_free = self.total

    @property
    def num_held(self):
        return self.total - self.num_free

    def allocate(self, count, owner=None):
        if count > self.num_free:
            return None
        self.num_free -= count
        return [0] * count

    def release(self, block_ids, owner=None):
        self.num_free += len(block_ids)


@dataclass(eq=False)
class Inst:
    name: str
    degree: int
    devices: tuple
    batcher: Batcher
    max_tokens: int
    plan: object = None
    end: float = NEVER
    slowdown: float = 1.0
    pace: object = None
    left: int = 0
    held: bool = False
    change: object = None


@dataclass(eq=False)
class Going:
    """A transformation: ``phase`` is gather, ahead, stop, pause or behind."""

    sources: list
    after: tuple
    phase: str = "gather"
    until: float = NEVER
    switch: object = None
    results: list = field(default_factory=list)


class Stepwise:
    """``times``: of every token, by request; ``made``: (kind, start, end) of every transformation."""

    def __init__(self, system, degrees, limits, policy):
        self.system, self.limits, self.policy = system, limits, policy
        size = limits.block_size
        devices = sum(degrees)
        self.max_tokens = {d: system.kv_tokens[d] // size * size for d in system.degrees if d <= devices}
        self.prices = SystemPrices(system)
        self.named = 0
        self.instances, self.going, self.pending, self.restart = [], [], [], None
        self.times, self.preemptions, self.admitted, self.rejected, self.made = {}, {}, {}, {}, []
        self.instances = self.seat(degrees, tuple(range(devices)))
        self.woken, self.now, self.unfinished, self.changed = None, 0.0, 0, False

    def seat(self, degrees, devices):
        found = []
        for degree in degrees:
            blocks = Blocks(self.max_tokens[degree] // self.limits.block_size)
            batcher = Batcher(self.limits, blocks)
            found.append(Inst(f"i{self.named}", degree, devices[:degree], batcher, self.max_tokens[degree]))
            devices, self.named = devices[degree:], self.named + 1
        return found

    def run(self, requests):
        arrived = 0
        self.arrivals = [request.arrival_s for request in requests]
        if hasattr(self.policy, "foresee"):
            lengths = [(r.prompt_tokens + r.output_tokens - 1, r.prompt_tokens, r.arrival_s) for r in requests]
            self.policy.foresee([Ask(*each, f"r{number}") for number, each in enumerate(lengths)])
        while True:
            if arrived == len(requests) and not self.unfinished and not self.going and not self.restarting:
                return self.times
            moments = [self.arrivals[arrived]] if arrived < len(requests) else []
            moments += [i.end for i in self.instances] + [g.until for g in self.going]
            moments += [self.restart[1]] if self.restart else []
            if self.policy.wake_s is not None and self.policy.wake_s != self.woken:
                moments.append(max(self.policy.wake_s, self.now))
            self.now = now = min(moments)
            if now == NEVER:
                return self.times
            for instance in self.instances:
                if instance.end == now:
                    self.finish_step(instance)
            if self.policy.wake_s is not None and self.policy.wake_s != self.woken and self.policy.wake_s <= now:
                self.woken, self.changed = self.policy.wake_s, True
            while arrived < len(requests) and requests[arrived].arrival_s == now:
                r = requests[arrived]
                self.pending.append(Sequence(arrived, r.prompt_tokens, r.output_tokens, known=r.prompt_tokens))
                arrived, self.unfinished, self.changed = arrived + 1, self.unfinished + 1, True
            self.settle()
            for instance in self.instances:
                self.watch_pace(instance)
                if instance.plan is None and not instance.held and (plan := instance.batcher.schedule()):
                    for sequence in plan.admitted:
                        self.admitted.setdefault(sequence.order, now)
                    instance.plan = plan
                    step_s = self.system.costs[instance.degree].step_s(shape_of(plan)) * instance.slowdown
                    if instance.pace is not None:
                        step_s = max(step_s + instance.pace.more_s, instance.pace.least_s)
                    instance.end = now + step_s

    @property
    def restarting(self):
        return self.restart is not None and self.restart[1] != NEVER

    def finish_step(self, instance):
        for sequence in instance.batcher.advance(instance.plan):
            self.times.setdefault(sequence.order, []).append(self.now)
            if sequence.sampled == sequence.max_tokens:
                instance.batcher.finish(sequence)
                self.preemptions[sequence.order] = sequence.preemptions
                self.unfinished, self.changed = self.unfinished - 1, True
        instance.plan, instance.end, instance.left = None, NEVER, instance.left - 1

    # -- what follows at one moment -----------------------------------------------------------------------------------

    def settle(self):
        while True:
            for going in list(self.going):
                self.advance(going)
            self.advance_restart()
            if not self.changed:
                return
            self.changed = False
            if self.restart is None:
                self.place_all()
                self.review()

    def place_all(self):
        asked, self.pending = sorted(self.pending, key=lambda s: s.order), []
        for index, sequence in enumerate(asked):
            if not self.instances or self.restart is not None:
                self.pending.append(sequence)
                continue
            others = self.pending + asked[index + 1 :]
            host = self.host(others, len(self.pending))
            ask = Ask(sequence.max_length, sequence.missing, self.arrivals[sequence.order], f"r{sequence.order}")
            decision = self.policy.route(ask, self.views(), host, self.now)
            if isinstance(decision, Send):
                target = self.instances[decision.index]
                if target.batcher.fits_alone(sequence.max_length):
                    target.batcher.add(sequence)
                else:
                    self.pending.append(sequence)
            elif isinstance(decision, Reject):
                self.rejected[sequence.order] = decision.reason
                self.unfinished -= 1
            else:
                if isinstance(decision, Merge):
                    self.start([self.instances[i] for i in decision.indices], None)
                elif isinstance(decision, Restart):
                    self.restart = [decision, NEVER, None]
                self.pending.append(sequence)

    def review(self):
        if self.restart is not None or not self.instances:
            return
        instances = list(self.instances)
        for wish in self.policy.review(self.views(), self.host(self.pending, 0), self.now):
            if isinstance(wish, Restart):
                self.restart = [wish, NEVER, None]
            elif isinstance(wish, Split):
                self.start([instances[wish.index]], wish.degrees)
            else:
                self.start([instances[i] for i in wish.indices], None)

    def host(self, waiting, ahead):
        return HostView(self.max_tokens, len(waiting), ahead, sum(s.missing for s in waiting), self.prices)

    def views(self):
        return [self.view(instance) for instance in self.instances]

    def view(self, instance):
        batcher, size, lowest = instance.batcher, self.limits.block_size, min(self.max_tokens.values())
        return InstanceView(
            name=instance.name,
            degree=instance.degree,
            devices=instance.devices,
            max_tokens=instance.max_tokens,
            free_tokens=batcher.allocator.num_free * size,
            running=len(batcher.running),
            waiting=len(batcher.waiting),
            remaining_tokens=sum(sequence.remaining for sequence in batcher),
            longest_tokens=max((sequence.max_length for sequence in batcher), default=0),
            transforming=instance.change is not None,
            prefill_tokens=sum(sequence.missing for sequence in batcher),
            waiting_tokens=sum(sequence.known for sequence in batcher.waiting),
            held_tokens=batcher.allocator.num_held * size,
            long_requests=sum(sequence.max_length > lowest for sequence in batcher),
            becoming=instance.change.after if instance.change is not None else (),
        )

    # -- transformations ----------------------------------------------------------------------------------------------

    def start(self, sources, after):
        after = after or (sum(source.degree for source in sources),)
        if any(source.change is not None for source in sources):
            return
        if len(after) > 1:
            room = max(self.max_tokens[degree] for degree in after)
            if any(sequence.max_length > room for sequence in sources[0].batcher.running):
                return
        going = Going(sources, after)
        self.going.append(going)
        for source in sources:
            source.change, source.held = going, True

    def advance(self, going):
        still = all(source.plan is None for source in going.sources)
        if going.phase == "gather" and still:
            if not self.fits(going):
                self.going.remove(going)
                for source in going.sources:
                    source.change, source.held = None, False
                return
            before = tuple(source.degree for source in going.sources)
            held = [source.batcher.allocator.num_held * self.limits.block_size for source in going.sources]
            going.switch, going.start = self.system.switch(before, going.after, held), self.now
            going.phase = "stop"
            if going.switch.ahead_s:
                going.phase = "ahead"
                self.beside(going, going.sources, going.switch.ahead_s)
                for source in going.sources:
                    if len(going.after) > 1:
                        source.max_tokens = max(self.max_tokens[d] for d in going.after)
        if going.phase == "ahead" and self.over(going, going.sources):
            going.phase, going.until = "stop", NEVER
            for source in going.sources:
                source.held, source.slowdown, source.pace = True, 1.0, None
            still = all(source.plan is None for source in going.sources)
        if going.phase == "stop" and still:
            going.phase, going.until = "pause", self.now + going.switch.pause_s
            if len(going.after) == 1:
                self.replace(going)
                going.results[0].held = True
        if going.phase == "pause" and going.until <= self.now:
            if len(going.after) > 1:
                self.replace(going)
            going.phase = "behind"
            self.beside(going, going.results, going.switch.behind_s)
        if going.phase == "behind" and self.over(going, going.results):
            self.going.remove(going)
            for result in going.results:
                result.slowdown, result.pace, result.change = 1.0, None, None
            self.made.append(("merge" if len(going.after) == 1 else "split", going.start, self.now))
            self.changed = True

    def beside(self, going, serving, seconds):
        pace = going.switch.pace if seconds and len(serving) == 1 else None
        going.until = self.now + seconds if pace is None else NEVER
        for instance in serving:
            instance.held, instance.pace = False, pace
            if pace is not None:
                instance.left = pace.steps
            elif seconds:
                instance.slowdown = going.switch.slowdown

    def over(self, going, serving):
        return going.until <= self.now or any(i.pace is not None and i.left <= 0 for i in serving)

    def watch_pace(self, instance):
        """Where nobody is served, what is left goes by the clock."""
        if instance.pace is None or instance.plan is not None or instance.held:
            return
        going, least = instance.change, instance.pace.least_s
        if not (instance.batcher.running or instance.batcher.waiting):
            if going.until == NEVER:
                going.until = self.now + instance.left * least
        elif going.until != NEVER:
            instance.left, going.until = max(1, math.ceil((going.until - self.now) / least - 1e-6)), NEVER

    def fits(self, going):
        size = self.limits.block_size
        if len(going.after) == 1:
            held = sum(source.batcher.allocator.num_held for source in going.sources)
            return held <= self.max_tokens[going.after[0]] // size
        rooms = [self.max_tokens[degree] // size for degree in going.after]
        return choose_homes(going.sources[0].batcher.running, rooms, size) is not None

    def replace(self, going):
        devices = tuple(sorted(d for source in going.sources for d in source.devices))
        going.results = self.seat(going.after, devices)
        batchers = [source.batcher for source in going.sources]
        if not going.switch.keeps_kv:
            for batcher in batchers:
                while batcher.running:
                    batcher.preempt(batcher.running[-1])
        new = [result.batcher for result in going.results]
        if len(going.after) == 1:
            running = [s for b in batchers for s in b.running]
            new[0].take_over(running, [s for b in batchers for s in b.waiting])
            new[0].allocator.num_free -= sum(len(s.blocks) for s in running)
            while len(new[0].running) > self.limits.max_batch_tokens:
                new[0].preempt(new[0].running[-1])
        else:
            (old,) = batchers
            rooms = [batcher.allocator.total for batcher in new]
            while (homes := choose_homes(old.running, rooms, self.limits.block_size)) is None:
                old.preempt(old.running[-1])
            for index, batcher in enumerate(new):
                own = [s for s in old.running if homes[s] == index]
                batcher.take_over(own, [])
                batcher.allocator.num_free -= sum(len(s.blocks) for s in own)
                while len(batcher.running) > self.limits.max_batch_tokens:
                    batcher.preempt(batcher.running[-1])
            for sequence in old.waiting:
                fitting = [i for i in going.results if i.batcher.fits_alone(sequence.max_length)]
                if fitting:
                    min(fitting, key=lambda i: i.batcher.remaining_tokens / i.degree).batcher.add(sequence)
                else:
                    self.pending.append(sequence)
        for result in going.results:
            result.change = going
        self.instances = [i for i in self.instances if i not in going.sources] + going.results
        self.changed = True

    def advance_restart(self):
        if self.restart is None:
            return
        if not self.restarting:
            if self.going or any(i.batcher.running or i.batcher.waiting for i in self.instances):
                return
            wish, before = self.restart[0], tuple(i.degree for i in self.instances)
            devices = tuple(sorted(d for i in self.instances for d in i.devices))
            self.restart = [wish, self.now + self.system.restart(before, wish.degrees).pause_s, devices]
            self.instances, self.restarted = [], self.now
        if self.restart[1] <= self.now:
            wish, _, devices = self.restart
            self.instances, self.restart, self.changed = self.seat(wish.degrees, devices), None, True
            self.made.append(("restart", self.restarted, self.now))
