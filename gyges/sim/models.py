"""What the simulator knows of a model: sizes only, from config.json; no weights, no network for the known ones. Torch-free."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gyges.core import ModelGeometry
from gyges.errors import UserError
from gyges.models.config import DecoderConfig
from gyges.sim.hardware import Hardware
from gyges.sim.known_models import ALIASES, KNOWN_MODELS, SUFFIXES

_MIXTURE_FIELDS = ("num_experts", "num_experts_per_tok", "moe_intermediate_size")


@dataclass(frozen=True, slots=True)
class SimModel:
    """A decoder as cost models see it. Lengths in elements.

    geometry: its ``intermediate_size`` is the FFN rows of all experts together, what lies in memory.
    experts, active_experts: of a mixture, in each layer, and those that one token goes through; both 1 if dense.
    """

    name: str
    geometry: ModelGeometry
    max_position: int
    experts: int = 1
    active_experts: int = 1

    @property
    def attention_parameters(self) -> int:
        """Of one layer: the projections q, k, v, o."""
        g = self.geometry
        return g.hidden_size * g.head_dim * 2 * (g.num_heads + g.num_kv_heads)

    @property
    def ffn_parameters(self) -> int:
        """Of one layer, all experts: gate, up, down."""
        return 3 * self.geometry.hidden_size * self.geometry.intermediate_size

    @property
    def vocab_parameters(self) -> int:
        """The embedding (and as many for the LM head, unless tied)."""
        return self.geometry.vocab_size * self.geometry.hidden_size

    def weight_bytes(self, degree: int = 1) -> float:
        """Of one device of an instance of this TP degree: everything but norms, sharded evenly, vocabulary too (as vLLM does)."""
        g = self.geometry
        vocab = self.vocab_parameters * (1 if g.tied_embeddings else 2)
        return (g.num_layers * (self.attention_parameters + self.ffn_parameters) + vocab) * g.item_size / degree

    def kv_bytes_per_token(self, degree: int = 1) -> int:
        """K and V of one token on one device of an instance; KV heads are replicated beyond one a device."""
        g = self.geometry
        return 2 * g.num_layers * max(g.num_kv_heads // degree, 1) * g.head_dim * g.item_size


def sim_model(name: str, dtype: str = "auto") -> SimModel:
    """A known hub id, a preset ("tiny"), a folder with config.json, or another hub id (its config.json is fetched).

    dtype: "auto" (what config.json says), "bfloat16" or "float32". Raises UserError as :func:`gyges.models.hub.resolve_model`.
    """
    config = known_config(name)
    if config is None and (folder := Path(os.path.expanduser(name))).is_dir() and (folder / "config.json").is_file():
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{folder / 'config.json'} is not valid JSON ({error})") from error
    if config is not None:
        return from_hf(name, config, dtype)
    from gyges.models.hub import resolve_model

    try:
        resolved = resolve_model(name, weights=False)
    except UserError as error:
        raise UserError(f"{error}. Known without network: {', '.join(sorted(KNOWN_MODELS))}") from error
    return SimModel(name, resolved.config.geometry(dtype), resolved.config.max_position)


def known_config(name: str) -> dict[str, Any] | None:
    """What config.json of a known hub id holds, as far as sizes go; None for others."""
    return KNOWN_MODELS.get(_base(name))


def _base(name: str) -> str:
    name = ALIASES.get(name, name)
    if name in KNOWN_MODELS:
        return name
    for suffix in SUFFIXES:
        short = name.removesuffix(suffix)
        if short != name:
            return ALIASES.get(short, short)
    return name


def from_hf(name: str, config: Mapping[str, Any], dtype: str = "auto") -> SimModel:
    """A dense decoder that the engine knows, or a Qwen3 mixture of experts, from what config.json holds."""
    if config.get("model_type") != "qwen3_moe":
        decoder = DecoderConfig.from_hf(config)
        return SimModel(name, decoder.geometry(dtype), decoder.max_position)
    experts, active, rows = (_size(name, config, field) for field in _MIXTURE_FIELDS)
    if config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1:
        raise UserError(f"config.json of {name}: dense layers between mixtures (mlp_only_layers) are not simulated")
    dense = {key: value for key, value in config.items() if key not in _MIXTURE_FIELDS}
    decoder = DecoderConfig.from_hf({**dense, "model_type": "qwen3", "intermediate_size": experts * rows})
    return SimModel(name, decoder.geometry(dtype), decoder.max_position, experts, active)


def _size(name: str, config: Mapping[str, Any], field: str) -> int:
    value = config.get(field)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"config.json of {name}: {field} must be a positive integer, got {value!r}")
    return value


def memory_budget(hardware: Hardware) -> float:
    """Bytes of a device for weights and KV cache."""
    return hardware.memory_bytes * hardware.memory_utilization - hardware.reserve_bytes


def kv_capacity_tokens(model: SimModel, hardware: Hardware, degree: int) -> int:
    """Tokens that the KV cache of an instance holds in the memory that is left over.

    Per device: ``memory_bytes * memory_utilization - reserve_bytes - weights / degree``. Raises UserError where nothing is left.
    """
    if reason := model.geometry.tp_degree_error(degree):
        raise UserError(f"{model.name} cannot run at TP{degree}: {reason}")
    budget = memory_budget(hardware)
    weights = model.weight_bytes(degree)
    tokens = int((budget - weights) // model.kv_bytes_per_token(degree))
    if tokens < 1:
        needed = -(-model.weight_bytes(1) // budget)
        raise UserError(
            f"{model.name} does not fit {hardware.name} at TP{degree}: weights take {weights / 1e9:.1f} GB of the "
            f"{budget / 1e9:.1f} GB that a device has for them and the KV cache; at least {needed:.0f} devices are needed"
        )
    return tokens
