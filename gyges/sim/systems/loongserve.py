"""LoongServe (Wu et al., arXiv 2404.09526, SOSP 2024; code: LoongServe/LoongServe).

Every instance keeps all weights. Instances form groups from iteration to iteration; a group computes by sequence parallelism,
and its KV cache lies over the members token by token, wherever there is room.

    KV room of a group    the sum of the members'
    step                  gyges.sim.cost.sequence.RingCost
    change                pause: the members agree. Nothing moves: in the prefill, K and V come round to every member anyway,
                          which keeps what it is to have afterwards (section 4.1); in the decode phase, new members take new
                          tokens (section 4.2)

Assumptions, beside the figures of the hardware file:
- Communicators exist for all groups (its code uses point-to-point calls).
- After a split a request's tokens lie where they are needed. That holds of those whose prompts were computed by the group; of
  others that decoded there some would have to move. This is in its favour; ``+reactive=on`` moves those on devices that leave,
  KV cache lying evenly over the group.
- Prompts go in chunks of the token budget as everywhere in this harness. LoongServe computes them whole; its KV cache then
  goes round once, here once for every chunk, mostly hidden behind attention.
- Requests that decode on instances which join a prefill go on in the group, where the paper migrates them.
- Who goes where: policy ``elastic``; in place of its dynamic program, a prompt gets a device for every 4,096 tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gyges.sim.cost.base import CostModel
from gyges.sim.cost.sequence import RingCost
from gyges.sim.system import SYSTEMS, BaseSystem, Switch, SystemSpec
from gyges.sim.systems.exchange import Moved, analytic_cost, check_switch, groups_of, kv_exchange
from gyges.sim.systems.sources import Source, described


@dataclass
class LoongServe(BaseSystem):
    """Instances of d devices are groups of d / base members. ``reactive``: a split moves KV cache."""

    reactive: bool = False

    def switch(self, before: tuple[int, ...], after: tuple[int, ...], held_tokens: Sequence[int]) -> Switch:
        check_switch(self.name, before, after, self.degrees)
        costs = self.hardware.transform
        kv = Moved()
        if self.reactive and len(after) > 1:
            kv = kv_exchange(before, after, held_tokens, self.model.geometry.kv_bytes_per_token)
        parts = {"kv": kv.worst / costs.copy_bytes_per_s, "sync": 2 * costs.sync_s}
        return Switch(pause_s=parts["kv"] + parts["sync"], parts=parts, bytes_moved=round(kv.total))


@SYSTEMS.register("loongserve")
@described(
    Source("LoongServe", "2404.09526", "LoongServe/LoongServe", "sequence parallelism by iteration, weights stay")
)
def loongserve(spec: SystemSpec, *, reactive: bool = False, tp: float = 0) -> LoongServe:
    """See the module. ``reactive``: a split moves the KV cache of what decoded in the group.   tp: of a member; 0: the lowest
    possible."""
    groups = groups_of(spec, tp)
    member = analytic_cost(spec, "loongserve", groups.base)
    costs: dict[int, CostModel] = {
        d: RingCost(member, d // groups.base) if d > groups.base else member for d in groups.degrees
    }
    one = spec.capacity(groups.base)
    return LoongServe(
        "loongserve",
        spec.model,
        spec.hardware,
        groups.degrees,
        costs,
        groups.rooms(lambda d: d // groups.base * one),
        "elastic",
        reactive=reactive,
    )
