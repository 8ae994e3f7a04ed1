"""Seesaw (Su et al., arXiv 2503.06433, MLSys 2025; no code is known).

The model is re-sharded through host memory: weights are reloaded from there, KV cache goes there and back.

    KV room, step    those of tensor parallelism
    change           pause: KV cache out, KV cache in, the new shards of the weights in, each at the rate of a device's host
                     link

Assumptions, beside the figures of the hardware file:
- Every device has a host link of its own, and host memory keeps up with all of them. This is in its favour.
- Nothing goes on meanwhile, and in and out do not overlap, since a shard is complete only when all devices have written
  theirs. The paper overlaps KV copies with the prefill before and the decodes behind, which an online server has no phases for.
- All of the new shard is reloaded, also what the device has of it, as the paper describes.
- The paper re-shards between a prefill phase in pipeline and a decode phase in tensor parallelism, offline. Here only the
  mechanism is taken, as the Gyges paper does in its comparison: TP instances merge and split, policy ``gyges``.
"""

from __future__ import annotations

from collections.abc import Sequence

from gyges.sim.system import SYSTEMS, BaseSystem, Switch, SystemSpec
from gyges.sim.systems.exchange import check_switch
from gyges.sim.systems.sources import Source, described


class Seesaw(BaseSystem):
    """Instances of d devices are TP instances."""

    def switch(self, before: tuple[int, ...], after: tuple[int, ...], held_tokens: Sequence[int]) -> Switch:
        check_switch(self.name, before, after, self.degrees)
        costs, model = self.hardware.transform, self.model
        devices, held = sum(before), sum(held_tokens)
        out = [
            own * model.kv_bytes_per_token(d) for own, d in zip(held_tokens, before, strict=True)
        ]  # of one device each
        dealt = [(held * d / devices, d) for d in after]
        back = [own * model.kv_bytes_per_token(d) for own, d in dealt]
        weights = [model.weight_bytes(d) for d in after]
        parts = {
            "weights": max(weights) / costs.host_bytes_per_s,
            "kv": (max(out) + max(back)) / costs.host_bytes_per_s,
            "communicator": costs.communicator_s,
            "sync": 3 * costs.sync_s,
        }
        moved = sum(d * each for d, each in zip(before, out, strict=True))
        moved += sum(d * (kv + shard) for d, kv, shard in zip(after, back, weights, strict=True))
        return Switch(pause_s=sum(parts.values()), parts=parts, bytes_moved=round(moved))


@SYSTEMS.register("seesaw")
@described(Source("Seesaw", "2503.06433", "", "re-sharded through host memory, everything waits"))
def seesaw(spec: SystemSpec) -> Seesaw:
    """See the module."""
    degrees = spec.fitting
    costs = {d: spec.cost_of(d) for d in degrees}
    return Seesaw("seesaw", spec.model, spec.hardware, degrees, costs, {d: spec.capacity(d) for d in degrees}, "gyges")
