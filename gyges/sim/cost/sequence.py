"""Step times of sequence parallelism: all devices have all weights, and each computes 1/p of the tokens.

Projections and FFN, for T tokens on p members: those of T/p tokens on one of them, no less than reading all weights takes. The
members differ in how attention sees the whole context:

    RingCost      the KV cache of a request lies over the members by tokens (Ring Attention, Liu et al., arXiv 2310.01889;
                  LoongServe, arXiv 2404.09526, section 4). Prompts: K and V go round, (p - 1)/p of their bytes over every
                  member's link, while attention computes; the longer of both counts. Decodes: a member sends the queries of
                  its T/p tokens to the p - 1 others and gets as many partial outputs back, in two exchanges a layer of at
                  least ``all_reduce_s`` each; bytes are hidden behind attention as far as that takes.
    UlyssesCost   the KV cache lies over the members by heads, as in tensor parallelism (DeepSpeed Ulysses, Jacobs et al., arXiv
                  2309.14509). Two all-to-alls a layer: q, k and v to their heads, the output back, of T/p tokens each.
"""

from __future__ import annotations

import numpy as np

from gyges.sim.cost.analytic import AnalyticCost, causal_pairs
from gyges.sim.cost.base import StepShape


class RingCost:
    """Implements :class:`gyges.sim.cost.base.CostModel`. ``member``: what all of the work would cost on one of them."""

    def __init__(self, member: AnalyticCost, members: int) -> None:
        assert members > 1, "one member has nobody to send to"
        self.degree, self.members = member.degree * members, members
        self._member = member
        hw, model = member.hardware, member.model
        g = model.geometry
        link = hw.link_bytes_per_s * hw.link_efficiency
        others = members - 1
        # Seconds of the link: of a token of context that goes round, and of a decoded token's queries and partial outputs.
        self._round_s = others / members * model.kv_bytes_per_token(member.degree) / link
        self._query_s = g.num_layers * others * 2 * g.num_heads * g.head_dim / member.degree * g.item_size / link
        self._exchanges_s = g.num_layers * 2 * hw.all_reduce_s

    def step_s(self, shape: StepShape) -> float:
        p = self.members
        tokens = shape.decodes + sum(chunk for chunk, _ in shape.prefills)
        seconds = self._linear_s(tokens, shape.sampled)
        if shape.decodes:
            attention = shape.decode_context / p * self._member.decode_token_s
            seconds = seconds + self._exchanges_s + max(attention, self._decode_link_s(shape.decodes))
        for chunk, before in shape.prefills:
            attention = self._member.attention_s(causal_pairs(chunk, before) / p, before + chunk)
            seconds += max(attention, (before + chunk) * self._round_s)
        return seconds

    def decode_steps_s(self, decodes: int, context: int, longest: int, steps: int) -> np.ndarray:
        contexts = context + decodes * np.arange(steps, dtype=np.int64)
        attention = contexts / self.members * self._member.decode_token_s
        linear = self._linear_s(decodes, decodes) + self._exchanges_s
        return linear + np.maximum(attention, self._decode_link_s(decodes))

    def _linear_s(self, tokens: int, sampled: int) -> float:
        return self._member.linear_s(-(-tokens // self.members), -(-sampled // self.members))

    def _decode_link_s(self, decodes: int) -> float:
        return -(-decodes // self.members) * self._query_s


class UlyssesCost:
    """Implements :class:`gyges.sim.cost.base.CostModel`. ``member``: what all of the work would cost on one of them.

    heads: the cost of tensor parallelism over all devices, whose attention this is.
    """

    def __init__(self, member: AnalyticCost, heads: AnalyticCost) -> None:
        self.degree, self.members = heads.degree, heads.degree // member.degree
        assert self.members > 1, "one member has nobody to send to"
        self._member, self._heads = member, heads
        hw, g = member.hardware, member.model.geometry
        width = (2 * g.num_heads + 2 * max(g.num_kv_heads, self.degree)) * g.head_dim / member.degree
        sent = (self.members - 1) / self.members * width * g.item_size
        self._token_s = g.num_layers * sent / (hw.link_bytes_per_s * hw.link_efficiency)
        self._exchanges_s = g.num_layers * 2 * hw.all_reduce_s

    def step_s(self, shape: StepShape) -> float:
        tokens = shape.decodes + sum(chunk for chunk, _ in shape.prefills)
        seconds = self._linear_s(tokens, shape.sampled) + shape.decode_context * self._heads.decode_token_s
        for chunk, before in shape.prefills:
            seconds += self._heads.attention_s(causal_pairs(chunk, before), before + chunk)
        return seconds

    def decode_steps_s(self, decodes: int, context: int, longest: int, steps: int) -> np.ndarray:
        contexts = context + decodes * np.arange(steps, dtype=np.int64)
        return self._linear_s(decodes, decodes) + contexts * self._heads.decode_token_s

    def _linear_s(self, tokens: int, sampled: int) -> float:
        part = -(-tokens // self.members)
        return self._member.linear_s(part, -(-sampled // self.members)) + part * self._token_s + self._exchanges_s
