"""A worker's model: its device, weights, KV views, and the state of the sequences in its batch.

Usually a worker is one rank of one instance. During a transformation (between Join and Settle) it steps with all workers of
the wide instance, and a sequence lies in one of two ways: over all of them (wide), or over those of one narrow instance.
FFN and LM head are computed as the wide instance does all along.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gyges.config import EngineConfig
from gyges.engine.backend import open_backend
from gyges.engine.batch import Place, StepRows, WorkerSequence
from gyges.engine.faults import fault_point
from gyges.engine.messages import NewSequence, Setup, Step, StepDone, Transform
from gyges.engine.placement import Placer
from gyges.kv_cache.view import KVView
from gyges.models.config import DecoderConfig
from gyges.models.decoder import AttentionPart, Decoder, StepBatch
from gyges.models.graphs import DecodeGraphs, graph_pool, sizes_up_to
from gyges.models.source import SourceSpec
from gyges.models.weights import load_ffn, load_weights, view_ffn, view_weights
from gyges.parallel.arena import SharedArena
from gyges.parallel.collectives import COLLECTIVES, Collectives, Members, Wanted
from gyges.parallel.comm import SOLO, Comm
from gyges.parallel.sharding import ParallelLayout
from gyges.sampling import sample
from gyges.transform.ahead import likely_instances
from gyges.transform.books import KVSide
from gyges.transform.device import Device
from gyges.transform.interpreter import Effect
from gyges.transform.ops import FFN, AnyOp, Barrier, FFNRelease, Join, Settle, Switch, Transfer, unpack_ids
from gyges.transform.shape import Transformation


@dataclass(slots=True)
class _Joint:
    """A transformation under way, as this worker sees it. A place is None where the worker holds nothing that lies so."""

    shape: Transformation
    narrow: int
    front: Place
    back: Place


class ModelRunner:
    """Built from one Setup message; then one :meth:`step` per Step message, :meth:`transform` per Transform, :meth:`reset`."""

    def __init__(self, setup: Setup) -> None:
        config = EngineConfig.from_dict(setup.engine)
        self.config, self.worker = config, setup.worker
        torch.set_num_threads(config.worker_threads)
        torch.set_grad_enabled(False)
        model = DecoderConfig.from_hf(setup.hf_config)
        self.model = model
        self.dtype = getattr(torch, setup.dtype)
        self.backend = open_backend(config, setup.worker, setup.dtype, model.head_dim)
        geometry = model.geometry(setup.dtype)
        placer = Placer(config, model, geometry)
        self.host = placer.shape
        self.source = SourceSpec(**setup.source)
        starting = [each.members for each in placer.host().instances]
        self.likely = likely_instances(starting, config.num_devices, config.candidate_degrees, self.host.shards)
        self.collectives = self._open_collectives(setup)
        self.decoder = Decoder(model, geometry, setup.max_positions, self.backend.kernels)
        layout = self._layout(setup.members)
        self.device = Device(self.host, setup.worker, layout, memory=self.backend.memory)
        if config.transforms:
            self.device.connect(self.worker, self.device.pool.export())
        resident = self.device.ranges["resident"]
        self.weights = view_weights(model, self.host.resident_layout, resident, self.dtype)
        self.graphs = self._record(setup.max_positions)
        if self.graphs:
            self.device.reset(layout, 0)
        self._begin(setup.members)
        load_weights(self.weights, model, self.source.open(model))
        self.backend.finish()  # a peer may copy them as soon as this worker says that it is ready

    def _open_collectives(self, setup: Setup) -> Collectives | None:
        """None where no instance will ever have several workers."""
        config, backend = self.config, self.backend
        if setup.arena_fd < 0:
            return None
        arena = SharedArena(setup.arena_fd, config.num_devices, setup.arena_bytes)
        name = backend.collectives if config.collectives == "auto" else config.collectives
        # Longer than the controller waits: it decides who is to blame.
        timeout = config.step_timeout + 30
        wanted = Wanted(arena, self.worker, backend.device, timeout, setup.store_fd, backend.driver)
        collectives = COLLECTIVES.get(name).make(wanted)
        collectives.prepare([members for members in self.likely if len(members) > 1])
        return collectives

    def _layout(self, members: tuple[int, ...]) -> ParallelLayout:
        return ParallelLayout(len(members), members.index(self.worker), self.host.shards)

    def _begin(self, members: tuple[int, ...]) -> None:
        """A member of one instance, with nothing in its batch."""
        self.sequences: dict[int, WorkerSequence] = {}
        self.joint: _Joint | None = None
        self._untold = False  # whether copies are under way whose end peers must be told of; the same on all workers
        self.members, self.layout = members, self._layout(members)
        self.comm = self._communicator(members)
        self.place = self._place(self.device.book.kv)
        self._view_ffn(range(self.model.num_layers))

    def _record(self, max_positions: int) -> dict[Members, DecodeGraphs]:
        """Of every instance that this worker is likely to be in, where addresses stay and collectives can be recorded, so that a
        merge records nothing. Before weights are loaded, since each of them has its own; what a recording computes is garbage.
        """
        config, host = self.config, self.host
        if not self.backend.graphs or (config.transforms and not (host.padding and host.same_addresses)):
            return {}
        blocks, pool = -(-max_positions // host.block_size), graph_pool(self.backend.device)
        sizes = sizes_up_to(min(config.max_seqs, config.max_batch_tokens))
        recorded: dict[Members, DecodeGraphs] = {}
        for members in self.likely:
            fits = host.max_groups(len(members)) >= 1
            together = len(members) == 1 or (self.collectives is not None and self.collectives.capturable)
            if self.worker in members and fits and together:
                self.device.reset(self._layout(members), 0)
                self._begin(members)
                graphs = DecodeGraphs(self.decoder, self.weights, self.place.view, self.layout, self.comm, blocks, pool)
                graphs.capture(sizes)
                recorded[members] = graphs
        return recorded

    def reset(self, members: tuple[int, ...]) -> None:
        """From any state, a broken one too: an empty KV cache and FFN weights read from the source again."""
        self.sequences.clear()
        self.device.reset(self._layout(members), 0)
        self._begin(members)
        load_ffn(self.weights, self.source.open(self.model))
        self.backend.finish()

    def _communicator(self, members: tuple[int, ...]) -> Comm:
        return SOLO if self.collectives is None else self.collectives.comm(members)

    def _place(self, side: KVSide) -> Place:
        where = self.device.ranges[side.range]
        view = KVView.over(where, side.geometry, side.layout.kv_shards, self.dtype, self.decoder.kernels)
        return Place(view, side.layout)

    def _view_ffn(self, layers: Iterable[int]) -> None:
        """The FFN shards that :attr:`layout` computes, wherever they lie now."""
        sizes = self.device.book.ffn.units.rows
        for layer in layers:
            self.weights.layers[layer].ffn = [
                view_ffn(*self.device.ffn_unit(layer, shard), sizes[shard], self.model.hidden_size, self.dtype)
                for shard in self.layout.ffn_shards
            ]

    def page_counts(self) -> tuple[int, int]:
        """(weights, free) in pages."""
        pool = self.device.pool
        weights = sum(pool.mapped_pages(name) for name in self.device.ranges if not name.startswith("kv"))
        return weights, pool.free_pages

    @staticmethod
    def resident_bytes() -> int:
        """Peak resident set of this process, bytes (shared pages it touched included)."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def close(self) -> None:
        # Views into the pages must be gone before the mappings are.
        self.sequences.clear()
        self.joint = None
        self.graphs.clear()
        del self.weights, self.place
        if self.collectives is not None:
            self.collectives.close()  # some use the device's driver, which is closed with its pool
        self.device.close()

    # -- steps --------------------------------------------------------------------------------------------------------

    def step(self, message: Step) -> StepDone | None:
        """Computes one step; the answer comes from rank 0 alone."""
        started = time.monotonic()
        self._forget(message.dropped)
        self._learn(message.sampled)
        self._operate(message.ops, message.joined)
        if message.preempted and any(isinstance(op, Transfer) for op in message.ops):
            self._meet()  # a peer may still be reading blocks that are given up in this very step
        for slot in message.preempted:
            self._drop(slot)
        self._operate(message.late)
        self._take(message.new)
        for slot, ids in message.extended:
            self._extend(self.sequences[slot], ids)
        fault_point("step")
        rows = StepRows(message.rows, self.sequences)
        logits = None
        if message.rows:
            logits = self._forward(self._batch(rows))
        if self._untold or not message.rows:
            self._meet()
        self.device.pool.check()
        self.backend.finish()
        if self.layout.rank:
            return None
        tokens: list[int] = []
        if logits is not None:
            sampling = rows.sampling()
            tokens = sample(logits, [row for _, row in sampling])
            for (sequence, row), token in zip(sampling, tokens, strict=True):
                sequence.tokens[sequence.prompt_tokens + row.position] = token
        return StepDone(message.step, tokens, time.monotonic() - started)

    def _forward(self, batch: StepBatch) -> torch.Tensor | None:
        graphs = self.graphs.get(self.members) if self.joint is None else None
        # After a failure a group is another one, and what was recorded with the old one is of no use.
        if graphs and graphs.comm is self.comm and graphs.takes(batch):
            return graphs.forward(batch)
        return self.decoder.forward(self.weights, batch, self.layout, self.comm)

    def _meet(self) -> None:
        """Returns when the copies of all workers are done: then what they have read may be given up.

        Where copies overlap, a step that has launched some ends so; kernels and copies have run side by side by then. All workers
        come here or none, as the operations have it, whatever each of them had to copy. (On the CPU copies are done when they are
        launched, and the step's collectives suffice.) The last all-reduce could be the sign instead, if the device did it after
        the copies (join): that would spare such steps a meeting of the hosts, but the decoder would have to know of copies.
        """
        self.device.finish_copies()
        self.comm.barrier()
        self._untold = False

    def _batch(self, rows: StepRows) -> StepBatch:
        by_place: dict[int, tuple[Place, list[int]]] = {}
        for index, row in enumerate(rows.rows):
            place = self._where(self.sequences[row[0]])
            if place is not None:
                by_place.setdefault(id(place), (place, []))[1].append(index)
        parts: list[AttentionPart] = [rows.part(chosen, place) for place, chosen in by_place.values()]
        return rows.batch(parts)

    def _take(self, new: Sequence[NewSequence]) -> None:
        for each in new:
            sequence = WorkerSequence.of(each, self.host.block_size)
            self.sequences[each.slot] = sequence
            self._extend(sequence, each.blocks)

    def _where(self, sequence: WorkerSequence) -> Place | None:
        """Where its KV cache lies on this worker, None if it does not."""
        if self.joint is None:
            return self.place
        members = self.joint.shape.back_members if sequence.switched else self.joint.shape.front_members
        if self.worker not in members(sequence.narrow):
            return None
        return self.joint.back if sequence.switched else self.joint.front

    def _side(self, sequence: WorkerSequence) -> KVSide | None:
        book = self.device.book
        if self._where(sequence) is None:
            return None
        return book.kv_back if sequence.switched and self.joint else book.kv

    def _extend(self, sequence: WorkerSequence, ids: list[int]) -> None:
        place, side = self._where(sequence), self._side(sequence)
        sequence.extend(ids, place.view if place else None)
        if side is not None and ids:
            self.device.carry_out(Effect(map=[side.hold(np.array(ids))]))

    def _forget(self, slots: Sequence[int]) -> None:
        """At a Join, only some of them have been here."""
        for slot in slots:
            if slot in self.sequences:
                self._drop(slot)

    def _learn(self, sampled: Sequence[tuple[int, int, int]]) -> None:
        """Tokens that rank 0 sampled."""
        for slot, position, token in sampled:
            if slot in self.sequences:
                self.sequences[slot].tokens[position] = token

    def _drop(self, slot: int) -> None:
        sequence = self.sequences.pop(slot)
        side = self._side(sequence)
        if side is not None and sequence.ids:
            self.device.carry_out(Effect(unmap=[side.drop(np.array(sequence.ids))]))

    # -- transformations ----------------------------------------------------------------------------------------------

    def transform(self, message: Transform) -> dict[str, float]:
        """Carries operations out between steps; what they cost since the Join."""
        self._forget(message.dropped)
        self._learn(message.sampled)
        self._operate(message.ops, message.new)
        assert not self.device.copying, "peers take the answer as the end of all copies: a Settle comes last"
        self.device.pool.check()
        return self.device.spent.to_dict()

    def _operate(self, ops: Sequence[AnyOp], new: Sequence[NewSequence] = ()) -> None:
        for op in ops:
            fault_point(type(op).__name__)
            self.device.apply(op, self.comm.barrier)
            if isinstance(op, Transfer | FFN):
                self._untold = self.device.memory.overlaps
            elif isinstance(op, Barrier | Settle):
                self._untold = False
            if isinstance(op, Join):
                self._join(op, new)
            elif isinstance(op, Switch):
                self._switch(op)
            elif isinstance(op, FFN | FFNRelease) and self._computes_while_ffn_moves:
                self._view_ffn(range(op.first, op.stop))
            elif isinstance(op, Settle):
                self._settle()

    @property
    def _computes_while_ffn_moves(self) -> bool:
        """Where ranks do not nest, a split has all it needs again only once it has settled."""
        return self.joint is None or self.joint.shape.nested or self.joint.shape.kind == "merge"

    def _join(self, op: Join, new: Sequence[NewSequence]) -> None:
        began = time.perf_counter()
        shape, book = op.shape(), self.device.book
        assert book.kv_back is not None, "the device joins first"
        self.joint = _Joint(shape, shape.narrow_index(self.worker), self.place, self._place(book.kv_back))
        homes = dict(op.homes)
        for slot, sequence in self.sequences.items():
            sequence.narrow = homes[slot] if shape.kind == "split" else self.joint.narrow
            sequence.switched = False
        self.members, self.layout = shape.wide, shape.wide_layout(self.worker)
        if shape.kind == "merge":
            self.comm = self._communicator(shape.wide)
            # Collectives of different groups use the same buffers: nobody may still be reading an old result.
            self.comm.barrier()
        self._take([each for each in new if each.slot not in self.sequences])
        if shape.nested or shape.kind == "split":
            self._view_ffn(range(self.model.num_layers))
        self.device.spent.communicator_s += time.perf_counter() - began

    def _switch(self, op: Switch) -> None:
        assert self.joint is not None, "no transformation is under way"
        sequence = self.sequences[op.slot]
        sequence.narrow, sequence.switched, sequence.ids = op.narrow, True, []
        place = self._where(sequence)
        sequence.extend(unpack_ids(op.ids).tolist(), place.view if place else None)

    def _settle(self) -> None:
        began = time.perf_counter()
        joint = self.joint
        assert joint is not None, "no transformation is under way"
        self.joint = None
        self.place = joint.back
        self.layout = joint.shape.back_layout(self.worker)
        if joint.shape.kind == "split":
            # Of the wide instance: none of its workers may still be reading a result where a narrow instance puts the next one.
            self.comm.barrier()
            self.members = joint.shape.narrow[joint.narrow]
            self.comm = self._communicator(self.members)
            self.sequences = {slot: s for slot, s in self.sequences.items() if s.narrow == joint.narrow}
        for sequence in self.sequences.values():
            assert sequence.switched, "a sequence was left behind"
            sequence.switched, sequence.narrow = False, -1
        self._view_ffn(range(self.model.num_layers))
        self.device.spent.communicator_s += time.perf_counter() - began
