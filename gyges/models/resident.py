"""Which weights every worker holds whole, by name and shape. Torch-free: planners and the simulator need the sizes."""

from __future__ import annotations

from gyges.models.config import DecoderConfig
from gyges.parallel.sharding import ShardCount


def resident_shapes(config: DecoderConfig, shards: ShardCount) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of what every worker holds whole; per layer prefixed ``"{layer}."``."""
    c, d = config.hidden_size, config.head_dim
    q, kv = config.num_heads * d, config.num_kv_heads * d
    per_shard = kv // shards.kv
    shapes: list[tuple[str, tuple[int, ...]]] = [("embed", (config.vocab_size, c)), ("norm", (c,))]
    if not config.tied_embeddings:
        shapes.append(("lm_head", (config.vocab_size, c)))
    for layer in range(config.num_layers):
        own: list[tuple[str, tuple[int, ...]]] = [
            ("input_norm", (c,)),
            ("post_norm", (c,)),
            ("wq", (q, c)),
            ("wkv", (shards.kv, 2, per_shard, c)),
            ("wo", (c, q)),  # a range of heads is a range of columns
        ]
        if config.qkv_bias:
            own += [("bq", (q,)), ("bkv", (shards.kv, 2, per_shard))]
        if config.o_bias:
            own.append(("bo", (c,)))
        if config.mlp_bias:
            own += [("b_gate", (config.intermediate_size,)), ("b_up", (config.intermediate_size,)), ("b_down", (c,))]
        if config.qk_norm:
            own += [("q_norm", (d,)), ("k_norm", (d,))]
        shapes += [(f"{layer}.{name}", shape) for name, shape in own]
    return shapes
