"""``gyges``: this project's own way. Instances merge and split page by page, requests keep their KV cache.

Sizes are those of the engine (gyges.transform.host): pages, FFN shards that are padded to pages, a KV layout; attention and
vocabulary lie whole on every device, FFN rows are cut. What a transformation moves follows from them by arithmetic, as in
gyges.transform.price, but by device, since all devices copy at once and the slowest decides:

    merge into N    every device gets its 1/N of the other sources' KV cache, and gives up the FFN shards that it no longer needs
    split of N      every device gets the KV cache of its instance's requests beyond the 1/N that it has, and the FFN shards
                    that it lacks

Seconds come from the hardware's ``transform`` (gyges.sim.hardware.TransformCosts). With the overlap, copies are spread over
steps, ``layers`` of the model a step; a step beside them takes ``beside`` of their time longer, and never less than they take.

    merge, overlapped    pause: FFN shards given up, rendezvous    behind: KV cache (without padding, FFN weights too)
    split, overlapped    ahead: KV cache, FFN weights gathered     pause: rendezvous
    overlap off          pause: everything
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

from gyges.config import EngineConfig
from gyges.errors import UserError
from gyges.kv_cache.layouts import LAYOUTS, choose_page_bytes
from gyges.parallel.sharding import ParallelLayout, ShardCount
from gyges.sim.cost.base import CostModel, StepShape
from gyges.sim.hardware import Hardware
from gyges.sim.models import SimModel, memory_budget
from gyges.sim.sequence import Pace
from gyges.sim.system import SYSTEMS, BaseSystem, Switch, SystemSpec
from gyges.sim.systems.sources import Source, described
from gyges.transform.copies import piece_shape
from gyges.transform.host import HostShape

GPU_PAGE = 2 * 1024 * 1024  # CUDA's granule of physical memory
_STEP = StepShape(decodes=16, decode_context=16 * 1024, decode_longest=1024, sampled=16)  # that copies go on beside


@dataclass(frozen=True, slots=True)
class _Moved:
    """What one kind of state takes on the worst device. Bytes from peers and within the device, copies, pages, ranges of pages.

    ``total``: bytes between devices, of all of them.
    """

    peer: float = 0.0
    local: float = 0.0
    descriptors: float = 0.0
    mapped: float = 0.0
    unmapped: float = 0.0
    ranges: float = 0.0
    total: float = 0.0


class GygesSystem(BaseSystem):
    """``host``: sizes.   overlap: a transformation goes on between steps, ``layers`` of the model a step; or as many pages of a
    device as ``pages_per_step`` says, if that is not 0."""

    def __init__(
        self,
        name: str,
        model: SimModel,
        hardware: Hardware,
        host: HostShape,
        costs: Mapping[int, CostModel],
        kv_tokens: Mapping[int, int],
        *,
        overlap: bool = True,
        layers: float = 1.0,
        pages_per_step: int = 0,
    ) -> None:
        super().__init__(name, model, hardware, host.degrees, costs, kv_tokens, "gyges", host.block_size)
        self.host, self.overlap, self.layers, self.pages_per_step = host, overlap, layers, pages_per_step
        self._weights: dict[tuple[tuple[int, ...], tuple[int, ...]], _Moved] = {}
        self._step_s: dict[int, float] = {}

    def restart(self, before: tuple[int, ...], after: tuple[int, ...]) -> Switch:
        found = super().restart(before, after)
        more = self.host.weight_pages(min(after)) * self.host.page_bytes / self.hardware.transform.host_bytes_per_s
        parts = {**found.parts, "weights": more}
        return Switch(pause_s=sum(parts.values()), parts=parts, keeps_kv=False)

    def switch(self, before: tuple[int, ...], after: tuple[int, ...], held_tokens: Sequence[int]) -> Switch:
        """Raises UserError for what is no merge and no split, and for degrees that the host does not take."""
        if (len(before) > 1 and len(after) > 1) or len(before) == len(after) == 1 or sum(before) != sum(after):
            raise UserError(f"TP{before} to TP{after} is neither a merge nor a split of the same devices")
        if missing := {*before, *after} - set(self.degrees):
            raise UserError(f"TP{min(missing)} is not among the degrees of this host: {self.degrees}")
        merging = len(after) == 1
        weights = self._weights_moved(before, after)
        kv = self._merged_kv(before, held_tokens) if merging else self._split_kv(after, sum(held_tokens))
        costs = self.hardware.transform
        descriptor_s = costs.descriptor_s
        parts = {
            "weights": self._copy_s(weights) + self._map_s(weights),
            "kv": kv.peer / costs.copy_bytes_per_s + kv.descriptors * descriptor_s,
            "compaction": kv.local / costs.local_bytes_per_s,
            "map": self._map_s(kv),
            "communicator": costs.communicator_s,
            "graphs": costs.graph_s,
            "sync": 2 * costs.sync_s,
        }
        wide = max(*before, *after)
        stop = parts["communicator"] + parts["graphs"] + parts["sync"]
        beside = parts["kv"] + parts["compaction"] + parts["map"]
        if not self.overlap:
            stop, beside = sum(parts.values()), 0.0
        elif merging and self.host.padding:
            stop += parts["weights"]
        else:
            beside += parts["weights"]
        spread_s, slowdown, pace = self._spread(beside, weights.peer + kv.peer, wide)
        return Switch(
            pause_s=stop,
            ahead_s=0.0 if merging else spread_s,
            behind_s=spread_s if merging else 0.0,
            slowdown=slowdown,
            parts=parts,
            bytes_moved=round(kv.total + weights.total),
            extra_bytes=self._extra(kv, weights),
            descriptors=round(kv.descriptors + weights.descriptors) * wide,
            pace=pace,
        )

    def _copy_s(self, moved: _Moved) -> float:
        costs = self.hardware.transform
        return (
            moved.peer / costs.copy_bytes_per_s
            + moved.local / costs.local_bytes_per_s
            + moved.descriptors * costs.descriptor_s
        )

    def _map_s(self, moved: _Moved) -> float:
        costs = self.hardware.transform
        return moved.mapped * costs.map_s + moved.unmapped * costs.unmap_s + moved.ranges * costs.range_s

    # -- beside serving -----------------------------------------------------------------------------------------------

    def _spread(self, seconds: float, peer_bytes: float, degree: int) -> tuple[float, float, Pace | None]:
        """(how long it goes on beside usual steps, how many times as long they take meanwhile, and by steps)."""
        if not seconds:
            return 0.0, 1.0, None
        steps = self._steps(peer_bytes)
        if degree not in self._step_s:
            self._step_s[degree] = self.costs[degree].step_s(_STEP)
        alone_s = self._step_s[degree]
        copies_s = seconds / steps
        more_s = self.hardware.transform.beside * copies_s
        beside_s = max(alone_s + more_s, copies_s)
        return steps * beside_s, beside_s / alone_s, Pace(steps, more_s, copies_s)

    def _steps(self, peer_bytes: float) -> int:
        if self.pages_per_step:
            return 1 - int(-peer_bytes // (self.pages_per_step * self.host.page_bytes))  # the first moves nothing
        return max(1, -int(-self.host.model.num_layers // self.layers))

    def _extra(self, kv: _Moved, weights: _Moved) -> int:
        """What is copied before its source is given up: a step's worth, or a round's of a stop (gyges.transform.plan)."""
        page, host = self.host.page_bytes, self.host
        if self.overlap:
            largest = (kv.peer + kv.local + weights.local) / self._steps(weights.peer + kv.peer)
        else:
            largest = max(host.reserve_pages, host.device_pages // 32) * page
        return round(min(largest, kv.peer + kv.local + weights.local))

    # -- KV cache -----------------------------------------------------------------------------------------------------

    @cached_property
    def _shares(self) -> dict[int, float]:
        """Degree -> the share of a token's KV cache that one device holds."""
        shards = self.host.shards
        return {d: len(ParallelLayout(d, 0, shards).kv_shards) / shards.kv for d in self.degrees}

    def _merged_kv(self, sources: tuple[int, ...], held: Sequence[int]) -> _Moved:
        wide = sum(sources)
        token = self.host.model.kv_bytes_per_token
        keeps = self._shares[wide] * token
        received = max(sum(held) - own for own in held) * keeps
        sent = max(h * keeps * (wide - d) / d for h, d in zip(held, sources, strict=True))
        total = sum(h * keeps * (wide - d) for h, d in zip(held, sources, strict=True))
        had = max(h * token * self._shares[d] for h, d in zip(held, sources, strict=True))
        kept = max(held) * keeps
        return self._kv(max(received, sent), received, kept, had, total, (min(sources), wide))

    def _split_kv(self, targets: tuple[int, ...], held: int) -> _Moved:
        """Requests are taken to be dealt by devices."""
        wide = sum(targets)
        token = self.host.model.kv_bytes_per_token
        own = {d: held * d / wide for d in set(targets)}
        received = max(own[d] * token * (self._shares[d] - self._shares[wide]) for d in own)
        sent = max((held - own[d]) * token * self._shares[wide] for d in own)
        total = sum(d * own[d] * token * (self._shares[d] - self._shares[wide]) for d in targets)
        kept = max(own[d] * token * self._shares[wide] for d in own)
        return self._kv(
            max(received, sent), received, kept, held * token * self._shares[wide], total, (min(targets), wide)
        )

    def _kv(
        self, peer: float, received: float, kept: float, had: float, total: float, degrees: tuple[int, int]
    ) -> _Moved:
        """``degrees``: of the narrowest instance, and of the wide one. Where a shard owns whole pages, those that stay are
        not touched; elsewhere everything is packed anew."""
        page, layout = self.host.page_bytes, self.host.layout
        whole = layout.shards_leave_whole
        narrow, wide = degrees
        runs = self._run_bytes(narrow, wide)
        local = 0.0 if whole else kept
        if not had and not received:
            return _Moved()
        ranges = {"shard": 1, "layer": self.host.model.num_layers, "kv": 2}
        per_side = 1
        for axis in layout.cell_axes:
            per_side *= ranges.get(axis, 1)
        # Of a shard's pages in one range those that leave, or those that come; packed, all leave and all come.
        ranges_each = len(ParallelLayout(narrow, 0, self.host.shards).kv_shards) if whole else 2
        return _Moved(
            peer=peer,
            local=local,
            descriptors=(received + local) / runs,
            mapped=(received + local) / page,
            unmapped=(max(0.0, had - kept) if whole else had) / page,
            ranges=per_side * ranges_each,
            total=total,
        )

    def _run_bytes(self, narrow: int, wide: int) -> float:
        """Length of one contiguous copy. Where a shard owns whole pages, neighbouring blocks join up to a page."""
        if self.host.layout.shards_leave_whole:
            return self.host.page_bytes
        return piece_shape(self.host.kv_geometry(narrow), self.host.kv_geometry(wide)).run

    # -- weights ------------------------------------------------------------------------------------------------------

    def _weights_moved(self, before: tuple[int, ...], after: tuple[int, ...]) -> _Moved:
        key = (before, after)
        if key not in self._weights:
            self._weights[key] = self._ffn(before, after)
        return self._weights[key]

    def _ffn(self, before: tuple[int, ...], after: tuple[int, ...]) -> _Moved:
        """FFN shards. A merge gives some up; a split gathers those that are missing; without padding, what stays is moved to
        fresh pages as well."""
        host, page = self.host, self.host.page_bytes
        pages = {d: host.weight_pages(d) - host.resident_layout.pages for d in {*before, *after}}
        wide = max(*before, *after)
        narrow = before if len(before) > 1 else after
        merging = len(after) == 1
        lowest = min(narrow)
        changed = pages[lowest] - pages[wide]
        shards = host.shards.ffn // lowest - host.shards.ffn // wide
        ranges = shards * host.model.num_layers
        peer = 0 if merging else changed * page
        local = 0 if host.padding else pages[wide] * page
        return _Moved(
            peer=peer,
            local=local,
            # Cut where a page ends, packed on either side.
            descriptors=(peer + local) / page * (1 if host.padding else 2),
            mapped=(0 if merging else changed) + (0 if host.padding else pages[wide]),
            unmapped=(changed if merging else 0) + (0 if host.padding else pages[wide]),
            ranges=ranges + (0 if host.padding else host.model.num_layers),
            total=0 if merging else sum(d * (pages[d] - pages[wide]) for d in narrow) * page,
        )


