"""Rotary position embeddings: what a config.json says of them, and the tables that follow. torch only inside functions.

A rope type is one function from (config, head size, longest position) to inverse frequencies, entered in ``ROPE_TYPES``
with the settings it cannot do without. Every function repeats the arithmetic of transformers operation by operation, in
fp32 through torch, because the comparison that matters (same tokens as transformers) is a comparison of bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gyges.errors import UserError
from gyges.registry import Registry

if TYPE_CHECKING:
    import numpy as np
    import torch

DEFAULT_THETA = 10_000.0


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary settings, whichever way config.json spelt them. A setting that ``rope_type`` does not use is None.

    theta: base of the wavelengths.   factor: how far the context was stretched.
    original_max_position: tokens before stretching (llama3, yarn).   low/high_freq_factor: llama3.
    attention_factor, beta_fast, beta_slow, mscale, mscale_all_dim, truncate: yarn.
    """

    rope_type: str = "default"
    theta: float = DEFAULT_THETA
    factor: float | None = None
    original_max_position: int | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    attention_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> RopeConfig:
        """Reads ``rope_theta`` + ``rope_scaling`` (older files) or ``rope_parameters`` (newer ones) of a config.json.

        Raises UserError, naming the field, for a type that is not registered, a missing or malformed setting, partial
        rotary embeddings, multimodal sections, and settings that differ by layer.
        """
        # Where a file has both, transformers lets rope_scaling win; so do we.
        field = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
        settings = config.get(field) or {}
        if not isinstance(settings, Mapping):
            raise UserError(f"{field} must be a mapping, got {settings!r}")
        nested = [key for key, value in settings.items() if isinstance(value, Mapping)]
        if nested:
            raise UserError(
                f"{field} differs by layer type ({', '.join(nested)}); one setting for all layers is supported"
            )
        for holder, where in ((settings, f"{field}.partial_rotary_factor"), (config, "partial_rotary_factor")):
            partial = holder.get("partial_rotary_factor")
            if partial is not None and partial != 1:
                raise UserError(f"{where} = {partial!r} is not supported: only whole heads are rotated")
        if settings.get("mrope_section"):
            raise UserError(f"{field}.mrope_section is not supported: positions here are one-dimensional")

        rope_type = settings.get("rope_type") or settings.get("type") or "default"
        kind = ROPE_TYPES.get(rope_type)

        def number(name: str, default: float | None = None, at_least: float = 0.0) -> float | None:
            value = settings.get(name)
            if value is None:
                return default
            if isinstance(value, bool) or not isinstance(value, int | float) or not at_least <= value < math.inf:
                raise UserError(f"{field}.{name} must be a number of at least {at_least:g}, got {value!r}")
            return float(value)

        theta = settings.get("rope_theta")
        theta = config.get("rope_theta") if theta is None else theta
        theta = DEFAULT_THETA if theta is None else theta
        if isinstance(theta, bool) or not isinstance(theta, int | float) or not 1 < theta < math.inf:
            raise UserError(f"rope_theta must be a number above 1, got {theta!r}")

        # A file that saves the length before stretching beside the rope settings means that one (transformers again).
        original = config.get("original_max_position_embeddings") or settings.get("original_max_position_embeddings")
        original = original or config.get("max_position_embeddings")
        if original is not None and (isinstance(original, bool) or not isinstance(original, int) or original < 1):
            raise UserError(f"{field}.original_max_position_embeddings must be a positive integer, got {original!r}")

        factor = number("factor", at_least=1.0)
        longest = config.get("max_position_embeddings")
        if factor is None and rope_type == "yarn" and "factor" in settings and isinstance(longest, int) and original:
            factor = longest / original
        values: dict[str, Any] = {
            "factor": factor,
            "original_max_position": original,
            "low_freq_factor": number("low_freq_factor"),
            "high_freq_factor": number("high_freq_factor"),
            "attention_factor": number("attention_factor"),
            "beta_fast": number("beta_fast"),
            "beta_slow": number("beta_slow"),
            "mscale": number("mscale"),
            "mscale_all_dim": number("mscale_all_dim"),
            "truncate": bool(settings.get("truncate", True)),
        }
        for name in kind.needs:
            if values[name] is None:
                spelt = "original_max_position_embeddings" if name == "original_max_position" else name
                raise UserError(f"{field} of type {rope_type!r} needs {spelt}, which is missing")
        rope = cls(rope_type, float(theta), **{name: values[name] for name in (*kind.needs, *kind.may_use)})
        if rope_type == "llama3" and not 0 < rope.low_freq_factor < rope.high_freq_factor:  # type: ignore[operator]
            raise UserError(
                f"{field}: low_freq_factor must be positive and below high_freq_factor, "
                f"got {rope.low_freq_factor} and {rope.high_freq_factor}"
            )
        return rope


Frequencies = Callable[[RopeConfig, int, int], "tuple[torch.Tensor, float]"]


@dataclass(frozen=True, slots=True)
class RopeType:
    """``frequencies(rope, head_dim, max_position)`` gives (fp32 [head_dim/2], attention scaling)."""

    frequencies: Frequencies
    needs: tuple[str, ...] = ()
    may_use: tuple[str, ...] = ()


ROPE_TYPES: Registry[RopeType] = Registry("rope type")


def _register(
    name: str, needs: tuple[str, ...] = (), may_use: tuple[str, ...] = ()
) -> Callable[[Frequencies], Frequencies]:
    def enter(function: Frequencies) -> Frequencies:
        ROPE_TYPES.add(name, RopeType(function, needs, may_use))
        return function

    return enter


def _needed(*settings: float | None) -> list[float]:
    """Settings that :meth:`RopeConfig.from_hf` made sure of."""
    given = [value for value in settings if value is not None]
    assert len(given) == len(settings), "a rope lacks a setting that its type needs"
    return given


