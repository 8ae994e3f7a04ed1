"""Flying Serving (Gao et al., arXiv 2602.22593, ICS 2026; code: Picomp-lab/Flying-Serving).

Every device keeps all weights. In tensor parallelism it uses a view of its shard; communicators for all groups exist from the
start.

    KV room of d devices    that of one device beside all weights, d times: heads are cut, weights are not
    step                    that of tensor parallelism
    change                  pause: 15 ms, whatever is there

Assumptions, beside the figures of the hardware file:
- 15 ms is what the paper reports for 8 H200. The README of its code measures 0.2 to 1.0 s from the wish to a merge and up to 3
  s to a split, of which the devices differ by 10 ms at most; most of the rest is serving on in the old way. The first is taken.
- Requests under way are computed anew after a change, as its code does by default (``hard-preempt``). The paper's KV cache
  adaptor keeps blocks for requests that go on in the layout they came from; ``+keep=on`` keeps all, at no cost.
- GEMMs on views are as fast as on shards (its mode ``reorder``), and CUDA graphs are used as everywhere in this harness,
  though its code needs eager mode.
- When to change: policy ``by-load``; the paper switches at set numbers of requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gyges.sim.system import SYSTEMS, BaseSystem, Switch, SystemSpec
from gyges.sim.systems.exchange import check_switch, groups_of
from gyges.sim.systems.sources import Source, described

SWITCH_S = 15e-3  # the paper's abstract of its evaluation: live switch on 8 H200


@dataclass
class Flying(BaseSystem):
    """Instances of d devices are TP instances. ``keep``: requests under way keep their KV cache."""

    keep: bool = False

    def switch(self, before: tuple[int, ...], after: tuple[int, ...], held_tokens: Sequence[int]) -> Switch:
        check_switch(self.name, before, after, self.degrees)
        return Switch(pause_s=SWITCH_S, parts={"sync": SWITCH_S}, keeps_kv=self.keep)


@SYSTEMS.register("flying")
@described(
    Source("Flying Serving", "2602.22593", "Picomp-lab/Flying-Serving", "TP as views of whole weights, nothing moves")
)
def flying(spec: SystemSpec, *, keep: bool = False, tp: float = 0) -> Flying:
    """See the module. ``keep``: requests under way keep their KV cache.   tp: of a member; 0: the lowest possible."""
    groups, model = groups_of(spec, tp), spec.model
    room = spec.capacity(groups.base) * model.kv_bytes_per_token(groups.base)  # bytes of a device
    return Flying(
        "flying",
        model,
        spec.hardware,
        groups.degrees,
        {d: spec.cost_of(d) for d in groups.degrees},
        groups.rooms(lambda d: room // model.kv_bytes_per_token(d)),
        "by-load",
        keep=keep,
    )
