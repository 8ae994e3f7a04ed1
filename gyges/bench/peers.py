"""Who is measured. A peer is a class in a module of its own, run in a process of its own (see child.py).

To add one: write the module, add one line to the list below. The class is made without arguments; its methods take and
return what JSON can hold, and an exception's text becomes the peer's result:

    load(folder, threads, requests, kv_tokens)   opens the checkpoint in ``folder`` with ``threads`` threads; at most
        ``requests`` requests of ``kv_tokens`` tokens of context in all will come at once. Returns facts to report.
    prepare(prompts, outputs)   warms up for this work and chooses settings; untimed. Returns the settings to report.
    run(prompts, outputs, settings)   greedy, no end of sequence: exactly ``outputs[i]`` tokens for ``prompts[i]``, all
        requests given at once; ``settings`` are those of ``prepare``. Returns ``wall_s``, ``tokens`` (one list per
        request) and whatever else it can tell.
    close()                     ends what it started. Returns facts to report (``peak_rss_bytes`` by name).
"""

from __future__ import annotations

from dataclasses import dataclass

from gyges.registry import Registry

OWN, GENERATE, GENERATE_BATCH = "engine", "generate", "generate_batch"


@dataclass(frozen=True, slots=True)
class Peer:
    """``target``: module:Class.   label: for tables and plots.   about: what it is and how it is used, in a sentence.

    once: takes minutes, so it runs in the first repeat only.
    """

    target: str
    label: str
    about: str
    once: bool = False


PEERS: Registry[Peer] = Registry("peer")
PEERS.add(
    OWN,
    Peer("gyges.bench.own:OwnEngine", "this engine", "one TP1 instance on all cores, default batching, all at once"),
)
PEERS.add(
    GENERATE,
    Peer(
        "gyges.bench.generate:Generate",
        "generate",
        "transformers generate: left-padded batches by prompt length, static KV cache, batch size 16 or 64, "
        "whichever a trial found faster; each batch runs to its longest output",
    ),
)
PEERS.add(
    GENERATE_BATCH,
    Peer(
        "gyges.bench.generate_batch:GenerateBatch",
        "generate_batch",
        "transformers continuous batching, sdpa attention, own max_new_tokens for each request",
        once=True,
    ),
)
