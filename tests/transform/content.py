"""What belongs where, as stamps instead of tensors, so that every value can be followed through transformations.

Computed from the model and from addresses (KVGeometry.address, FFNLayout.units), never from copies:

    KV     value of (block, layer, head, kv, token, dim)  ->  a number of its own, > 0
    FFN    element i of (layer, shard)                    ->  a number of its own, < 0
    pages  just mapped or just given up                   ->  poison
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gyges.core import ModelGeometry
from gyges.kv_cache.layouts import LAYOUTS
from gyges.parallel.sharding import ParallelLayout
from gyges.transform.host import HostShape

RESIDENT = (("embed", (7, 5)), ("norm", (9,)))
NEVER_MAPPED, UNMAPPED, FRESH = -1, -2, -3


def make_host(
    layout: str,
    padding: bool,
    *,
    devices: int,
    degrees: tuple[int, ...],
    heads: int,
    kv_heads: int,
    page_bytes: int,
    block_size: int,
    layers: int = 2,
    head_dim: int = 4,
    hidden: int = 8,
    rows_per_shard: int = 3,
    spare_pages: int = 0,
) -> HostShape:
    """The smallest devices on which every degree can run, and ``spare_pages`` more."""
    rows = int(np.lcm.reduce(degrees)) * rows_per_shard
    model = ModelGeometry(layers, hidden, heads, kv_heads, head_dim, rows, 64, 4, False)

    def of(pages: int) -> HostShape:
        return HostShape(
            model, RESIDENT, degrees, LAYOUTS.get(layout), padding, page_bytes, pages, devices, block_size
        )  # fmt: skip

    return of(max(of(0).needed_pages(degree) for degree in degrees) + spare_pages)


# -- stamps -----------------------------------------------------------------------------------------------------------


def kv_elements(host: HostShape, layout: ParallelLayout, blocks: Sequence[int]) -> np.ndarray:
    """Addresses (elements) [blocks, shards held, heads, layers, kv, tokens, dim] on a worker of that layout."""
    g, m = host.kv_geometry(layout.degree), host.model
    held = np.array(layout.kv_shards)
    index = np.ix_(
        np.asarray(blocks, np.int64),
        held if g.layout.shards_leave_whole else held - held[0],
        range(m.num_kv_heads // host.shards.kv),
        range(m.num_layers),
        range(2),
        range(host.block_size),
        range(m.head_dim),
    )
    block, shard, head, layer, kv, token, dim = index
    return g.address(layer=layer, block=block, shard=shard, head=head, kv=kv, token=token, dim=dim)


def kv_stamps(host: HostShape, layout: ParallelLayout, uids: Sequence[int]) -> np.ndarray:
    """What is at :func:`kv_elements`. ``uids``: of the blocks, for life, whatever their ids are."""
    m = host.model
    per_shard = m.num_kv_heads // host.shards.kv
    block, shard, head, layer, kv, token, dim = np.ix_(
        np.asarray(uids, np.int64),
        np.array(layout.kv_shards),
        range(per_shard),
        range(m.num_layers),
        range(2),
        range(host.block_size),
        range(m.head_dim),
    )
    stamp = block
    for size, index in (
        (m.num_kv_heads, shard * per_shard + head),
        (m.num_layers, layer),
        (2, kv),
        (host.block_size, token),
        (m.head_dim, dim),
    ):
        stamp = stamp * size + index
    return stamp + 1


def ffn_span(host: HostShape, layout: ParallelLayout, layer: int, shard: int) -> tuple[np.ndarray, np.ndarray]:
    """(elements, stamps) of a unit."""
    units, item = host.ffn_layout(layout), host.model.item_size
    rows = host.model.intermediate_size // host.shards.ffn  # the degrees divide them
    count = 3 * rows * host.model.hidden_size
    assert units.units[layer, shard] % item == 0
    inside = np.arange(count)
    return units.units[layer, shard] // item + inside, -100 - ((layer * host.shards.ffn + shard) * count + inside)
