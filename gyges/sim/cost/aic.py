"""Step times from NVIDIA's AIConfigurator: operators measured on many cards, for vLLM. Extra ``aic`` (aiconfigurator-core).

Its engine prices whole batches (``EngineHandle``, aiconfigurator_core/sdk/engine.py); times there are milliseconds. A mixed step
is its dense operators over all tokens, the attention of each chunk, and the attention of the decodes at their mean context.
"""

from __future__ import annotations

import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from gyges.errors import UserError
from gyges.sim.cost.base import StepShape
from gyges.sim.cost.curves import Curve
from gyges.sim.hardware import Hardware
from gyges.sim.models import SimModel, known_config

# Ours -> AIConfigurator's systems.
SYSTEMS = {
    "a100-40g": "a100_sxm",
    "a100-80g": "a100_sxm",
    "h100": "h100_sxm",
    "h200": "h200_sxm",
    "l40s": "l40s",
    "rtx-pro-6000": "rtx_pro_6000_server",
}
_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}
# Contexts at which decode steps are asked for; linear between them.
_CONTEXTS = sorted({round(16 * 2 ** (i / 2)) for i in range(34)})


class AicCost:
    """Implements :class:`gyges.sim.cost.base.CostModel`.

    Raises UserError: the extra is not installed, the card is not among its systems, it refuses the model or the TP degree.
    """

    def __init__(self, model: SimModel, hardware: Hardware, degree: int = 1) -> None:
        self.degree = degree
        self._engine = _compile(model, hardware, degree)
        self._step_s = hardware.step_s
        self._decodes: dict[int, Curve] = {}
        self._dense: dict[tuple[int, int], float] = {}

    def step_s(self, shape: StepShape) -> float:
        if not shape.prefills:
            if not shape.decodes:
                return self._step_s
            return self._curve(shape.decodes)(shape.decode_context / shape.decodes) * 1e-3 + self._step_s
        total = self._dense_ms(sum(chunk for chunk, _ in shape.prefills), shape.decodes)
        for chunk, before in shape.prefills:
            total += self._chunk_ms(chunk, before)
        if shape.decodes:
            mean = max(shape.decode_context // shape.decodes, 2)
            total += self._engine.mixed_step_breakdown(1, shape.decodes, mean, 2, mean - 1)[3]
        return total * 1e-3 + self._step_s

    def decode_steps_s(self, decodes: int, context: int, longest: int, steps: int) -> np.ndarray:
        contexts = context + decodes * np.arange(steps, dtype=np.int64)
        return self._curve(decodes).many(contexts / decodes) * 1e-3 + self._step_s

    def _curve(self, decodes: int) -> Curve:
        if (known := self._decodes.get(decodes)) is None:
            times = [self._engine.decode_step_latency(decodes, context - 1, 2) for context in _CONTEXTS]
            known = self._decodes[decodes] = Curve(_CONTEXTS, times)
        return known

    def _dense_ms(self, chunks: int, decodes: int) -> float:
        key = chunks, decodes
        if (known := self._dense.get(key)) is None:
            known = self._dense[key] = self._engine.mixed_step_breakdown(chunks, decodes, chunks, 2)[1]
        return known

    def _chunk_ms(self, chunk: int, before: int) -> float:
        # It gives the mean over the chunks of a whole prompt; there are as many as go into it.
        share = self._engine.mixed_step_breakdown(chunk, 0, before + chunk, 2, before)[2]
        return float(share * -(-(before + chunk) // chunk))


def _compile(model: SimModel, hardware: Hardware, degree: int) -> Any:
    try:
        from aiconfigurator_core.sdk.engine import EngineHandle
    except ImportError as error:
        raise UserError(
            "the cost source 'aic' needs aiconfigurator-core: pip install 'gyges[aic]', or use the analytic source"
        ) from error
    if reason := model.geometry.tp_degree_error(degree):
        raise UserError(f"{model.name} cannot run at TP{degree}: {reason}")
    system = SYSTEMS.get(hardware.name)
    if system is None:
        raise UserError(f"aiconfigurator-core has no data of {hardware.name!r}; it has {', '.join(SYSTEMS)}")
    mixture = {"moe_tp_size": degree, "moe_ep_size": 1} if model.experts > 1 else {}
    chatter = logging.getLogger("aiconfigurator_core")
    level, chatter.level = chatter.level, logging.ERROR
    try:
        with tempfile.TemporaryDirectory(prefix="gyges-aic-") as folder:
            return EngineHandle.compile(_model_path(model, Path(folder)), system, "vllm", tp_size=degree, **mixture)
    except Exception as error:  # its own errors have no common base
        raise UserError(f"aiconfigurator-core refuses {model.name} on {system} at TP{degree}: {error}") from error
    finally:
        chatter.level = level


def _model_path(model: SimModel, folder: Path) -> str:
    """A folder with the model's config.json, so that nothing is fetched; for other than the known models, their own name."""
    config = known_config(model.name)
    if config is None:
        return model.name
    (folder / "config.json").write_text(json.dumps({**config, "architectures": [_ARCHITECTURES[config["model_type"]]]}))
    return str(folder)
