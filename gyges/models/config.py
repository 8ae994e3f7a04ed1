"""What a decoder is, read from a Hugging Face config.json. No torch here.

One :class:`DecoderConfig` describes every architecture: they differ in a few switches (which biases, whether queries
and keys are normalised). An architecture is one function from config.json to those switches, entered in
``ARCHITECTURES`` under its ``model_type``. What this engine does not compute is refused here, by the name of the field,
before a weight is read: a model that loads and answers wrongly is worse than one that does not load.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gyges.core import ModelGeometry
from gyges.errors import UnknownNameError, UserError
from gyges.models.rope import RopeConfig
from gyges.registry import Registry

ITEM_SIZES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """A dense decoder: embedding, ``num_layers`` x (RMSNorm, attention, RMSNorm, gated SiLU FFN), RMSNorm, LM head.

    max_position: longest sequence, in tokens.   tied_embeddings: the LM head is the embedding.
    qkv_bias, o_bias, mlp_bias: which projections have one.   qk_norm: RMSNorm over each head of q and k, before rope.
    dtype: "float32" or "bfloat16", what ``auto`` means for this checkpoint. A float16 checkpoint says "float32":
        every fp16 value fits there exactly, and not in bf16.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope: RopeConfig
    max_position: int
    tied_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    eos_token_ids: tuple[int, ...]
    dtype: str

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"num_attention_heads = {self.num_heads} is not a multiple of num_key_value_heads = {self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise UserError(f"head_dim must be even for rotary embeddings, got {self.head_dim}")
        if self.dtype not in ITEM_SIZES:
            raise UnknownNameError("dtype", self.dtype, ITEM_SIZES)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> DecoderConfig:
        """Reads the mapping that a config.json holds.

        Raises UserError, naming the field, for an unknown ``model_type`` (the known ones are listed), a missing or
        malformed field, or a feature that this engine does not compute.
        """
        model_type = config.get("model_type")
        if not isinstance(model_type, str):
            raise UserError(
                f"config.json has no model_type; supported: {', '.join(sorted(ARCHITECTURES.names()))}. "
                "Is this the folder of a Hugging Face language model?"
            )
        return ARCHITECTURES.get(model_type)(config)

    def geometry(self, dtype: str = "auto") -> ModelGeometry:
        """The sizes that planners need. ``dtype``: "float32", "bfloat16", or "auto" for the checkpoint's own."""
        dtype = self.dtype if dtype == "auto" else dtype
        if dtype not in ITEM_SIZES:
            raise UnknownNameError("dtype", dtype, ITEM_SIZES)
        return ModelGeometry(
            num_layers=self.num_layers,
            hidden_size=self.hidden_size,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            intermediate_size=self.intermediate_size,
            vocab_size=self.vocab_size,
            item_size=ITEM_SIZES[dtype],
            tied_embeddings=self.tied_embeddings,
        )


ARCHITECTURES: Registry[Callable[[Mapping[str, Any]], DecoderConfig]] = Registry("model architecture")


@ARCHITECTURES.register("llama")
def _llama(config: Mapping[str, Any]) -> DecoderConfig:
    """Llama 2 and 3.x, SmolLM2 and others that share the shape. One ``attention_bias`` for q, k, v and o."""
    _refuse_set(config, "sliding_window")
    bias = _flag(config, "attention_bias", False)
    heads = _count(config, "num_attention_heads")
    return _dense(
        config,
        num_kv_heads=_count(config, "num_key_value_heads", default=heads),
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=_flag(config, "mlp_bias", False),
        qk_norm=False,
        default_eos=2,
    )


@ARCHITECTURES.register("qwen2")
def _qwen2(config: Mapping[str, Any]) -> DecoderConfig:
    """Qwen2 and Qwen2.5: q, k, v always have a bias, o and the FFN never."""
    _refuse_sliding_window(config)
    if config.get("attention_bias") not in (None, True):
        raise UserError(f"attention_bias = {config['attention_bias']!r} on model_type 'qwen2': its q, k, v have a bias")
    _refuse_set(config, "mlp_bias")
    return _dense(
        config,
        num_kv_heads=_count(config, "num_key_value_heads"),
        qkv_bias=True,
        o_bias=False,
        mlp_bias=False,
        qk_norm=False,
    )


@ARCHITECTURES.register("qwen3")
def _qwen3(config: Mapping[str, Any]) -> DecoderConfig:
    """Qwen3 dense: RMSNorm on the heads of q and k; ``head_dim`` is its own (128 unless said), not hidden / heads."""
    _refuse_sliding_window(config)
    _refuse_set(config, "mlp_bias")
    bias = _flag(config, "attention_bias", False)
    return _dense(
        config,
        num_kv_heads=_count(config, "num_key_value_heads"),
        head_dim=_count(config, "head_dim", default=128),
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=False,
        qk_norm=True,
    )


