"""Everything a user may ask of a trace, in one frozen value that every command shares."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from gyges.errors import UnknownNameError, UserError

ROLES = ("arrival", "prompt", "output", "session", "hashes", "hash_block", "text", "output_text", "chat")
OVER_CONTEXT = ("drop", "clamp")


@dataclass(frozen=True, slots=True)
class TraceOptions:
    """How to read a trace and what to do to it. The defaults change nothing.

    Reading: ``format`` (None: recognised by its columns), ``columns`` (role -> column, see :data:`ROLES`), ``repair``
    (drop impossible rows and sort, counted, instead of refusing), ``rate`` (requests/s: generate Poisson arrivals,
    replacing any in the data), ``tokenizer`` (Hugging Face folder or id that measures text), ``revision`` and
    ``split`` of a Hugging Face dataset.

    Changing, in this order: ``dequantize`` (spread arrivals inside the source's clock tick, ``tick_s`` seconds or
    detected), ``length_scale``, ``max_context`` tokens with ``over_context`` drop or clamp, ``time_scale`` (gaps are
    multiplied: below 1 is faster), ``duration`` (seconds of the trace as replayed), ``limit`` (requests), ``mix_in`` (a
    synthetic spec whose requests join those of the trace, over the same time unless it says otherwise).
    ``seed`` drives whatever is random.
    """

    format: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    repair: bool = False
    rate: float | None = None
    tokenizer: str | None = None
    revision: str | None = None
    split: str | None = None
    dequantize: bool = False
    tick_s: float | None = None
    length_scale: float = 1.0
    max_context: int | None = None
    over_context: str = "drop"
    time_scale: float = 1.0
    duration: float | None = None
    limit: int | None = None
    mix_in: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for role in self.columns:
            if role not in ROLES:
                raise UnknownNameError("column role", role, ROLES, "Write --columns role=column,role=column.")
        for name in ("rate", "tick_s", "length_scale", "time_scale", "duration"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UserError(f"{name.replace('_', '-')} must be a positive number, got {value}")
        if self.limit is not None and self.limit < 1:
            raise UserError(f"limit must be at least 1 request, got {self.limit}")
        if self.max_context is not None and self.max_context < 2:
            raise UserError(f"max-context must be at least 2 tokens (one in, one out), got {self.max_context}")
        if self.over_context not in OVER_CONTEXT:
            raise UnknownNameError("over-context policy", self.over_context, OVER_CONTEXT)
        if self.seed < 0:
            raise UserError(f"seed must be 0 or positive, got {self.seed}")
        if self.tick_s is not None and not self.dequantize:
            raise UserError("a tick is only used by dequantize; ask for both")

    def refuse(self, names: tuple[str, ...], why: str) -> None:
        """Raise if one of the options in ``names`` was set: an option without effect would mislead."""
        defaults = TraceOptions()
        for name in names:
            if getattr(self, name) != getattr(defaults, name):
                raise UserError(f"--{name.replace('_', '-')} has no meaning here: {why}")

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "columns": dict(self.columns)}


def parse_columns(text: str | None) -> dict[str, str]:
    """``"arrival=ts,prompt=in"`` as a dict; a column name may hold blanks but no comma."""
    mapping: dict[str, str] = {}
    for part in (text or "").split(","):
        if not part.strip():
            continue
        role, separator, column = part.partition("=")
        role, column = role.strip(), column.strip()
        if not separator or not role or not column:
            raise UserError(f"cannot read column mapping {part!r}; write role=column, role one of {', '.join(ROLES)}")
        if role in mapping:
            raise UserError(f"column role {role!r} is given twice: {mapping[role]!r} and {column!r}")
        mapping[role] = column
    return mapping
