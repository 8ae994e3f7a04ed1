"""The slow reference of the simulator: the engine's own Batcher, one step at a time, nothing skipped."""

from dataclasses import dataclass, field

from gyges.scheduling.batching import Batcher, Sequence
from gyges.scheduling.routing import Ask, HostView, InstanceView, Send
from gyges.sim.pipelined import shape_of


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


class Stepwise:
    """``times``: of every token, by request; ``seen``: what the policy saw at each arrival."""

    def __init__(self, degrees, costs, kv_tokens, limits, policy):
        self.degrees, self.costs, self.limits, self.policy = degrees, costs, limits, policy
        self.batchers = [Batcher(limits, Blocks(kv_tokens[d] // limits.block_size)) for d in degrees]
        self.host = HostView({d: kv_tokens[d] // limits.block_size * limits.block_size for d in degrees})
        self.times, self.preemptions, self.admitted, self.rejected = {}, {}, {}, set()

    def run(self, requests):
        under_way = [None] * len(self.batchers)  # (end, plan)
        arrived, owner = 0, {}
        while arrived < len(requests) or any(under_way):
            due = [requests[arrived].arrival_s] if arrived < len(requests) else []
            now = min(due + [each[0] for each in under_way if each])
            for index, batcher in enumerate(self.batchers):
                if under_way[index] and under_way[index][0] == now:
                    for sequence in batcher.advance(under_way[index][1]):
                        self.times.setdefault(sequence.order, []).append(now)
                        if sequence.sampled == sequence.max_tokens:
                            batcher.finish(sequence)
                            self.preemptions[sequence.order] = sequence.preemptions
                    under_way[index] = None
            while arrived < len(requests) and requests[arrived].arrival_s == now:
                request = requests[arrived]
                sequence = Sequence(arrived, request.prompt_tokens, request.output_tokens, known=request.prompt_tokens)
                ask = Ask(sequence.max_length, request.prompt_tokens, now, f"r{arrived}")
                decision = self.policy.route(ask, [self.view(i) for i in range(len(self.batchers))], self.host, now)
                if isinstance(decision, Send):
                    self.batchers[decision.index].add(sequence)
                    owner[arrived] = decision.index
                else:
                    self.rejected.add(arrived)
                arrived += 1
            for index, batcher in enumerate(self.batchers):
                if under_way[index] is None and (plan := batcher.schedule()):
                    for sequence in plan.admitted:
                        self.admitted.setdefault(sequence.order, now)
                    under_way[index] = (now + self.costs[self.degrees[index]].step_s(shape_of(plan)), plan)
        return self.times

    def view(self, index):
        batcher, size = self.batchers[index], self.limits.block_size
        return InstanceView(
            name=f"i{index}",
            degree=self.degrees[index],
            devices=tuple(range(sum(self.degrees[:index]), sum(self.degrees[: index + 1]))),
            max_tokens=batcher.allocator.total * size,
            free_tokens=0,
            running=len(batcher.running),
            waiting=len(batcher.waiting),
            remaining_tokens=sum(sequence.remaining for sequence in batcher),
            longest_tokens=max((sequence.max_length for sequence in batcher), default=0),
        )
