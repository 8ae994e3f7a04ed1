"""The decoder's weights as views of a worker's weight pages, and how they get there.

Attention projections, embeddings, norms and the LM head are whole on every worker and used through views; FFN matrices are
held shard by shard (gyges.parallel.weight_layout). Legend: V vocab, C hidden, H query heads, S KV shards, P KV heads per
shard, D head_dim, R FFN rows of a shard.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gyges.memory.base import AddressRange
from gyges.models.config import DecoderConfig
from gyges.models.source import TensorSource
from gyges.parallel.weight_layout import ResidentLayout


@dataclass(slots=True)
class FFNShard:
    """One unit: gate_up [2R, C], down [C, R]."""

    rows: range
    gate_up: torch.Tensor
    down: torch.Tensor


@dataclass(slots=True)
class LayerWeights:
    tensors: dict[str, torch.Tensor]  # by the short names of models.resident
    ffn: list[FFNShard]  # those held here, by shard


@dataclass(slots=True)
class DecoderWeights:
    embed: torch.Tensor  # [V, C]
    lm_head: torch.Tensor  # [V, C]; the same memory where tied
    norm: torch.Tensor  # [C]
    layers: list[LayerWeights]


def view_weights(
    config: DecoderConfig, layout: ResidentLayout, where: AddressRange, dtype: torch.dtype
) -> DecoderWeights:
    """Views into mapped pages; nothing is read or written. FFN shards are added by :func:`view_ffn`."""
    tensors = {name: where.tensor(dtype, shape, offset) for name, (offset, shape) in layout.tensors.items()}
    layers = []
    for layer in range(config.num_layers):
        prefix = f"{layer}."
        own = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        layers.append(LayerWeights(own, []))
    return DecoderWeights(tensors["embed"], tensors.get("lm_head", tensors["embed"]), tensors["norm"], layers)


def view_ffn(where: AddressRange, offset: int, rows: range, hidden_size: int, dtype: torch.dtype) -> FFNShard:
    """The unit that starts ``offset`` bytes into the range."""
    r, c = len(rows), hidden_size
    gate_up = where.tensor(dtype, (2 * r, c), offset)
    return FFNShard(rows, gate_up, where.tensor(dtype, (c, r), offset + 2 * r * c * dtype.itemsize))


def load_weights(weights: DecoderWeights, config: DecoderConfig, source: TensorSource) -> None:
    """Reads each tensor (or the part of it held here) once, straight into place."""
    source.read("model.embed_tokens.weight", weights.embed)
    source.read("model.norm.weight", weights.norm)
    if not config.tied_embeddings:
        source.read("lm_head.weight", weights.lm_head)
    for index, layer in enumerate(weights.layers):
        _load_attention(f"model.layers.{index}.", layer, source)
    load_ffn(weights, source)


def load_ffn(weights: DecoderWeights, source: TensorSource) -> None:
    """The FFN shards held here, straight into place."""
    for index, layer in enumerate(weights.layers):
        prefix = f"model.layers.{index}.mlp."
        for shard in layer.ffn:
            rows = slice(shard.rows.start, shard.rows.stop)
            r = len(shard.rows)
            source.read(prefix + "gate_proj.weight", shard.gate_up[:r], rows=rows)
            source.read(prefix + "up_proj.weight", shard.gate_up[r:], rows=rows)
            source.read(prefix + "down_proj.weight", shard.down, cols=rows)


def _load_attention(prefix: str, layer: LayerWeights, source: TensorSource) -> None:
    own = layer.tensors
    plain = {
        "input_norm": "input_layernorm.weight",
        "post_norm": "post_attention_layernorm.weight",
        "wq": "self_attn.q_proj.weight",
        "wo": "self_attn.o_proj.weight",
        "bq": "self_attn.q_proj.bias",
        "bo": "self_attn.o_proj.bias",
        "q_norm": "self_attn.q_norm.weight",
        "k_norm": "self_attn.k_norm.weight",
        "b_gate": "mlp.gate_proj.bias",
        "b_up": "mlp.up_proj.bias",
        "b_down": "mlp.down_proj.bias",
    }
    for short, name in plain.items():
        if short in own:
            source.read(prefix + name, own[short])
    per_shard = own["wkv"].shape[2]
    for shard in range(own["wkv"].shape[0]):
        rows = slice(shard * per_shard, (shard + 1) * per_shard)
        for which, name in enumerate(("k_proj", "v_proj")):
            source.read(f"{prefix}self_attn.{name}.weight", own["wkv"][shard, which], rows=rows)
            if "bkv" in own:
                source.read(f"{prefix}self_attn.{name}.bias", own["bkv"][shard, which], rows=rows)
