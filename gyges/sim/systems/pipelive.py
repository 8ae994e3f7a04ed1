"""PipeLive (Bai et al., arXiv 2604.12171; no code is known).

Layers change places between the stages of a pipeline while it runs. KV cache is copied ahead, what was written meanwhile is
patched in further rounds, as a virtual machine is migrated live; the last patch is all that serving waits for.

    KV room, step    as KunServe's: pipelines with one copy of the weights
    change           ahead: layers and KV cache copied, both ways of having them in memory.   pause: the last patch, stages
                     agree

The last patch is taken to be the KV cache that one step writes, of ``PATCH_TOKENS`` tokens, spread over the stages.

Assumptions, beside the figures of the hardware file:
- The paper moves layers between a fixed number of stages of unequal devices. Here, where devices are alike, instances become
  pipelines of more or fewer stages: the same mechanism, another use. Which: policy ``gyges``.
- Pipelines never run empty, as for KunServe.
- Layers that a device lacks come from its peers, over the link.
"""

from __future__ import annotations

from collections.abc import Sequence

from gyges.sim.system import SYSTEMS, BaseSystem, Switch, SystemSpec
from gyges.sim.systems.exchange import check_switch, groups_of, kv_exchange, weights_to_gather
from gyges.sim.systems.kunserve import pipeline_kv_tokens, pipelines
from gyges.sim.systems.sources import Source, described

PATCH_TOKENS = 256  # decodes of a step, vLLM's default max_num_seqs


class PipeLive(BaseSystem):
    """Instances of d devices are pipelines of d / base stages."""

    def switch(self, before: tuple[int, ...], after: tuple[int, ...], held_tokens: Sequence[int]) -> Switch:
        check_switch(self.name, before, after, self.degrees)
        costs = self.hardware.transform
        token = self.model.geometry.kv_bytes_per_token
        kv = kv_exchange(before, after, held_tokens, token)
        weights = weights_to_gather(before, after, self.model.weight_bytes())
        written = min(PATCH_TOKENS, sum(held_tokens)) * token / sum(before)
        parts = {
            "weights": weights.worst / costs.copy_bytes_per_s,
            "kv": kv.worst / costs.copy_bytes_per_s,
            "patch": written / costs.copy_bytes_per_s,
            "communicator": costs.communicator_s,
            "sync": 2 * costs.sync_s,
        }
        beside_s = parts["weights"] + parts["kv"]
        return Switch(
            pause_s=parts["patch"] + parts["communicator"] + parts["sync"],
            ahead_s=beside_s,
            slowdown=1 + costs.beside if beside_s else 1.0,
            parts=parts,
            bytes_moved=round(kv.total + weights.total + written * sum(before)),
            extra_bytes=round(kv.received + weights.received),
        )


@SYSTEMS.register("pipelive")
@described(Source("PipeLive", "2604.12171", "", "layers move between pipeline stages while they run"))
def pipelive(spec: SystemSpec, *, tp: float = 0) -> PipeLive:
    """See the module. ``tp``: of a stage; 0: the lowest possible."""
    groups = groups_of(spec, tp)
    costs = pipelines(groups, "pipelive")
    return PipeLive("pipelive", spec.model, spec.hardware, groups.degrees, costs, pipeline_kv_tokens(groups), "gyges")
