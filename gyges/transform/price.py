"""How many bytes a transformation moves between devices, by arithmetic, before there is a plan. Torch-free."""

from __future__ import annotations

from gyges.transform.host import HostShape


def bytes_to_move(host: HostShape, before: tuple[int, ...], after: tuple[int, ...], held_tokens: int) -> int:
    """From instances of TP degrees ``before`` to ``after``, whose requests hold ``held_tokens`` tokens of KV cache, bytes.

    KV cache that n devices hold and N > n are to hold (or the other way round) moves all but n/N of it. FFN weights are given
    up by a padded merge and gathered by a split, as far as they are more than what is there; without padding, what is kept
    is copied as well.
    """
    wide, narrow = max(*before, *after), before if len(before) > 1 else after
    share = sum(degree * (1 - degree / wide) for degree in narrow) / sum(narrow)
    kv = held_tokens * host.model.kv_bytes_per_token * share
    page = host.page_bytes
    weights = {degree: host.weight_pages(degree) - host.resident_layout.pages for degree in {wide, *narrow}}
    gathered = sum(degree * (weights[degree] - weights[wide]) for degree in narrow)
    ffn = gathered * page if len(after) > 1 else 0
    if not host.padding:
        ffn += wide * weights[wide] * page
    return int(kv) + ffn
