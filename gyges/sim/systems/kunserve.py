"""KunServe (Cheng et al., arXiv 2412.18169, EuroSys 2026; code: SJTU-IPADS/kunserve).

When KV memory runs out, instances drop the layers that they hold twice, and serve as the stages of one pipeline. Once less
than half of the KV cache is used they pull the layers back.

    KV room of d devices    d times a device's memory less *one* copy of the weights; token by token of all layers, L/d of them
                            a device
    step                    gyges.sim.cost.pipeline
    drop                    pause: pages remapped, stages agree.   behind: KV cache exchanged, so that each stage has its
                            layers'
    restore                 ahead: layers and KV cache fetched from peers.   pause: as above

Assumptions, beside the figures of the hardware file:
- Remapping takes 5 ms, as the paper reports for its A800 (section 4.1); its code uses the same CUDA calls as this project.
- Requests whose KV cache is being exchanged go on, a little slower. In the paper they stall meanwhile, 1 to 2 s over 200
  Gbit/s and accordingly less over NVLink; new ones do not. This is in its favour.
- Microbatches are equally long (its lookahead batches), so that a pipeline is never empty. ``+flush=on``: drained in each step
  that computes prompts, as without lookahead and with nothing queued.
- Groups grow by the smallest other instance (its greedy plan), to sizes that TP could take as well (2, 4, 8). Who goes where:
  policy ``pressure``, least work first, where the paper takes Llumnix's dispatcher.
"""

from __future__ import annotations

from collections.abc import Sequence

from gyges.sim.cost.base import CostModel
from gyges.sim.cost.pipeline import PipelineCost
from gyges.sim.system import SYSTEMS, BaseSystem, Switch, SystemSpec
from gyges.sim.systems.exchange import (
    Groups,
    analytic_cost,
    check_switch,
    groups_of,
    kv_exchange,
    weights_to_gather,
)
from gyges.sim.systems.sources import Source, described

REMAP_S = 5e-3  # section 4.1


class KunServe(BaseSystem):
    """Instances of d devices are pipelines of d / base stages."""

    def switch(self, before: tuple[int, ...], after: tuple[int, ...], held_tokens: Sequence[int]) -> Switch:
        check_switch(self.name, before, after, self.degrees)
        costs = self.hardware.transform
        kv = kv_exchange(before, after, held_tokens, self.model.geometry.kv_bytes_per_token)
        weights = weights_to_gather(before, after, self.model.weight_bytes())
        parts = {
            "weights": weights.worst / costs.copy_bytes_per_s,
            "kv": kv.worst / costs.copy_bytes_per_s,
            "map": REMAP_S,
            "communicator": costs.communicator_s,
            "sync": 2 * costs.sync_s,
        }
        beside_s = parts["weights"] + parts["kv"]
        merging = len(after) == 1
        return Switch(
            pause_s=parts["map"] + parts["communicator"] + parts["sync"],
            ahead_s=0.0 if merging else beside_s,
            behind_s=beside_s if merging else 0.0,
            slowdown=1 + costs.beside if beside_s else 1.0,
            parts=parts,
            bytes_moved=round(kv.total + weights.total),
        )


def pipelines(groups: Groups, name: str, *, flush: bool = False) -> dict[int, CostModel]:
    """Costs by devices: one member as it is, pipelines of several."""
    base = analytic_cost(groups.spec, name, groups.base)
    return {d: PipelineCost(base, d // groups.base, flush=flush) if d > groups.base else base for d in groups.degrees}


def pipeline_kv_tokens(groups: Groups) -> dict[int, int]:
    """Tokens by devices. A group of n members has the room of n and the memory of n - 1 copies of the weights."""
    spec, one = groups.spec, groups.spec.capacity(groups.base)
    copy = spec.model.weight_bytes() / spec.model.geometry.kv_bytes_per_token  # the tokens in whose place a copy lies
    return groups.rooms(lambda d: d // groups.base * one + int((d // groups.base - 1) * copy))


@SYSTEMS.register("kunserve")
@described(
    Source("KunServe", "2412.18169", "SJTU-IPADS/kunserve", "replicated layers dropped, groups run as pipelines")
)
def kunserve(spec: SystemSpec, *, flush: bool = False, tp: float = 0) -> KunServe:
    """See the module. ``flush``: pipelines drain in steps that compute prompts.   tp: of a stage; 0: the lowest possible."""
    groups = groups_of(spec, tp)
    costs = pipelines(groups, "kunserve", flush=flush)
    return KunServe(
        "kunserve", spec.model, spec.hardware, groups.degrees, costs, pipeline_kv_tokens(groups), "pressure"
    )
