"""Step times of a pipeline: p stages, each of them a device, or an instance of a lower degree, with 1/p of the layers.

A step's work is cut into p microbatches, and one of each goes round at a time (Huang et al., "GPipe", NeurIPS 2019, section 2):

    stage 0   | m0 | m1 | m2 | m0'| m1'|        a slot: 1/p of the layers for 1/p of the work,
    stage 1        | m0 | m1 | m2 | m0'|                the overhead of a step, hidden states sent on
    stage 2             | m0 | m1 | m2 |        a step: p slots

So T tokens cost what T/p tokens cost on all layers, with the weights read once a microbatch, p times the overhead of a step and

    p (T/p hidden bytes / link bytes/s + least time of a message)

Microbatches are taken to be equally long: p divides the work of decodes and of prompts alike, a prompt being cut into p
chunks. Then no stage waits while every sequence has its next token to compute (m0' may start when m0 has left the last stage).
``flush``: steps that compute prompts wait until the pipeline is empty, p - 1 slots more (GPipe's bubble).
"""

from __future__ import annotations

import numpy as np

from gyges.sim.cost.analytic import AnalyticCost, causal_pairs
from gyges.sim.cost.base import StepShape


class PipelineCost:
    """Implements :class:`gyges.sim.cost.base.CostModel`. ``stage``: what all layers would cost on the devices of one stage."""

    def __init__(self, stage: AnalyticCost, stages: int, *, flush: bool = False) -> None:
        assert stages > 1, "one stage is no pipeline"
        self.degree, self.stages = stage.degree * stages, stages
        self._stage, self._bubble = stage, (stages - 1) / stages if flush else 0.0
        hw, g = stage.hardware, stage.model.geometry
        self._send_s = g.hidden_size * g.item_size / (hw.link_bytes_per_s * hw.link_efficiency)
        self._message_s, self._overhead_s = hw.all_reduce_s, hw.step_s

    def step_s(self, shape: StepShape) -> float:
        tokens = shape.decodes + sum(chunk for chunk, _ in shape.prefills)
        seconds = (
            self._linear_s(tokens, shape.sampled) + shape.decode_context / self.stages * self._stage.decode_token_s
        )
        if not shape.prefills:
            return seconds
        for chunk, before in shape.prefills:
            seconds += self._stage.attention_s(causal_pairs(chunk, before) / self.stages, before + chunk)
        return seconds * (1.0 + self._bubble)

    def decode_steps_s(self, decodes: int, context: int, longest: int, steps: int) -> np.ndarray:
        contexts = context + decodes * np.arange(steps, dtype=np.int64)
        return self._linear_s(decodes, decodes) + contexts / self.stages * self._stage.decode_token_s

    def _linear_s(self, tokens: int, sampled: int) -> float:
        """All of a step but attention."""
        p = self.stages
        part, sampled = -(-tokens // p), -(-sampled // p)
        slots = p * (part * self._send_s + self._message_s) + (p - 1) * self._overhead_s
        return self._stage.linear_s(part, sampled) + slots
