"""Tiny real checkpoints for tests, and what transformers generates from them (``from checkpoints import ...``)."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

EOS = 1


def make_checkpoint(
    folder: str | Path,
    architecture: str,
    *,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 16,
    layers: int = 2,
    hidden: int = 64,
    intermediate: int = 128,
    tied: bool = False,
    rope: dict[str, Any] | None = None,
    dtype: str = "float32",
    shards: int = 1,
    seed: int = 0,
    vocab: int = 512,
    max_position: int = 2048,
    **config: Any,
) -> Path:
    """Builds LlamaForCausalLM, Qwen2ForCausalLM or Qwen3ForCausalLM with random weights, saves it, returns the folder.

    Weights are drawn wide enough for greedy outputs to vary; biases are random and norm weights vary around 1, so that
    a bias or a norm that an implementation drops changes the tokens. ``rope``: rope_parameters (rope_theta is filled
    in). ``shards``: 1, or at least that many files. ``config``: further fields of the transformers config.
    """
    import torch
    import transformers

    names = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}
    config_class = getattr(transformers, f"{names[architecture]}Config")
    model_class = getattr(transformers, f"{names[architecture]}ForCausalLM")
    settings = config_class(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=max_position,
        tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, **(rope or {})},
        bos_token_id=0,
        eos_token_id=EOS,
        pad_token_id=None,
        **config,
    )
    model = model_class(settings)
    # The layers must outweigh the embedding in the sum that a tied head reads, or it answers with its own input.
    gains = {"embed_tokens": 1.0, "lm_head": 2.0, "q_proj": 2.0, "k_proj": 1.5, "down_proj": 4.0}
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if name.endswith("norm.weight"):
                weight.copy_(1 + 0.2 * noise)
            elif name.endswith(".bias"):
                weight.copy_(0.3 * noise)
            else:
                gain = next((g for part, g in gains.items() if part in name), 1.0)
                weight.copy_(gain * weight.shape[1] ** -0.5 * noise)
    model = model.to(getattr(torch, dtype))
    model.config.dtype = getattr(torch, dtype)

    folder = Path(folder)
    if shards == 1:
        model.save_pretrained(folder)
        return folder
    total = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    model.save_pretrained(folder, max_shard_size=max(1, total // shards))
    files = len(set(json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"].values()))
    assert files >= shards, f"asked for {shards} shards, transformers wrote {files}"
    return folder


def reference_generate(
    folder: str | Path, prompts: Sequence[Sequence[int]], max_new_tokens: Sequence[int]
) -> list[list[int]]:
    """Greedy continuations by transformers, fp32, one prompt at a time, end-of-sequence ignored.

    Cached in this process by (folder, prompt, count), so tests that share a checkpoint share the work; a folder must
    not change once it was asked about.
    """
    where = str(Path(folder).resolve())
    return [list(_generate(where, tuple(p), n)) for p, n in zip(prompts, max_new_tokens, strict=True)]


@functools.lru_cache(maxsize=4)
def reference_model(folder: str) -> Any:
    """The transformers model of ``folder`` in fp32 and eval mode, with eager attention."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    model.generation_config.eos_token_id = None
    return model


@functools.lru_cache(maxsize=4096)
def _generate(folder: str, prompt: tuple[int, ...], count: int) -> tuple[int, ...]:
    import torch

    ids = torch.tensor([prompt])
    with torch.no_grad():
        out = reference_model(folder).generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, use_cache=True
        )
    tokens = tuple(out[0, len(prompt) :].tolist())
    assert len(tokens) == count, f"transformers stopped after {len(tokens)} of {count} tokens"
    return tokens
