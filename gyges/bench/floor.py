"""The least time that a set of requests could take on a machine: its FLOPs and its bytes, over measured rates.

The physics. Every token that a decoder processes is multiplied with every matrix of every layer: 2 FLOPs (a multiply and
an add) per parameter. It also attends to all tokens before it and to itself: a dot product and a weighted sum over
head_dim for each of them, 4 FLOPs per (query head, context token, dim). The LM head is needed only where a token is
sampled. No batching, caching or scheduling removes any of that, so

    compute_s = FLOPs / GEMM rate

Memory is different: it depends on the batch. A step that decodes 64 sequences reads the weights once for all of them, so
the best that any schedule can do is to run all requests together, and then the number of steps is the longest output.
Each decode step also reads the K and V of every context that it extends. So

    bytes    = steps x weight bytes  +  KV read by decode steps  +  KV written once per processed token
    memory_s = bytes / copy rate

and the floor is the larger of the two: at best, one hides completely behind the other. With P prompt and n output tokens
a request processes P + n - 1 tokens (the last sampled one is never fed back), its first token comes out of the prefill,
and decode step s = 1 .. n - 1 reads P + s tokens of context. What a prefill reads of its own K and V is left out (it may
come from registers), as are activations, norms, softmax and sampling.

Both rates are measured in the same run on all cores: the best of two large fp32 matrix products, and a copy between two
buffers that no cache holds (bytes read + bytes written). They are not laws of nature. A product of 64 rows, which is what
decoding needs, reaches less than a large one, so a share of 100 % is out of reach; where weights fit a large last-level
cache they are read faster than a copy runs, so ``memory_s`` alone may be undercut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gyges.core import ModelGeometry


@dataclass(frozen=True, slots=True)
class Cost:
    """What a set of requests needs, whoever serves it. FLOPs, bytes, and steps in which all requests run together."""

    linear_flops: int
    attention_flops: int
    lm_head_flops: int
    weight_bytes: int
    kv_read_bytes: int
    kv_write_bytes: int
    steps: int

    @property
    def flops(self) -> int:
        return self.linear_flops + self.attention_flops + self.lm_head_flops

    @property
    def bytes(self) -> int:
        return self.weight_bytes + self.kv_read_bytes + self.kv_write_bytes

    def to_dict(self) -> dict[str, int]:
        names = ("linear_flops", "attention_flops", "lm_head_flops", "flops")
        names += ("weight_bytes", "kv_read_bytes", "kv_write_bytes", "bytes", "steps")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True)
class Floor:
    """Seconds."""

    compute_s: float
    memory_s: float

    @property
    def time_s(self) -> float:
        return max(self.compute_s, self.memory_s)

    @property
    def bound(self) -> str:
        """ "compute" or "memory"."""
        return "compute" if self.compute_s >= self.memory_s else "memory"


def layer_parameters(g: ModelGeometry) -> int:
    """Parameters of the matrices of one layer: q, k, v, o, gate, up, down. Norms and biases are left out."""
    q = g.num_heads * g.head_dim
    kv = g.num_kv_heads * g.head_dim
    return g.hidden_size * (2 * q + 2 * kv) + 3 * g.hidden_size * g.intermediate_size


def cost_of(lengths: Sequence[tuple[int, int]], g: ModelGeometry) -> Cost:
    """``lengths``: (prompt, output) tokens of each request, both at least 1."""
    matrices = g.num_layers * layer_parameters(g)
    head = g.vocab_size * g.hidden_size
    processed = sum(prompt + output - 1 for prompt, output in lengths)
    sampled = sum(output for _, output in lengths)
    # Sum over a request's tokens of the context that each attends to: 1 + 2 + ... + (P + n - 1).
    contexts = sum(_triangle(prompt + output - 1) for prompt, output in lengths)
    # The part of it that decode steps attend to: (P + 1) + ... + (P + n - 1).
    decode_contexts = sum(_triangle(prompt + output - 1) - _triangle(prompt) for prompt, output in lengths)
    steps = max((output for _, output in lengths), default=0)
    return Cost(
        linear_flops=2 * matrices * processed,
        attention_flops=4 * contexts * g.num_heads * g.head_dim * g.num_layers,
        lm_head_flops=2 * head * sampled,
        weight_bytes=steps * (matrices + head) * g.item_size,
        kv_read_bytes=decode_contexts * g.kv_bytes_per_token,
        kv_write_bytes=processed * g.kv_bytes_per_token,
        steps=steps,
    )


def floor_of(cost: Cost, gemm_flops_per_s: float, copy_bytes_per_s: float) -> Floor:
    """Raises nothing; both rates are positive."""
    return Floor(cost.flops / gemm_flops_per_s, cost.bytes / copy_bytes_per_s)


def _triangle(n: int) -> int:
    return n * (n + 1) // 2
