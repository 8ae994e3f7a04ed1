"""The one trace schema. Times are seconds from the start of the trace, lengths are tokens.

A :class:`Trace` never changes; a transformation returns a new one whose :class:`Provenance` says what was done.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

from gyges.errors import UserError

MAX_HASH = 2**64 - 1


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request of a trace.

    arrival_s: seconds since the start of the trace, finite and >= 0.
    prompt_tokens, output_tokens: lengths in tokens, at least 1.
    session: requests with the same value belong to one conversation.
    prefix_hashes, hash_block: id of each block of ``hash_block`` prompt tokens, the last block possibly partial; equal
    ids mean equal tokens. Both are given or neither. Where there are fewer hashes than blocks, the rest is unshared.
    text: the prompt itself, where the source has it and no transformation has cut it.
    """

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    session: str | None = None
    prefix_hashes: tuple[int, ...] | None = None
    hash_block: int | None = None
    text: str | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.arrival_s) and self.arrival_s >= 0):
            raise UserError(f"arrival_s must be a finite number of seconds from 0 on, got {self.arrival_s}")
        if self.prompt_tokens < 1 or self.output_tokens < 1:
            raise UserError(
                f"lengths must be at least 1 token, got prompt {self.prompt_tokens} and output {self.output_tokens}"
            )
        if (self.prefix_hashes is None) != (self.hash_block is None):
            raise UserError("prefix_hashes and hash_block (tokens per hash) come together or not at all")
        if self.hash_block is not None and self.hash_block < 1:
            raise UserError(f"hash_block must be at least 1 token, got {self.hash_block}")
        if self.prefix_hashes is not None and (
            not self.prefix_hashes or min(self.prefix_hashes) < 0 or max(self.prefix_hashes) > MAX_HASH
        ):
            raise UserError("prefix_hashes must be one or more integers from 0 to 2**64 - 1")
        if self.session == "" or self.text == "":
            raise UserError("session and text are None where absent, not empty")

    @property
    def total_tokens(self) -> int:
        """Prompt plus output, tokens: the context that the request reaches."""
        return self.prompt_tokens + self.output_tokens

    def to_json(self) -> dict[str, Any]:
        """The request as a JSON object; absent fields are left out."""
        row: dict[str, Any] = {
            "arrival_s": self.arrival_s,
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.output_tokens,
        }
        if self.session is not None:
            row["session"] = self.session
        if self.prefix_hashes is not None:
            row["prefix_hashes"] = list(self.prefix_hashes)
            row["hash_block"] = self.hash_block
        if self.text is not None:
            row["text"] = self.text
        return row


@dataclass(frozen=True, slots=True)
class TransformRecord:
    """One applied transformation: its name, its parameters, and what it did (counts, detected values)."""

    name: str
    parameters: Mapping[str, Any]
    effect: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "parameters": dict(self.parameters), "effect": dict(self.effect)}


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a trace came from and everything done to it since; goes into every run's manifest.

    source: what the user named. sha256: of the source file's bytes; of the canonical JSON of parameters and seed for a
    synthetic trace; of dataset id, split, revision and fingerprint for a hub dataset.
    arrival_shift_s: seconds subtracted from the source's times so that the trace starts at 0.
    repairs: rows changed or dropped by ``--repair``, by kind. notes: approximations a reader must know of.
    """

    source: str
    format: str
    sha256: str
    licence: str = "unknown"
    home: str | None = None
    arrival_shift_s: float = 0.0
    rows_read: int = 0
    repairs: Mapping[str, int] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    transforms: tuple[TransformRecord, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A dict that ``json.dumps`` takes, for manifests."""
        return {
            "source": self.source,
            "format": self.format,
            "sha256": self.sha256,
            "licence": self.licence,
            "home": self.home,
            "arrival_shift_s": self.arrival_shift_s,
            "rows_read": self.rows_read,
            "repairs": dict(self.repairs),
            "details": dict(self.details),
            "notes": list(self.notes),
            "transforms": [record.to_json() for record in self.transforms],
        }


@dataclass(frozen=True)
class Trace:
    """Requests in order of arrival, and where they came from."""

    name: str
    requests: tuple[TraceRequest, ...]
    provenance: Provenance

    def __post_init__(self) -> None:
        if not self.requests:
            raise UserError(f"trace {self.name!r} holds no requests")
        arrivals = [request.arrival_s for request in self.requests]
        assert all(a <= b for a, b in pairwise(arrivals)), "a trace is sorted by arrival"

    def __len__(self) -> int:
        return len(self.requests)

    @property
    def duration_s(self) -> float:
        """Seconds from the first to the last arrival."""
        return self.requests[-1].arrival_s - self.requests[0].arrival_s

    @cached_property
    def content_sha256(self) -> str:
        """sha256 of the requests alone: two runs with the same value replayed the same thing."""
        digest = hashlib.sha256()
        for request in self.requests:
            # A JSON float is the shortest text that reads back to the same bits, so equal traces give equal bytes.
            digest.update(canonical_json(request.to_json()))
            digest.update(b"\n")
        return digest.hexdigest()

    def transformed(self, requests: Iterable[TraceRequest], record: TransformRecord) -> Trace:
        """This trace with other requests, and ``record`` added to what was done to it."""
        kept = tuple(requests)
        if not kept:
            raise UserError(f"{record.name} with {dict(record.parameters)} leaves no request of trace {self.name!r}")
        provenance = replace(self.provenance, transforms=(*self.provenance.transforms, record))
        return Trace(self.name, kept, provenance)

    def manifest(self) -> dict[str, Any]:
        """What a run's manifest records of its trace (a JSON-able dict)."""
        return {
            "name": self.name,
            "requests": len(self.requests),
            "duration_s": self.duration_s,
            "prompt_tokens": sum(request.prompt_tokens for request in self.requests),
            "output_tokens": sum(request.output_tokens for request in self.requests),
            "content_sha256": self.content_sha256,
            "provenance": self.provenance.to_json(),
        }


def canonical_json(value: Any) -> bytes:
    """One spelling per value: sorted keys, no blanks, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def sha256_json(value: Any) -> str:
    return hashlib.sha256(canonical_json(value)).hexdigest()
