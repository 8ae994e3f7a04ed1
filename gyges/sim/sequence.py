"""A request as the simulator carries it from instance to instance. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gyges.sim.instance import SimInstance

NEVER = -1  # a step that does not come


@dataclass(frozen=True, slots=True)
class Pace:
    """Copies beside serving that go by steps, not by the clock: so many ``steps`` each take ``more_s`` longer, and at least
    ``least_s``, which is what the copies of one step take alone."""

    steps: int
    more_s: float
    least_s: float

    def __post_init__(self) -> None:
        assert self.steps >= 1
        assert self.least_s > 0, "where nobody is served, a step takes as long as its copies"


@dataclass(slots=True, eq=False)
class SimSequence:
    """A request inside an instance. Lengths in tokens; ``order`` is its place in the line.

    left: tokens still to sample, when its present stay began.   base, last_step: while it decodes (see above), the step that
    samples its last token.   first_step: the first step of this stay that sampled.   admitted_s: when first in a batch.
    stays: (instance, first, end): steps whose end times are the times of its tokens.   arrival_s: on the host's clock.
    instance: name of the one where it ended.   reason: why it did not; "": it did, or it is under way.
    lost: no host was left for it.   early: between steps, it decodes and holds the block of its next token already.
    """

    order: int
    prompt_tokens: int
    max_tokens: int
    known: int = 0
    computed: int = 0
    left: int = 0
    base: int = 0
    last_step: int = NEVER
    first_step: int = NEVER
    admitted_s: float = -1.0
    preemptions: int = 0
    early: bool = False
    lost: bool = False
    arrival_s: float = 0.0
    instance: str = ""
    reason: str = ""
    stays: list[tuple[SimInstance, int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.known, self.left = self.prompt_tokens, self.max_tokens

    @property
    def max_length(self) -> int:
        """Tokens in the KV cache at its end."""
        return self.prompt_tokens + self.max_tokens - 1

    @property
    def missing(self) -> int:
        """Known tokens that are in no KV cache. Not while it decodes."""
        return self.known - self.computed

    def start_over(self) -> None:
        """Its KV cache is lost: what is known is computed again. Not while it decodes."""
        self.computed, self.early = 0, False
        self.preemptions += 1


def by_order(sequence: SimSequence) -> int:
    """Sort key: who came first."""
    return sequence.order
