"""What fits where: weights and KV blocks of every instance, before any process starts. Torch-free, pure arithmetic.

The sizes themselves are gyges.transform.host's; here a configuration becomes a host, and what cannot work is refused with the
figure that would.
"""

from __future__ import annotations

from dataclasses import dataclass

from gyges.config import MIB, EngineConfig, format_bytes
from gyges.core import ModelGeometry
from gyges.errors import UserError
from gyges.kv_cache.layouts import LAYOUTS, choose_page_bytes
from gyges.models.config import DecoderConfig
from gyges.models.resident import resident_shapes
from gyges.parallel.sharding import ShardCount
from gyges.transform.host import HostShape

CUDA_PAGE = 2 * MIB  # CUDA VMM's granule
# A process may have 65,530 mappings by default, and each page may need one of its own.
_MAX_PAGES = 60_000


@dataclass(frozen=True, slots=True)
class InstancePlacement:
    """One instance: its workers in rank order, and what it can hold. Pages are of the rank that has most."""

    members: tuple[int, ...]
    weight_pages: int
    kv_pages: int
    max_tokens: int

    @property
    def degree(self) -> int:
        return len(self.members)


@dataclass(frozen=True, slots=True)
class HostPlacement:
    shards: ShardCount
    block_size: int
    instances: tuple[InstancePlacement, ...]
    max_context: int  # prompt + output, by model or user, whatever the memory
    max_positions: int  # that any instance can reach, after merges too


def default_degrees(geometry: ModelGeometry, num_devices: int) -> tuple[int, ...]:
    """Degrees of a host that transforms, where none are given: powers of two and divisors of the number of devices.

    Others (TP3 of 4 devices) would leave devices over, and cut the model into more and smaller shards.
    """
    valid = geometry.valid_tp_degrees(num_devices)
    return tuple(degree for degree in valid if degree & (degree - 1) == 0 or num_devices % degree == 0)


def with_degrees(config: EngineConfig, geometry: ModelGeometry, policy: str) -> EngineConfig:
    """``config`` for a policy that transforms: with default degrees where none are given. UserError if there is only one."""
    if not config.tp_degrees:
        config = config.with_(tp_degrees=default_degrees(geometry, config.num_devices))
    if not config.transforms:
        wider = [degree for degree in geometry.valid_tp_degrees(64) if degree > config.candidate_degrees[0]]
        if not wider:
            raise UserError(f"{config.model} can take TP1 only, so policy {policy!r} has nothing to do; use static")
        enough = max(config.num_devices, wider[0])
        more = f"--devices {enough} and " if enough > config.num_devices else ""
        degrees = ",".join(map(str, default_degrees(geometry, enough)))
        raise UserError(
            f"policy {policy!r} changes TP degrees, and this host can take TP{config.candidate_degrees[0]} only: "
            f"give {more}--tp-degrees {degrees}, or use static"
        )
    return config


class Placer:
    """Sizes of one model on one host; see the module's note. ``config`` is the given one with page_bytes chosen."""

    def __init__(self, config: EngineConfig, model: DecoderConfig, geometry: ModelGeometry) -> None:
        shards = ShardCount.for_degrees(geometry, config.candidate_degrees)
        if not config.page_bytes:
            chosen = CUDA_PAGE if config.device == "cuda" else choose_page_bytes(geometry, shards.kv)
            config = config.with_(page_bytes=chosen)
        self.config, self.model, self.geometry = config, model, geometry
        self.shape = HostShape(
            model=geometry,
            resident=tuple(resident_shapes(model, shards)),
            degrees=config.candidate_degrees,
            layout=LAYOUTS.get(config.layout),
            padding=config.padding,
            page_bytes=config.page_bytes,
            device_pages=config.device_memory // config.page_bytes,
            num_devices=config.num_devices,
            asked_block_size=config.block_size,
        )
        if config.transforms and self.device_pages > _MAX_PAGES:
            least = -(-config.device_memory // _MAX_PAGES // 4096) * 4096
            raise UserError(
                f"a device of {format_bytes(config.device_memory)} has {self.device_pages} pages of "
                f"{format_bytes(config.page_bytes)}; pages that move one by one are limited to {_MAX_PAGES}: "
                f"give --page-size of at least {format_bytes(least)}"
            )

    @property
    def block_size(self) -> int:
        return self.shape.block_size

    @property
    def device_pages(self) -> int:
        return self.shape.device_pages

    def place(self, members: tuple[int, ...]) -> InstancePlacement:
        """Raises UserError, with the budget that would do, if weights and one block group do not fit."""
        degree = len(members)
        shape, page = self.shape, self.config.page_bytes
        groups = shape.max_groups(degree)
        if groups < 1:
            weights = shape.weight_pages(degree)
            need = shape.needed_pages(degree)
            reserve = f", the transformation reserve {format_bytes(shape.reserve_pages * page)}" * bool(
                shape.reserve_pages
            )
            kv = need - weights - shape.reserve_pages
            raise UserError(
                f"a device of {format_bytes(self.config.device_memory)} is too small for {self.config.model} at "
                f"TP{degree}: weights take {format_bytes(weights * page)}{reserve} and the smallest piece "
                f"of KV cache {format_bytes(kv * page)}; "
                f"give at least --device-memory {-(-need * page // 2**20)}MiB"
            )
        return InstancePlacement(
            members=members,
            weight_pages=shape.weight_pages(degree),
            kv_pages=groups * shape.kv_geometry(degree).pages_per_group,
            max_tokens=shape.max_tokens(degree),
        )

    def host(self) -> HostPlacement:
        instances, device = [], 0
        for degree in self.config.instances:
            instances.append(self.place(tuple(range(device, device + degree))))
            device += degree
        context = min(self.model.max_position, self.config.max_context or self.model.max_position)
        most = max(self.shape.max_tokens(degree) for degree in self.config.candidate_degrees)
        return HostPlacement(self.shape.shards, self.block_size, tuple(instances), context, min(context, most + 1))
