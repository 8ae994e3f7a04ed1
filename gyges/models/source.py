"""Where weights come from: a checkpoint on disk, or a seed. torch and safetensors are imported where they are used.

The engine never holds a second copy of a model's weights: it owns views into device memory and asks a source to fill
them, slice by slice (:meth:`TensorSource.read`). Names and shapes are those of the Hugging Face checkpoint, whatever
layout the engine keeps; :func:`tensor_shapes` is the list of them.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from gyges.errors import UserError
from gyges.models.config import DecoderConfig
from gyges.registry import Registry

if TYPE_CHECKING:
    import torch

EMBEDDING, LM_HEAD = "model.embed_tokens.weight", "lm_head.weight"
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_STORED_DTYPES = ("F64", "F32", "F16", "BF16")


class TensorSource(Protocol):
    """Tensors by their Hugging Face names. Not shared between threads; each worker process opens its own."""

    def names(self) -> list[str]:
        """Every tensor that can be read. With tied embeddings ``lm_head.weight`` may be absent."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Raises UserError if there is no tensor ``name``."""

    def read(self, name: str, out: torch.Tensor, rows: slice | None = None, cols: slice | None = None) -> None:
        """Copies ``tensor[rows, cols]`` into ``out``, converting to its dtype, and keeps nothing of it.

        ``out`` has the shape of the slice; it may be strided or transposed, and on any device. ``rows`` and ``cols``
        have step 1 and None takes all; a vector (a norm or a bias) has only rows. Raises UserError if there is no
        ``name``.
        """


