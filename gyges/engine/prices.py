"""What a transformation and a piece of work cost on this engine: bytes by arithmetic, rates from what has happened so far."""

from __future__ import annotations

from gyges.engine.transformer import TransformationReport
from gyges.transform.host import HostShape
from gyges.transform.price import bytes_to_move

# Before anything has been measured: 2 cores of a server processor (results/transform, results/peers).
_FIXED_S, _BYTES_PER_S, _TOKENS_PER_S = 0.01, 2e9, 1000.0
_NEWEST = 0.3  # weight of the newest transformation
_MEMORY_S = 5.0  # of busy time, after which the rate of work has mostly forgotten what was before


class MeasuredPrices:
    """The engine's prices (gyges.scheduling.routing.Prices). Used by the controller's thread alone."""

    def __init__(self, host: HostShape) -> None:
        self._host = host
        self._slowness = 1.0  # measured transformation times over those of the rates above
        self._rates: dict[int, float] = {}  # TP degree -> tokens per busy second

    def transformation_s(self, before: tuple[int, ...], after: tuple[int, ...], held_tokens: int) -> float:
        """Raises KeyError for a degree that the host does not have."""
        return self._slowness * self._expected_s(bytes_to_move(self._host, before, after, held_tokens))

    def work_s(self, tokens: int, degree: int) -> float:
        return tokens / self._rates.get(degree, _TOKENS_PER_S)

    @staticmethod
    def _expected_s(moved: int) -> float:
        return _FIXED_S + moved / _BYTES_PER_S

    def note_transformation(self, report: TransformationReport) -> None:
        """One that was carried out."""
        ratio = (report.end_s - report.start_s) / self._expected_s(report.bytes_moved)
        self._slowness += _NEWEST * (ratio - self._slowness)

    def note_step(self, tokens: int, degree: int, seconds: float) -> None:
        """One step of an instance: tokens computed, prompt and output alike."""
        rate = tokens / max(seconds, 1e-6)
        known = self._rates.get(degree, rate)
        self._rates[degree] = known + min(1.0, seconds / _MEMORY_S) * (rate - known)
