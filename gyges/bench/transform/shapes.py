"""Whose KV cache and FFN are moved: model shapes, with where each was read, and how they are cut to fit a small machine.

A shape is what config.json says; no weight is needed. The micro-benchmark holds FFN units and KV cache alone: embeddings and
attention projections stay where they are in a transformation. A model cut to fewer layers moves fewer bytes in the same pieces,
except that a block of `shard-pages` holds more tokens, because its page is filled by fewer layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from gyges.config import MIB, format_bytes
from gyges.core import ModelGeometry
from gyges.engine.placement import CUDA_PAGE
from gyges.errors import UserError
from gyges.kv_cache.layouts import LAYOUTS, choose_page_bytes
from gyges.models.config import DecoderConfig
from gyges.models.presets import PRESETS
from gyges.parallel.sharding import ShardCount
from gyges.registry import Registry
from gyges.transform.host import HostShape

_MAX_PAGES = 60_000  # a process may have 65,530 mappings by default, and each page may need one of its own
# Of one device, where the user sets no budget: FFN weights of the layers kept (at least one), and KV cache.
_FFN_BYTES = 600 * MIB
_KV_BYTES, _PRESET_KV_BYTES = 128 * MIB, 32 * MIB


@dataclass(frozen=True, slots=True)
class ModelShape:
    """``source``: hub id of the config.json read, or "preset".   config: its fields that decide about sizes."""

    source: str
    config: Mapping[str, Any]

    @property
    def is_preset(self) -> bool:
        return self.source == "preset"

    @property
    def decoder(self) -> DecoderConfig:
        return DecoderConfig.from_hf(self.config)

    @property
    def geometry(self) -> ModelGeometry:
        """Uncut, in the checkpoint's dtype."""
        return self.decoder.geometry()


SHAPES: Registry[ModelShape] = Registry("model shape")

for _preset, _config in PRESETS.items():
    SHAPES.add(_preset, ModelShape("preset", _config))


def _real(name: str, hub_id: str, model_type: str, **sizes: int) -> None:
    config = {"model_type": model_type, "torch_dtype": "bfloat16", "head_dim": 128, "max_position_embeddings": 4096}
    SHAPES.add(name, ModelShape(hub_id, config | sizes))


_real(
    "llama2-7b", "meta-llama/Llama-2-7b-hf", "llama", hidden_size=4096, intermediate_size=11008, num_hidden_layers=32,
    num_attention_heads=32, num_key_value_heads=32, vocab_size=32000,
)  # fmt: skip
_real(
    "llama3-8b", "meta-llama/Meta-Llama-3-8B", "llama", hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
    num_attention_heads=32, num_key_value_heads=8, vocab_size=128256,
)  # fmt: skip
_real(
    "qwen2.5-32b", "Qwen/Qwen2.5-32B", "qwen2", hidden_size=5120, intermediate_size=27648, num_hidden_layers=64,
    num_attention_heads=40, num_key_value_heads=8, vocab_size=152064,
)  # fmt: skip
_real(
    "qwen3-32b", "Qwen/Qwen3-32B", "qwen3", hidden_size=5120, intermediate_size=25600, num_hidden_layers=64,
    num_attention_heads=64, num_key_value_heads=8, vocab_size=151936,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sizing:
    """Devices on which every layout, with padding and without, can be compared. ``model``: cut to the layers that fit."""

    model: ModelGeometry
    page_bytes: int
    device_pages: int

    def host(self, degree: int, layout: str, *, padding: bool) -> HostShape:
        """``degree`` devices that are TP1 instances or one instance. Whatever never moves is left out."""
        return HostShape(
            model=self.model,
            resident=(),
            degrees=(1, degree),
            layout=LAYOUTS.get(layout),
            padding=padding,
            page_bytes=self.page_bytes,
            device_pages=self.device_pages,
            num_devices=degree,
        )


def sizing(name: str, degree: int, *, page_bytes: int = 0, device_memory: int = 0) -> Sizing:
    """How shape ``name`` is cut, and on what devices it runs. Bytes; 0 chooses: 2 MiB pages (presets: as the engine does), and a
    budget that leaves the KV cache at least 128 MiB (presets: 32). Raises UserError where nothing fits."""
    shape = SHAPES.get(name)
    whole = shape.geometry
    shards = ShardCount.for_degrees(whole, (1, degree))
    page = page_bytes or (choose_page_bytes(whole, shards.kv) if shape.is_preset else CUDA_PAGE)
    layer_bytes = 3 * whole.hidden_size * whole.intermediate_size * whole.item_size
    budget = device_memory // 2 or (whole.num_layers * layer_bytes if shape.is_preset else _FFN_BYTES)
    layers = max(1, min(whole.num_layers, budget // layer_bytes))
    cut = replace(whole, num_layers=layers)
    hosts = [
        Sizing(cut, page, 1).host(degree, layout, padding=padding)
        for layout in LAYOUTS.names()
        for padding in (True, False)
    ]
    if device_memory:
        pages = device_memory // page
        need = max(host.needed_pages(d) for host in hosts for d in host.degrees)
        if pages < need:
            raise UserError(
                f"one layer of {name} and a piece of KV cache need {format_bytes(need * page)} on a device, and "
                f"{format_bytes(device_memory)} were given: raise --device-memory, or leave {name} out of --models"
            )
    else:
        kv = (_PRESET_KV_BYTES if shape.is_preset else _KV_BYTES) // page
        pages = max(host.weight_pages(1) + host.reserve_pages for host in hosts) + kv
    if pages > _MAX_PAGES:
        raise UserError(
            f"a device of {format_bytes(pages * page)} has {pages} pages of {format_bytes(page)} for {name}; pages that move one "
            f"by one are limited to {_MAX_PAGES}: give a larger --page-size or a smaller --device-memory"
        )
    return Sizing(cut, page, pages)