def _dense(
    config: Mapping[str, Any],
    *,
    num_kv_heads: int,
    qkv_bias: bool,
    o_bias: bool,
    mlp_bias: bool,
    qk_norm: bool,
    head_dim: int | None = None,
    default_eos: int | None = None,
) -> DecoderConfig:
    """The part that all architectures share. ``head_dim`` None: the file's, else hidden size / heads."""
    _refuse_set(config, "quantization_config", "load the unquantised checkpoint")
    for name in ("num_experts", "num_local_experts", "n_routed_experts", "moe_intermediate_size"):
        _refuse_set(config, name, "mixtures of experts are not supported")
    if (activation := config.get("hidden_act", "silu")) not in ("silu", "swish"):
        raise UserError(f"hidden_act = {activation!r} is not supported; supported: silu")

    hidden, heads = _count(config, "hidden_size"), _count(config, "num_attention_heads")
    if head_dim is None:
        if config.get("head_dim") is None and hidden % heads:
            raise UserError(f"hidden_size = {hidden} is not a multiple of num_attention_heads = {heads}; set head_dim")
        head_dim = _count(config, "head_dim", default=hidden // heads)
    rope = RopeConfig.from_hf(config)
    max_position = _count(config, "max_position_embeddings")
    if rope.rope_type == "yarn" and rope.factor and rope.original_max_position:
        # Turned on by adding rope_scaling to config.json, yarn leaves max_position_embeddings as it was (Qwen2.5).
        max_position = max(max_position, int(rope.original_max_position * rope.factor))
    eps = config.get("rms_norm_eps", 1e-6)
    if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 <= eps < 1:
        raise UserError(f"rms_norm_eps must be a small positive number, got {eps!r}")
    return DecoderConfig(
        architecture=config["model_type"],
        vocab_size=_count(config, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=_count(config, "intermediate_size"),
        num_layers=_count(config, "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        rms_norm_eps=float(eps),
        rope=rope,
        max_position=max_position,
        tied_embeddings=_flag(config, "tie_word_embeddings", False),
        qkv_bias=qkv_bias,
        o_bias=o_bias,
        mlp_bias=mlp_bias,
        qk_norm=qk_norm,
        eos_token_ids=token_ids(config.get("eos_token_id", default_eos), "eos_token_id"),
        dtype=_dtype(config),
    )


def token_ids(value: Any, field: str) -> tuple[int, ...]:
    """config.json writes one id, a list of ids, or null."""
    ids = () if value is None else tuple(value) if isinstance(value, list | tuple) else (value,)
    if any(isinstance(i, bool) or not isinstance(i, int) or i < 0 for i in ids):
        raise UserError(f"{field} must be a token id or a list of them, got {value!r}")
    return ids


def _count(config: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = config.get(name)
    value = default if value is None else value
    if value is None:
        raise UserError(f"config.json of model_type {config.get('model_type')!r} has no {name}")
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{name} must be a positive integer, got {value!r}")
    return value


def _flag(config: Mapping[str, Any], name: str, default: bool) -> bool:
    value = config.get(name)
    value = default if value is None else value
    if not isinstance(value, bool):
        raise UserError(f"{name} = {value!r} is not understood; expected true or false")
    return value


def _refuse_set(config: Mapping[str, Any], name: str, remedy: str = "") -> None:
    if config.get(name):
        raise UserError(f"{name} = {config[name]!r} is not supported" + (f": {remedy}" if remedy else ""))


def _refuse_sliding_window(config: Mapping[str, Any]) -> None:
    """Qwen files carry a window that is mostly switched off; only an active one is refused."""
    if layer_types := config.get("layer_types"):
        if other := sorted({str(kind) for kind in layer_types} - {"full_attention"}):
            raise UserError(f"layer_types has {', '.join(other)}; supported: full_attention")
    elif config.get("use_sliding_window") and config.get("sliding_window", 4096) is not None:
        first = config.get("max_window_layers", 28)
        if first < _count(config, "num_hidden_layers"):
            raise UserError(
                f"use_sliding_window = true from layer {first} (max_window_layers) is not supported: "
                "every layer here attends to the whole context"
            )


def _dtype(config: Mapping[str, Any]) -> str:
    """``dtype`` (newer files) or ``torch_dtype``; a file without either holds fp32."""
    name = config.get("dtype") or config.get("torch_dtype") or "float32"
    name = str(name).removeprefix("torch.")
    if name == "float16":
        return "float32"
    if name not in ITEM_SIZES:
        raise UserError(f"dtype = {name!r} in config.json is not supported; supported: float32, bfloat16, float16")
    return name
