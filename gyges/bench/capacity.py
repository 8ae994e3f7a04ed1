"""How long a context fits at each TP degree: by arithmetic, and, if wanted, by trying it on a running engine.

A merge gives the memory of FFN weights that others keep to the KV cache, so n devices hold more tokens as one instance than as n:

    device = resident weights | FFN weights / degree, with their padding | KV cache | transformation reserve | rest

The longest context of a degree is bounded by that, and by the model's positions. Torch-free but for the engine's workers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from random import Random
from typing import Any

from gyges.config import EngineConfig
from gyges.core import FinishReason, Request, RequestOutput, SamplingParams
from gyges.engine.engine import Engine
from gyges.engine.placement import Placer
from gyges.errors import EngineError, UserError
from gyges.models.hub import ResolvedModel, resolve_model
from gyges.transform.host import HostShape

Progress = Callable[[str], None]
Document = dict[str, Any]

_SPECIAL_IDS = 2
_OUTPUT = 2  # tokens asked for in a check: one of them comes from a decode step


@dataclass(frozen=True, slots=True)
class Capacity:
    """Of one TP degree. Bytes are per device; tokens are what a KV cache holds.

    context: longest request of one instance; its last output token needs no place.   limited_by: "memory" or "model".
    total: tokens of all instances of the host, were they all of this degree.   released_bytes: FFN weights less than at the
    lowest degree.   released_tokens: of ``total``, what fits only because of them.
    """

    degree: int
    instances: int
    context: int
    limited_by: str
    max_tokens: int
    total: int
    resident_bytes: int
    ffn_bytes: int
    padding_bytes: int
    kv_bytes: int
    reserve_bytes: int
    rest_bytes: int
    released_bytes: int
    released_tokens: int


def with_degrees(config: EngineConfig, model: ResolvedModel) -> EngineConfig:
    """``config`` with all its devices as instances of the lowest degree. Degrees: those given, or powers of two that the model
    can take."""
    geometry = model.config.geometry(config.dtype)
    degrees = config.candidate_degrees
    if not config.tp_degrees and len(degrees) == 1:
        powers = (1 << i for i in range(config.num_devices.bit_length()))
        degrees = tuple(d for d in powers if d <= config.num_devices and geometry.tp_degree_error(d) is None)
    lowest = min(degrees)
    if config.num_devices % lowest:
        raise UserError(f"{config.num_devices} devices cannot all be TP{lowest} instances; give another --devices")
    return config.with_(instances=(lowest,) * (config.num_devices // lowest), tp_degrees=degrees)


def capacities(config: EngineConfig, model: ResolvedModel) -> list[Capacity]:
    """One for each degree at which an instance fits, the lowest first. ``config``: of :func:`with_degrees`."""
    geometry = model.config.geometry(config.dtype)
    shape = Placer(config, model.config, geometry).shape
    limit = min(model.config.max_position, config.max_context or model.config.max_position)
    found: list[Capacity] = []
    for degree in config.candidate_degrees:
        if shape.max_groups(degree) >= 1 and config.num_devices >= degree:
            found.append(_capacity(shape, degree, config.num_devices // degree, limit, found[0] if found else None))
    if not found:
        Placer(config, model.config, geometry).host()  # says what would fit
        raise UserError("no instance fits a device of this size")
    return found


def _capacity(shape: HostShape, degree: int, instances: int, limit: int, lowest: Capacity | None) -> Capacity:
    page = shape.page_bytes
    largest = max((shape.ffn_layout(rank) for rank in shape.ranks(degree)), key=lambda layout: layout.pages)
    unit = shape.kv_geometry(degree)
    groups = shape.max_groups(degree)
    kv = groups * unit.pages_per_group
    tokens = shape.max_tokens(degree)
    ffn = largest.pages * page
    released = lowest.ffn_bytes - ffn if lowest else 0
    # Without what the merge has given, in whole groups.
    room = kv - released // page
    return Capacity(
        degree=degree,
        instances=instances,
        context=min(tokens, limit - 1),
        limited_by="memory" if tokens < limit else "model",
        max_tokens=tokens,
        total=instances * tokens,
        resident_bytes=shape.resident_layout.pages * page,
        ffn_bytes=ffn,
        padding_bytes=largest.padding_bytes,
        kv_bytes=kv * page,
        reserve_bytes=shape.reserve_pages * page,
        rest_bytes=(shape.device_pages - shape.weight_pages(degree) - shape.reserve_pages - kv) * page,
        released_bytes=released,
        released_tokens=instances
        * (tokens - max(0, room // unit.pages_per_group) * unit.blocks_per_group * shape.block_size),
    )


def capacity(config: EngineConfig, *, check: bool, progress: Progress) -> Document:
    """The document of `gyges bench capacity`; ``check``: tries every row on an engine, merging step by step."""
    model = resolve_model(config.model, seed=config.seed, revision=config.revision, weights=check)
    config = with_degrees(config, model)
    rows = capacities(config, model)
    placer = Placer(config, model.config, model.config.geometry(config.dtype))
    document: Document = {
        "model": model.name,
        "dtype": model.config.dtype if config.dtype == "auto" else config.dtype,
        "devices": config.num_devices,
        "device_bytes": config.device_memory,
        "page_bytes": placer.config.page_bytes,
        "block_size": placer.block_size,
        "layout": config.layout,
        "padding": config.padding,
        "max_position": model.config.max_position,
        "degrees": [asdict(row) for row in rows],
        "check": None,
    }
    if check:
        document["check"] = _check(config, rows, progress)
    return document


def _check(config: EngineConfig, rows: list[Capacity], progress: Progress) -> list[Document]:
    """For every degree: a request of exactly the longest context, and one that is a token longer."""
    results = []
    with Engine(config) as engine:
        for row in rows:
            _merge_to(engine, config, row.degree)
            for instance in engine.instances:
                if instance.degree == row.degree and instance.max_tokens != row.max_tokens:
                    raise EngineError(f"TP{row.degree} holds {instance.max_tokens} tokens, computed: {row.max_tokens}")
            fits, longer = (_try(engine, row.degree, row.context + more, config.seed) for more in (0, 1))
            results.append(
                {
                    "degree": row.degree,
                    "context": row.context,
                    "completed": fits.finish_reason is FinishReason.LENGTH and len(fits.token_ids) == _OUTPUT,
                    "preemptions": fits.preemptions,
                    "longer_rejected": longer.finish_reason is FinishReason.REJECTED,
                    "longer_reason": longer.error or "",
                }
            )
            progress(
                f"TP{row.degree}: {row.context} tokens: {fits.finish_reason}; "
                f"{row.context + 1}: {longer.finish_reason}: {longer.error or ''}"
            )
    return results


def _merge_to(engine: Engine, config: EngineConfig, degree: int) -> None:
    """Merges whatever is narrower, so that all instances have this degree (as many as the devices make)."""
    for first in range(0, config.num_devices - degree + 1, degree):
        devices = set(range(first, first + degree))
        if len([i for i in engine.instances if set(i.members) <= devices]) > 1:
            engine.merge(devices, "capacity check").result(timeout=config.transform_timeout + config.step_timeout)


def _try(engine: Engine, degree: int, length: int, seed: int) -> RequestOutput:
    """A request that needs ``length`` tokens of KV cache at its end."""
    draw = Random(f"{seed}/{degree}/{length}")
    prompt = tuple(draw.randrange(_SPECIAL_IDS, engine.geometry.vocab_size) for _ in range(length - _OUTPUT + 1))
    sampling = SamplingParams(max_tokens=_OUTPUT, ignore_eos=True)
    (output,) = engine.generate([Request(f"tp{degree}-{length}", prompt, sampling)])
    return output