def tensor_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Every weight of ``config`` by Hugging Face name, in a fixed order; linear weights are [out, in].

    ``lm_head.weight`` is left out where it is the embedding.
    """
    hidden, ffn = config.hidden_size, config.intermediate_size
    q_rows, kv_rows = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocab_size, hidden)}
    linears = (
        ("self_attn.q_proj", (q_rows, hidden), config.qkv_bias),
        ("self_attn.k_proj", (kv_rows, hidden), config.qkv_bias),
        ("self_attn.v_proj", (kv_rows, hidden), config.qkv_bias),
        ("self_attn.o_proj", (hidden, q_rows), config.o_bias),
        ("mlp.gate_proj", (ffn, hidden), config.mlp_bias),
        ("mlp.up_proj", (ffn, hidden), config.mlp_bias),
        ("mlp.down_proj", (hidden, ffn), config.mlp_bias),
    )
    for layer in range(config.num_layers):
        at = f"model.layers.{layer}."
        shapes[at + "input_layernorm.weight"] = (hidden,)
        for name, shape, bias in linears:
            shapes[f"{at}{name}.weight"] = shape
            if bias:
                shapes[f"{at}{name}.bias"] = shape[:1]
        if config.qk_norm:
            shapes[at + "self_attn.q_norm.weight"] = shapes[at + "self_attn.k_norm.weight"] = (config.head_dim,)
        shapes[at + "post_attention_layernorm.weight"] = (hidden,)
    shapes["model.norm.weight"] = (hidden,)
    if not config.tied_embeddings:
        shapes[LM_HEAD] = (config.vocab_size, hidden)
    return shapes


def _ranges(
    name: str, shape: tuple[int, ...], out: torch.Tensor, rows: slice | None, cols: slice | None
) -> tuple[slice, ...]:
    """``rows`` and ``cols`` as plain start:stop over ``shape``, checked against ``out``."""
    asked = (rows, cols)[: len(shape)]
    assert len(shape) == 2 or (len(shape) == 1 and cols is None), f"{name} {list(shape)} has no columns to slice"
    ranges = []
    for part, size in zip(asked, shape, strict=True):
        start, stop, step = (part or slice(None)).indices(size)
        assert step == 1, f"{name}: slices have step 1, got {part}"
        ranges.append(slice(start, max(start, stop)))
    sizes = tuple(part.stop - part.start for part in ranges)
    assert tuple(out.shape) == sizes, f"{name}: the slice is {sizes} but out is {tuple(out.shape)}"
    return tuple(ranges)


class CheckpointSource:
    """A folder with ``model.safetensors``, or shards and ``model.safetensors.index.json``.

    Files are mapped, not read: a slice touches only its own bytes. With ``config``, opening also checks that every
    tensor of the model is there in the right shape and that no tensor of its layers is left over (a bias or a scale
    that this engine would silently ignore). Raises UserError naming the file or tensor.
    """

    def __init__(self, folder: str | Path, config: DecoderConfig | None = None) -> None:
        self.folder = Path(folder)
        self._files: dict[str, Any] = {}
        self._file_of = self._find_tensors()
        if config is not None:
            self._check(config)

    def names(self) -> list[str]:
        return list(self._file_of)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._slice(name).get_shape())

    def read(self, name: str, out: torch.Tensor, rows: slice | None = None, cols: slice | None = None) -> None:
        """See :meth:`TensorSource.read`. Raises UserError also for a stored dtype that is not a plain float."""
        stored = self._slice(name)
        ranges = _ranges(name, tuple(stored.get_shape()), out, rows, cols)
        if (dtype := stored.get_dtype()) not in _STORED_DTYPES:
            raise UserError(f"{name} in {self.folder} is stored as {dtype}; supported: {', '.join(_STORED_DTYPES)}")
        if out.numel():
            out.copy_(stored[ranges])

    def close(self) -> None:
        """Unmaps the files. Reading again maps them again."""
        self._files.clear()

    def _find_tensors(self) -> dict[str, str]:
        """Tensor name -> file name."""
        folder = self.folder
        if (folder / _SINGLE).is_file():
            return dict.fromkeys(self._open(_SINGLE).keys(), _SINGLE)
        if (folder / _INDEX).is_file():
            try:
                file_of = json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"]
                assert isinstance(file_of, dict)
            except (ValueError, KeyError, TypeError, AssertionError) as error:
                raise UserError(f"{folder / _INDEX} is not a safetensors index ({error!r}); fetch it again") from error
            missing = sorted({file for file in file_of.values() if not (folder / file).is_file()})
            if missing:
                raise UserError(
                    f"{folder} lacks {', '.join(missing)}, which {_INDEX} names: "
                    "the checkpoint is incomplete; download it again"
                )
            return file_of
        if not folder.is_dir():
            raise UserError(f"there is no checkpoint folder {folder}")
        found = sorted(p.name for pattern in ("*.bin", "*.pth", "*.pt", "*.gguf") for p in folder.glob(pattern))
        held = f" (it has {', '.join(found[:3])}; convert them with save_pretrained)" if found else ""
        raise UserError(f"{folder} has neither {_SINGLE} nor {_INDEX}{held}")

    def _open(self, file: str) -> Any:
        if file not in self._files:
            from safetensors import SafetensorError, safe_open

            try:
                self._files[file] = safe_open(self.folder / file, framework="pt", device="cpu")
            except (SafetensorError, OSError) as error:
                raise UserError(f"cannot read {self.folder / file}: {error}; download it again") from error
        return self._files[file]

    def _slice(self, name: str) -> Any:
        if name not in self._file_of:
            raise UserError(f"checkpoint {self.folder} has no tensor {name}")
        from safetensors import SafetensorError

        file = self._file_of[name]
        try:
            return self._open(file).get_slice(name)
        except SafetensorError as error:
            raise UserError(f"{self.folder / file} has no tensor {name}, which {_INDEX} places there") from error

    def _check(self, config: DecoderConfig) -> None:
        expected = tensor_shapes(config)
        for name, shape in expected.items():
            if (found := self.shape(name)) != shape:
                raise UserError(
                    f"{name} in {self.folder} has shape {list(found)}, but its config.json means {list(shape)}"
                )
        # Old Llama files carry rotary tables; nothing is lost without them. Anything else in a layer would be.
        surplus = [
            name
            for name in self._file_of
            if name.startswith("model.layers.") and name not in expected and not name.endswith("rotary_emb.inv_freq")
        ]
        if surplus:
            listed = ", ".join(surplus[:3]) + (f" and {len(surplus) - 3} more" if len(surplus) > 3 else "")
            raise UserError(
                f"checkpoint {self.folder} has tensors that a {config.architecture} decoder with this config.json "
                f"does not use: {listed}"
            )


class RandomSource:
    """Seeded random weights: each tensor is a function of (seed, name, config) alone, the same on every machine.

    Values are uniform, made from the raw words of a bit generator (numpy keeps those the same in every version), at a
    scale that makes decoding varied: see :meth:`_scale`. A tensor is cut into blocks of whole lines, each block keyed
    by its number, so a slice generates its own blocks only and no more than one block (half a MiB) is ever held. Lines
    are rows, except in ``down_proj``, which is read by columns.
    """

    _BLOCK = 1 << 17  # values; part of what a seed means

    def __init__(self, config: DecoderConfig, seed: int) -> None:
        self.config, self.seed = config, seed
        self._shapes = tensor_shapes(config)

    def names(self) -> list[str]:
        return list(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        if name not in self._shapes:
            raise UserError(f"a random {self.config.architecture} model has no tensor {name}")
        return self._shapes[name]

    def read(self, name: str, out: torch.Tensor, rows: slice | None = None, cols: slice | None = None) -> None:
        shape = self.shape(name)
        ranges = _ranges(name, shape, out, rows, cols)
        if name.endswith("norm.weight"):
            out.fill_(1.0)
            return
        if len(shape) == 1:
            shape, ranges, out = (*shape, 1), (*ranges, slice(0, 1)), out[:, None]
        elif name.endswith("down_proj.weight"):
            shape, ranges, out = shape[::-1], ranges[::-1], out.t()
        self._fill(name, shape, ranges, out)

    def _fill(self, name: str, shape: tuple[int, ...], ranges: tuple[slice, ...], out: torch.Tensor) -> None:
        import torch

        (lines, width), (wanted, part) = shape, ranges
        step = max(1, self._BLOCK // width)
        factor = np.float32(math.sqrt(3) * self._scale(name) / 2**31)  # uniform in +-1 has deviation 1 / sqrt(3)
        for first in range(wanted.start // step * step, wanted.stop, step):
            count = min(step, lines - first) * width
            key = hashlib.blake2b(f"{self.seed}/{name}/{first // step}".encode(), digest_size=16).digest()
            words = np.random.SFC64(int.from_bytes(key, "little")).random_raw((count + 1) // 2)
            values = words.view(np.int32)[:count].astype(np.float32)
            values *= factor
            low, high = max(wanted.start, first), min(wanted.stop, first + count // width)
            block = values.reshape(-1, width)[low - first : high - first, part]
            out[low - wanted.start : high - wanted.start].copy_(torch.from_numpy(block))

    def _scale(self, name: str) -> float:
        """Standard deviation of tensor ``name``: what lets greedy decoding wander instead of repeating itself, without
        amplifying rounding noise.

        Variance is kept (1 / sqrt(inputs)) where nothing else is said. Logits spread by 2. Attention is sharper than
        uniform, for the context to matter; half as strong as the FFN, for its average not to pull every sequence to one
        token; sharper still (2 instead of 1.5) varies no more and doubles the noise.
        """
        if name.endswith(".bias"):
            return 0.1
        gain = 1.0
        if name in (EMBEDDING, LM_HEAD):
            gain = 2.0
        elif name.endswith(("q_proj.weight", "k_proj.weight")):
            gain = 1.5
        elif name.endswith("o_proj.weight"):
            gain = 0.5
        return gain / math.sqrt(self._shapes[name][1])


@dataclass(frozen=True, slots=True)
class SourceSpec:
    """How to open a source: small and picklable, so that every worker process opens its own.

    kind: a name in ``SOURCE_KINDS``.   path: the checkpoint folder.   seed: of random weights.
    """

    kind: str
    path: str | None = None
    seed: int = 0

    def open(self, config: DecoderConfig) -> TensorSource:
        """Raises UserError for an unknown kind, or whatever is wrong with the checkpoint."""
        return SOURCE_KINDS.get(self.kind)(self, config)


SOURCE_KINDS: Registry[Callable[[SourceSpec, DecoderConfig], TensorSource]] = Registry("tensor source")


@SOURCE_KINDS.register("random")
def _open_random(spec: SourceSpec, config: DecoderConfig) -> TensorSource:
    return RandomSource(config, spec.seed)


@SOURCE_KINDS.register("checkpoint")
def _open_checkpoint(spec: SourceSpec, config: DecoderConfig) -> TensorSource:
    assert spec.path, "a checkpoint source has a path"
    return CheckpointSource(spec.path, config)


def state_dict(
    source: TensorSource, config: DecoderConfig, dtype: torch.dtype | None = None
) -> dict[str, torch.Tensor]:
    """The whole model in memory, for ``transformers_model.load_state_dict`` (strict). ``dtype`` None: fp32.

    With tied embeddings ``lm_head.weight`` is the same tensor object as the embedding.
    """
    weights = dict(_tensors(source, tensor_shapes(config), dtype))
    if config.tied_embeddings:
        weights[LM_HEAD] = weights[EMBEDDING]
    return weights


def _tensors(
    source: TensorSource, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype | None
) -> Iterator[tuple[str, torch.Tensor]]:
    import torch

    for name, shape in shapes.items():
        out = torch.empty(shape, dtype=dtype or torch.float32)
        source.read(name, out)
        yield name, out


def save_checkpoint(
    source: TensorSource, hf_config: Mapping[str, Any], folder: str | Path, max_shard_bytes: int = 1 << 30
) -> Path:
    """Writes config.json and safetensors (sharded beyond ``max_shard_bytes``) as a Hugging Face checkpoint folder.

    Stored in the config's dtype (a float16 config: fp32). One shard at a time is held in memory. Returns the folder.
    Raises UserError if weights are there already.
    """
    import torch
    from safetensors.torch import save_file

    folder = Path(folder)
    if present := sorted(path.name for path in folder.glob("*.safetensors*")):
        raise UserError(f"{folder} already holds weights ({present[0]}); choose an empty folder")
    if max_shard_bytes < 1:
        raise UserError(f"max_shard_bytes must be at least 1, got {max_shard_bytes}")
    config = DecoderConfig.from_hf(hf_config)
    dtype = getattr(torch, config.dtype)
    shards: list[dict[str, tuple[int, ...]]] = []
    total = held = 0
    for name, shape in tensor_shapes(config).items():
        size = math.prod(shape) * dtype.itemsize
        if not shards or held + size > max_shard_bytes:
            shards.append({})
            held = 0
        shards[-1][name] = shape
        held, total = held + size, total + size

    folder.mkdir(parents=True, exist_ok=True)
    stored = {key: value for key, value in hf_config.items() if key != "dtype"} | {"torch_dtype": config.dtype}
    (folder / "config.json").write_text(json.dumps(stored, indent=2) + "\n", encoding="utf-8")
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = _SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        weight_map.update(dict.fromkeys(shard, file))
        save_file(dict(_tensors(source, shard, dtype)), folder / file, metadata={"format": "pt"})
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return folder