def _wavelength_powers(theta: float, head_dim: int) -> torch.Tensor:
    import torch

    return theta ** (torch.arange(0, head_dim, 2, dtype=torch.int64).to(torch.float32) / head_dim)


@_register("default")
def _default(rope: RopeConfig, head_dim: int, max_position: int) -> tuple[torch.Tensor, float]:
    return 1.0 / _wavelength_powers(rope.theta, head_dim), 1.0


@_register("linear", needs=("factor",))
def _linear(rope: RopeConfig, head_dim: int, max_position: int) -> tuple[torch.Tensor, float]:
    (factor,) = _needed(rope.factor)
    return 1.0 / _wavelength_powers(rope.theta, head_dim) / factor, 1.0


@_register("dynamic", needs=("factor",))
def _dynamic(rope: RopeConfig, head_dim: int, max_position: int) -> tuple[torch.Tensor, float]:
    """NTK scaling that starts beyond ``max_position``. Up to there it changes nothing, and there is where we stop: past
    it every cached key would have to be rotated anew at each length. The stretch is computed, so that its rounding
    (1 + a few 1e-16) is transformers' too."""
    (factor,) = _needed(rope.factor)
    stretch = (factor * max_position / max_position) - (factor - 1)
    return 1.0 / _wavelength_powers(rope.theta * stretch ** (head_dim / (head_dim - 2)), head_dim), 1.0


@_register("llama3", needs=("factor", "original_max_position", "low_freq_factor", "high_freq_factor"))
def _llama3(rope: RopeConfig, head_dim: int, max_position: int) -> tuple[torch.Tensor, float]:
    """Long wavelengths are divided by ``factor``, short ones kept, those between blended."""
    import torch

    factor, original = _needed(rope.factor, rope.original_max_position)
    low, high = _needed(rope.low_freq_factor, rope.high_freq_factor)
    inverse = 1.0 / _wavelength_powers(rope.theta, head_dim)
    wavelength = 2 * math.pi / inverse
    longest_kept, shortest_scaled = original / high, original / low
    scaled = torch.where(wavelength > shortest_scaled, inverse / factor, inverse)
    blend = (original / wavelength - low) / (high - low)
    blended = (1 - blend) * scaled / factor + blend * scaled
    between = ~(wavelength < longest_kept) & ~(wavelength > shortest_scaled)
    return torch.where(between, blended, scaled), 1.0


@_register(
    "yarn",
    needs=("factor", "original_max_position"),
    may_use=("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
)
def _yarn(rope: RopeConfig, head_dim: int, max_position: int) -> tuple[torch.Tensor, float]:
    """Interpolates the slow dimensions, keeps the fast ones, ramps between, and scales attention (arXiv 2309.00071)."""
    import torch

    factor, original = _needed(rope.factor, rope.original_max_position)

    def magnitude(scale: float, weight: float = 1) -> float:
        return 1.0 if scale <= 1 else 0.1 * weight * math.log(scale) + 1.0

    attention = rope.attention_factor
    if attention is None:
        if rope.mscale and rope.mscale_all_dim:
            attention = float(magnitude(factor, rope.mscale) / magnitude(factor, rope.mscale_all_dim))
        else:
            attention = magnitude(factor)

    def dimension_of(rotations: float) -> float:
        return (head_dim * math.log(original / (rotations * 2 * math.pi))) / (2 * math.log(rope.theta))

    low, high = dimension_of(rope.beta_fast or 32), dimension_of(rope.beta_slow or 1)
    if rope.truncate:
        low, high = float(math.floor(low)), float(math.ceil(high))
    low, high = max(low, 0), min(high, head_dim - 1)
    high = high + 0.001 if low == high else high
    ramp = torch.clamp((torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low), 0, 1)

    powers = _wavelength_powers(rope.theta, head_dim)
    kept = 1 - ramp
    return 1.0 / (factor * powers) * (1 - kept) + 1.0 / powers * kept, attention


def inverse_frequencies(rope: RopeConfig, head_dim: int, max_position: int) -> tuple[np.ndarray, float]:
    """Inverse frequencies, float32 [head_dim / 2], and the factor on cos and sin (1.0 except for yarn).

    Bit for bit what transformers computes on the CPU for the same config.json. ``max_position`` is the model's
    ``max_position_embeddings``. Raises UnknownNameError for a type that is not registered.
    """
    assert head_dim % 2 == 0, f"rotary embeddings pair up dimensions; head_dim {head_dim} is odd"
    frequencies, scaling = ROPE_TYPES.get(rope.rope_type).frequencies(rope, head_dim, max_position)
    return frequencies.numpy(), scaling


def cos_sin_table(
    rope: RopeConfig, head_dim: int, max_position: int, positions: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin for positions 0 .. ``positions`` - 1 (default: all), each float32 [positions, head_dim/2].

    The attention scaling is multiplied in. transformers repeats the same columns twice, [positions, head_dim]; column
    j here is its columns j and j + head_dim/2. Raises UserError for a dynamic rope beyond ``max_position``.
    """
    import torch

    positions = max_position if positions is None else positions
    if rope.rope_type == "dynamic" and positions > max_position:
        raise UserError(
            f"rope type 'dynamic' beyond max_position_embeddings = {max_position} is not supported "
            f"(asked for {positions} positions); lower the context, or use a checkpoint with yarn or llama3 scaling"
        )
    frequencies, scaling = inverse_frequencies(rope, head_dim, max_position)
    angles = torch.arange(positions, dtype=torch.float32)[:, None] * torch.from_numpy(frequencies)
    return (angles.cos() * scaling).numpy(), (angles.sin() * scaling).numpy()