# -- builders -----------------------------------------------------------------------------------------------------------


def _build(
    spec: SystemSpec,
    *,
    layout: str = "shard-pages",
    padding: bool = True,
    overlap: bool = True,
    layers: float = 1.0,
) -> GygesSystem:
    """On GPUs with pages of 2 MiB. ``layers``: of the model, whose state moves in one step; the rest of the pages waits."""
    if layers <= 0:
        raise UserError(f"layers is the number of layers that move in a step, more than 0; got {layers:g}")
    host = host_of(spec, layout, padding)
    degrees = tuple(d for d in host.degrees if spec.kv_tokens is not None or host.max_groups(d) >= 1)
    if not degrees:
        needed = host.needed_pages(max(host.degrees)) * host.page_bytes
        raise UserError(
            f"{spec.model.name} does not fit {spec.hardware.name} even at TP{max(host.degrees)}: a device would need "
            f"{needed / 1e9:.1f} GB for weights and the smallest piece of KV cache, and has "
            f"{host.device_pages * host.page_bytes / 1e9:.1f} GB"
        )
    if degrees != host.degrees:
        host = host_of(spec, layout, padding, degrees)
    return GygesSystem(
        "gyges",
        spec.model,
        spec.hardware,
        host,
        {d: spec.cost_of(d) for d in degrees},
        {d: host.max_tokens(d) if (given := spec.kv_given(d)) is None else given for d in degrees},
        overlap=overlap,
        layers=layers,
    )


