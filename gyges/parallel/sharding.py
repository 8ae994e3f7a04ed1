"""How a model is sharded, as data. Torch-free, immutable: it is passed to the model at every step, because it changes.

KV heads and FFN rows are cut into *shards* once, fine enough for every TP degree the host may reach; an instance of degree
d gives each worker a contiguous range of them.

    8 query heads, 4 KV heads, candidate degrees 1, 2, 4  ->  4 shards of 1 KV head and 2 query heads

    TP1   [ s0 s1 s2 s3 ]             one worker
    TP2   [ s0 s1 ][ s2 s3 ]          two workers
    TP8   [s0][s0][s1][s1] ...        KV heads replicated, each worker has 1 query head of its shard
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import lcm

from gyges.core import ModelGeometry
from gyges.errors import UserError


@dataclass(frozen=True, slots=True)
class ShardCount:
    """Into how many shards a model is cut: ``kv`` for KV heads, ``ffn`` for FFN rows."""

    kv: int
    ffn: int

    @classmethod
    def for_degrees(cls, geometry: ModelGeometry, degrees: Iterable[int]) -> ShardCount:
        """The coarsest cut that serves every degree. Raises ValueError for a degree the model cannot take."""
        degrees = list(degrees)
        for degree in degrees:
            reason = geometry.tp_degree_error(degree)
            if reason:
                valid = geometry.valid_tp_degrees(64)
                raise UserError(f"TP degree {degree} is impossible: {reason}; this model can take {valid}")
        kv = lcm(*(d for d in degrees if geometry.num_kv_heads % d == 0))
        if any(d > geometry.num_kv_heads for d in degrees):
            kv = geometry.num_kv_heads
        return cls(kv=kv, ffn=lcm(*degrees))


@dataclass(frozen=True, slots=True)
class ParallelLayout:
    """What rank ``rank`` of an instance of TP degree ``degree`` holds and computes. All ranges are half open."""

    degree: int
    rank: int
    shards: ShardCount

    @property
    def kv_shards(self) -> range:
        """KV shards on this worker; shared with neighbours where the degree exceeds the number of shards."""
        if self.degree > self.shards.kv:
            only = self.rank * self.shards.kv // self.degree
            return range(only, only + 1)
        per = self.shards.kv // self.degree
        return range(self.rank * per, (self.rank + 1) * per)

    @property
    def ffn_shards(self) -> range:
        per = self.shards.ffn // self.degree
        return range(self.rank * per, (self.rank + 1) * per)

    def query_heads(self, geometry: ModelGeometry) -> range:
        per = geometry.num_heads // self.degree
        return range(self.rank * per, (self.rank + 1) * per)

    def vocab_rows(self, geometry: ModelGeometry) -> range:
        """Rows of the LM head whose logits this worker computes."""
        v = geometry.vocab_size
        return range(self.rank * v // self.degree, (self.rank + 1) * v // self.degree)


def ffn_shard_rows(intermediate_size: int, num_shards: int, shard: int) -> range:
    """FFN rows of one shard; sizes differ by at most one where the rows do not divide evenly."""
    return range(intermediate_size * shard // num_shards, intermediate_size * (shard + 1) // num_shards)
