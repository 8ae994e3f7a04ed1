"""Step times from a roofline: each operator takes the longer of its arithmetic and its memory traffic. No measurement needed.

Per layer, for T tokens at TP degree d (Williams et al., "Roofline", CACM 2009, with efficiencies as in hardware/*.yaml):

    projections, FFN   max(2 T parameters / d / FLOP/s, bytes of the weights touched / d / bytes/s)
    attention          decode: bytes of the KV cache read;  prefill: max(4 heads head_dim pairs / d / FLOP/s, KV bytes)
    2 all-reduces      2 (d - 1) / d x T hidden bytes / link bytes/s, and a least time each       (Megatron-LM, section 3)
    layer_s            small kernels

Once per step: the LM head of the sequences that sample, ``step_s``. In a mixture of experts a token goes through k of E experts;
T tokens touch E (1 - (1 - k / E)^T) of them, as if chosen at random.
"""

from __future__ import annotations

import numpy as np

from gyges.errors import UserError
from gyges.sim.cost.base import StepShape
from gyges.sim.hardware import Hardware
from gyges.sim.models import SimModel


class AnalyticCost:
    """Implements :class:`gyges.sim.cost.base.CostModel`. Raises UserError for a degree that the model cannot take."""

    def __init__(self, model: SimModel, hardware: Hardware, degree: int = 1) -> None:
        g = model.geometry
        if reason := g.tp_degree_error(degree):
            raise UserError(f"{model.name} cannot run at TP{degree}: {reason}")
        self.degree, self.model, self.hardware = degree, model, hardware
        self._flops = hardware.flops_of(g.item_size) * hardware.compute_efficiency * degree  # of the instance
        self._bytes = hardware.memory_bytes_per_s * hardware.memory_efficiency  # of a device
        self._kv_s = model.kv_bytes_per_token(degree) / self._bytes  # one token of context read, all layers
        self._decode_flops_s = g.num_layers * 4 * g.num_heads * g.head_dim / self._flops
        # Of a decode, for each token of its context, all layers.
        self.decode_token_s = max(self._kv_s, self._decode_flops_s)
        self._linear: dict[tuple[int, int], float] = {}

    def step_s(self, shape: StepShape) -> float:
        tokens = shape.decodes + sum(chunk for chunk, _ in shape.prefills)
        seconds = self.linear_s(tokens, shape.sampled) + shape.decode_context * self.decode_token_s
        for chunk, before in shape.prefills:
            seconds += self.attention_s(causal_pairs(chunk, before), before + chunk)
        return seconds

    def decode_steps_s(self, decodes: int, context: int, longest: int, steps: int) -> np.ndarray:
        contexts = context + decodes * np.arange(steps, dtype=np.int64)
        return self.linear_s(decodes, decodes) + contexts * self.decode_token_s

    # -- parts, of which other cost models are made -----------------------------------------------------------------------

    def linear_s(self, tokens: int, sampled: int) -> float:
        """All of a step but attention: projections, FFN, all-reduces, LM head, overheads."""
        key = tokens, sampled
        if (known := self._linear.get(key)) is None:
            known = self._linear[key] = self._compute_linear_s(tokens, sampled)
        return known

    def attention_s(self, pairs: float, keys: float) -> float:
        """Attention of a chunk, all layers. ``pairs``: of query and key; ``keys``: tokens whose K and V are read once."""
        return max(pairs * self._decode_flops_s, keys * self._kv_s)

    def _compute_linear_s(self, tokens: int, sampled: int) -> float:
        m, g, hw = self.model, self.model.geometry, self.hardware
        touched = m.experts * (1.0 - (1.0 - m.active_experts / m.experts) ** tokens) if m.experts > 1 else 1.0
        ffn_share, ffn_active = touched / m.experts, m.active_experts / m.experts
        layer = self._gemm_s(tokens, m.attention_parameters, 1.0)
        layer += self._gemm_s(tokens * ffn_active, m.ffn_parameters, ffn_share)
        layer += hw.layer_s
        if self.degree > 1:
            sent = 2 * (self.degree - 1) / self.degree * tokens * g.hidden_size * g.item_size
            layer += 2 * (hw.all_reduce_s + sent / (hw.link_bytes_per_s * hw.link_efficiency))
        return g.num_layers * layer + self._gemm_s(sampled, m.vocab_parameters, 1.0 if sampled else 0.0) + hw.step_s

    def _gemm_s(self, tokens: float, parameters: int, share_read: float) -> float:
        read = parameters * share_read * self.model.geometry.item_size / self.degree
        return max(2 * tokens * parameters / self._flops, read / self._bytes)


def causal_pairs(chunk: int, before: int) -> float:
    """Pairs of query and key when a chunk attends to itself, causally, and to the tokens before it."""
    return chunk * before + chunk * (chunk + 1) / 2