def host_of(spec: SystemSpec, layout: str, padding: bool, degrees: tuple[int, ...] = ()) -> HostShape:
    """The engine's sizes for a model of which only the configuration is known. UserError for an unknown layout."""
    model, hardware = spec.model, spec.hardware
    geometry = model.geometry
    vocab = model.vocab_parameters * (1 if geometry.tied_embeddings else 2)
    room = memory_budget(hardware)
    degrees = degrees or spec.degrees or spec.fitting
    shards = ShardCount.for_degrees(geometry, degrees)
    page = GPU_PAGE if hardware.memory_bytes > 4e9 else choose_page_bytes(geometry, shards.kv)
    return HostShape(
        model=geometry,
        resident=(("attention", (geometry.num_layers * model.attention_parameters,)), ("vocabulary", (vocab,))),
        degrees=tuple(sorted(set(degrees))),
        layout=LAYOUTS.get(layout),
        padding=padding,
        page_bytes=page,
        device_pages=int(room // page),
        num_devices=spec.devices,
    )


def of_engine(config: EngineConfig, host: HostShape, spec: SystemSpec) -> GygesSystem:
    """The system that an engine of this configuration is; ``host``: its sizes (gyges.engine.placement.Placer.shape)."""
    return GygesSystem(
        "gyges",
        spec.model,
        spec.hardware,
        host,
        {d: spec.cost_of(d) for d in host.degrees},
        {d: host.max_tokens(d) for d in host.degrees},
        overlap=config.overlap,
        pages_per_step=config.pages_per_step or max(1, host.device_pages // 64),
    )


_PAPER = partial(_build, layout="header-centric")
SYSTEMS.add(
    "gyges", described(Source("this project", "", "", "requests keep their KV cache, pages change hands"))(_build)
)
SYSTEMS.add("gyges:paper", described(Source("Gyges", "2509.19729", "", "the same in the paper's KV layout"))(_PAPER))
