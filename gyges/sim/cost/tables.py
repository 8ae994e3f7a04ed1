"""Step times from measured operator tables: the sum of the operators of a step, each read from its curve."""

from __future__ import annotations

from collections import Counter

import numpy as np

from gyges.core import ModelGeometry
from gyges.errors import UserError
from gyges.sim.cost.attention import AttentionTable
from gyges.sim.cost.base import StepShape
from gyges.sim.cost.bundle import (
    PER_LAYER,
    PER_LAYER_OPTIONAL,
    PER_SEQUENCE,
    PER_SEQUENCE_OPTIONAL,
    PER_STEP,
    Bundle,
)  # fmt: skip
from gyges.sim.cost.curves import weighted_sum
from gyges.sim.hardware import Hardware


class TableCost:
    """Implements :class:`gyges.sim.cost.base.CostModel` from a bundle.

    all-reduces: measured ones if the bundle has ``all_reduce``, else those of the hardware's link (bundles that emulate a TP
    degree on one card have none), which then must be given. Norms and embedding are not sharded, as measured.

    Between two kernels the device idles for the hardware's ``kernel_gap_s``, or ``launch_gap_s`` in steps of more than
    ``graph_tokens`` tokens, for which the engine has no CUDA graph; each call of an operator counts as one kernel.

    steps, extrapolated: how many steps were priced, and of those how many lie beyond a measured range, by which; the loop's
    manifest carries :meth:`coverage`.
    """

    def __init__(
        self,
        bundle: Bundle,
        geometry: ModelGeometry,
        degree: int = 1,
        hardware: Hardware | None = None,
        graph_tokens: int = 512,
    ) -> None:
        tables = bundle.tables(degree)
        self.degree, self.bundle = degree, bundle
        self._layers = geometry.num_layers
        layer = PER_LAYER | PER_LAYER_OPTIONAL
        self._dense = weighted_sum(
            [(float(n * geometry.num_layers), tables.dense[op]) for op, n in layer.items() if op in tables.dense]
            + [(float(n), tables.dense[op]) for op, n in PER_STEP.items()]
        )
        self._sampling = weighted_sum(
            (float(n), tables.per_sequence[op])
            for op, n in (PER_SEQUENCE | PER_SEQUENCE_OPTIONAL).items()
            if op in tables.per_sequence
        )
        self._unsampled = max(tables.per_sequence["step"].ys[0], 0.0) if "step" in tables.per_sequence else 0.0
        self._attention = AttentionTable(tables.attention, tables.skew)
        self._reduce: tuple[float, float] = (0.0, 0.0)  # us: least, per token; all layers
        if degree > 1 and "all_reduce" not in tables.dense:
            if hardware is None:
                raise UserError(
                    f"profile {bundle.path} has no all_reduce at TP{degree}; name the hardware, whose link gives it"
                )
            sent = 2 * (degree - 1) / degree * geometry.hidden_size * geometry.item_size
            reduces = 2 * geometry.num_layers * 1e6
            link = hardware.link_bytes_per_s * hardware.link_efficiency
            self._reduce = hardware.all_reduce_s * reduces, sent / link * reduces
        calls = sum(n for op, n in layer.items() if op in tables.dense) + 1  # attention
        calls = calls * geometry.num_layers + len(PER_STEP) + len(PER_SEQUENCE)
        self._graph_tokens = graph_tokens
        self._graph_gaps = calls * hardware.kernel_gap_s * 1e6 if hardware else 0.0
        self._launch_gaps = calls * hardware.launch_gap_s * 1e6 if hardware else 0.0
        self._linear: dict[tuple[int, int], float] = {}
        self.steps = 0
        self.extrapolated: Counter[str] = Counter()

    def step_s(self, shape: StepShape) -> float:
        tokens = shape.decodes + sum(chunk for chunk, _ in shape.prefills)
        linear = self._linear_us(tokens, shape.sampled)
        if shape.prefills:
            attention = self._attention.mixed_us(
                shape.prefills, shape.decodes, shape.decode_context, shape.decode_longest
            )
        elif shape.decodes:
            attention = self._attention.decode_us(shape.decodes, shape.decode_context, shape.decode_longest)
        else:
            attention = 0.0
        self._count(shape, tokens)
        return (linear + attention * self._layers) * 1e-6

    def decode_steps_s(self, decodes: int, context: int, longest: int, steps: int) -> np.ndarray:
        index = np.arange(steps, dtype=np.int64)
        linear = self._linear_us(decodes, decodes)
        attention = self._attention.decode_many_us(decodes, context + decodes * index, longest + index)
        self.steps += steps
        if decodes > self._attention.most_decodes:
            self.extrapolated["decodes"] += steps
        elif longest + steps - 1 > self._attention.longest_context:
            self.extrapolated["context"] += int((longest + index > self._attention.longest_context).sum())
        return (linear + attention * self._layers) * 1e-6

    def coverage(self) -> dict[str, float | dict[str, int]]:
        """``steps``, ``extrapolated_share`` of them, and how many by the first range that each is beyond."""
        beyond = sum(self.extrapolated.values())
        return {
            "steps": self.steps,
            "extrapolated_share": beyond / self.steps if self.steps else 0.0,
            "beyond": dict(self.extrapolated),
        }

    def _linear_us(self, tokens: int, sampled: int) -> float:
        key = tokens, sampled
        if (known := self._linear.get(key)) is None:
            least, per_token = self._reduce
            sampling = self._sampling(sampled) if sampled else self._unsampled
            gaps = self._graph_gaps if tokens <= self._graph_tokens else self._launch_gaps
            known = self._dense(tokens) + sampling + gaps + least + tokens * per_token
            self._linear[key] = known
        return known

    def _count(self, shape: StepShape, tokens: int) -> None:
        table = self._attention
        self.steps += 1
        if shape.decodes > table.most_decodes:
            self.extrapolated["decodes"] += 1
        elif shape.decode_longest > table.longest_context:
            self.extrapolated["context"] += 1
        elif shape.prefills and tokens > self._dense.xs[-1]:
            self.extrapolated["tokens"] += 1
        elif shape.prefills and max(before for _, before in shape.prefills) > table.most_before:
            self.extrapolated["tokens before a chunk"] += 1
