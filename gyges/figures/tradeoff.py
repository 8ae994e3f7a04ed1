"""Figure 1: what tensor parallelism gives and costs. Qwen2.5-32B on 4 H20 as 4 x TP1, 2 x TP2 and TP4.

Context. Two readings side by side. Ours: what memory weights leave, prefill in chunks. The paper's: its limits lie almost on

    context(d) = (d u - W) / k        u usable memory of a device, W the weights, k bytes a token

Two of them give u and k; the third is then a prediction. k is far more than the KV cache of a token: the difference is what
a prefill needs that computes the whole prompt at once, with logits for every token of it.

Throughput. The paper does not say how many sequences an instance has. One reading fits: as many in every deployment, each
decoding; the number is read off the TP1 figure, the other two are then predictions. Beside it: requests of 1,000 prompt and 200
output tokens, as many as an instance takes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gyges.figures import paper
from gyges.figures.base import FIGURES, Context, Data, FigureKind, Line
from gyges.figures.drawing import label_bars, log_scale
from gyges.figures.shared import served_at_once, system_of
from gyges.metrics.plots import BLACK, BLUE, GREY, ORANGE, VERMILLION, new_figure, tidy
from gyges.sim.cost.base import StepShape
from gyges.sim.models import SimModel, sim_model

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DEVICES = 4
MODEL, HARDWARE = "Qwen/Qwen2.5-32B", "h20"
PROMPT, OUTPUT = 1000, 200
_SEQUENCES = (1, 2, 4, 6, 8, 9, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
_FP32 = 4


def fitted_context(degree: int) -> float:
    """Tokens that the line through the paper's limits at TP1 and TP2 gives at ``degree``: (degree u - W) / k."""
    per_device = paper.CONTEXT_TOKENS[2] - paper.CONTEXT_TOKENS[1]
    return paper.CONTEXT_TOKENS[1] + (degree - 1) * per_device


def fitted_bytes_per_token(model: SimModel) -> float:
    """k of that line, W / k being what no device at all would lack."""
    return model.weight_bytes(1) / -fitted_context(0)


def unchunked_bytes_per_token(model: SimModel) -> float:
    """What a token of a prefill holds at its peak if all prompt tokens get logits: KV, logits in the model's dtype and twice in
    fp32 (cast, softmax), gate and up and their product in one layer."""
    g = model.geometry
    logits = g.vocab_size * (g.item_size + 2 * _FP32)
    return model.kv_bytes_per_token(1) + logits + 3 * g.intermediate_size * g.item_size


def make(context: Context) -> Data:
    model = sim_model(MODEL)
    system = system_of("fixed", model, HARDWARE, DEVICES)

    def decoding(degree: int, sequences: int) -> float:
        """Output tokens/s of all devices, each instance decoding so many sequences of a 1K-token context."""
        step = StepShape(sequences, sequences * PROMPT, PROMPT, sampled=sequences)
        return DEVICES / degree * sequences / system.costs[degree].step_s(step)

    alike = min(range(1, 257), key=lambda n: abs(decoding(1, n) - paper.TOKENS_PER_S[1]))
    rows: list[dict[str, Any]] = []
    for degree, said in paper.CONTEXT_TOKENS.items():
        count = DEVICES // degree
        served = served_at_once(
            system, (degree,) * count, prompt=PROMPT, output=OUTPUT, requests=128 if context.quick else 1024
        )
        rows.append(
            {
                "deployment": f"{count} x TP{degree}",
                "degree": degree,
                "sequences": None,
                "paper_context_tokens": said,
                "context_tokens": system.kv_tokens[degree],
                "fitted_context_tokens": fitted_context(degree),
                "paper_tokens_per_s": paper.TOKENS_PER_S[degree],
                "decode_tokens_per_s": decoding(degree, alike),
                "served_output_tokens_per_s": served,
            }
        )
    summary = list(rows)
    for degree in paper.CONTEXT_TOKENS:
        for sequences in _SEQUENCES:
            rows.append(
                dict.fromkeys(rows[0])
                | {
                    "deployment": f"{DEVICES // degree} x TP{degree}",
                    "degree": degree,
                    "sequences": sequences,
                    "decode_tokens_per_s": decoding(degree, sequences),
                }
            )
    return Data(rows, _lines(summary, alike), _readings(model, alike), {"model": MODEL, "hardware": HARDWARE})


def _lines(rows: list[dict[str, Any]], alike: int) -> list[Line]:
    lines = []
    for row in rows:
        name, degree = row["deployment"], row["degree"]
        lines.append(
            Line(
                f"context of {name}", row["paper_context_tokens"], row["context_tokens"], "tokens", "arithmetic",
                "prefill in chunks: memory that weights and 2 GB of reserve leave",
            )
        )  # fmt: skip
        lines.append(
            Line(
                f"context of {name}, whole prefills", row["paper_context_tokens"], row["fitted_context_tokens"], "tokens",
                "predicted from TP1 and TP2" if degree == 4 else "fitted",
            )
        )  # fmt: skip
    for row in rows:
        name, degree = row["deployment"], row["degree"]
        lines.append(
            Line(
                f"throughput of {name}", row["paper_tokens_per_s"], row["decode_tokens_per_s"], "tok/s",
                f"simulated, {alike} sequences an instance" + (" (their number fitted here)" if degree == 1 else ""),
            )
        )  # fmt: skip
    for said, found, what in (
        ("paper_tokens_per_s", "decode_tokens_per_s", f"{alike} sequences an instance"),
        ("paper_tokens_per_s", "served_output_tokens_per_s", "as many as fit"),
    ):
        lines.append(
            Line(
                f"TP4 against 4 x TP1, {what}", rows[2][said] / rows[0][said] - 1, rows[2][found] / rows[0][found] - 1,
                "share", "simulated",
            )
        )  # fmt: skip
    return lines


def _readings(model: SimModel, alike: int) -> list[str]:
    k = fitted_bytes_per_token(model)
    u, miss = k * (fitted_context(1) - fitted_context(0)), fitted_context(4) / paper.CONTEXT_TOKENS[4] - 1
    return [
        f"{paper.DOUBTFUL['context']} (d u - W) / k through TP1 and TP2 has u = {u / 1e9:.1f} GB a device and "
        f"k = {k / 1e6:.2f} MB a token, and misses TP4 by {100 * miss:+.1f} %. KV cache, logits of all prompt tokens in bf16 and "
        f"twice in fp32, and one layer's FFN activations are {unchunked_bytes_per_token(model) / 1e6:.2f} MB a token.",
        f"The paper does not say how many sequences an instance has; {alike} of them, all decoding, give its TP1 figure, and the "
        "same number in every deployment is assumed. Served as many as fit, TP4 has the larger batch and loses far less.",
        "TP2 and TP4 are faster here than in the paper: an all-reduce is priced at 10 us and its bytes. Its figures ask for some "
        "20 us at TP2 and 50 us at TP4, as eager execution without CUDA graphs has.",
    ]


def draw(data: Data) -> Figure:
    figure = new_figure(11.5, 4.0)
    figure.get_layout_engine().set(wspace=0.06)
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.1, 1.2, 0.9))
    rows = data.where(sequences=None)
    _contexts(left, rows)
    _curves(middle, data)
    _shares(right, rows)
    figure.suptitle(f"{MODEL} on {DEVICES} H20, simulated", fontsize=10)
    return figure


def _contexts(axes: Axes, rows: list[Any]) -> None:
    columns = (
        ("paper_context_tokens", "paper", GREY),
        ("fitted_context_tokens", "line through its TP1 and TP2", ORANGE),
        ("context_tokens", "here, prefill in chunks", BLUE),
    )
    for shift, (column, label, colour) in enumerate(columns):
        x = [index + 0.27 * (shift - 1) for index in range(len(rows))]
        values = [row[column] / 1000 for row in rows]
        label_bars(axes, axes.bar(x, values, width=0.25, color=colour, label=label), values, size=7)
    log_scale(axes, (1, 3000))
    axes.set_ylim(1, 10_000)
    axes.set_ylabel("longest context of a request, 1,000 tokens (log)")
    axes.set_xticks(range(len(rows)), [row["deployment"] for row in rows])
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    tidy(axes)
    axes.grid(axis="x", visible=False)


_STYLES = {1: (BLUE, "o"), 2: (ORANGE, "s"), 4: (VERMILLION, "^")}


def _curves(axes: Axes, data: Data) -> None:
    for row in data.where(sequences=None):
        colour, marker = _STYLES[row["degree"]]
        curve = [r for r in data.rows if r["degree"] == row["degree"] and r["sequences"]]
        axes.plot(
            [r["sequences"] for r in curve], [r["decode_tokens_per_s"] for r in curve], color=colour, marker=marker,
            ms=3.5, lw=1.4, label=row["deployment"],
        )  # fmt: skip
        axes.axhline(row["paper_tokens_per_s"], color=colour, ls=":", lw=1.2)
        axes.annotate(
            f"paper, {row['deployment']}", (256, row["paper_tokens_per_s"]), (0, 2), textcoords="offset points",
            ha="right", fontsize=7.5, color=colour,
        )  # fmt: skip
    log_scale(axes, _SEQUENCES, "x")
    log_scale(axes, [row["decode_tokens_per_s"] for row in data.rows])
    axes.set_xlabel("sequences decoding in each instance (log)")
    axes.set_ylabel("output tokens/s of all devices (log)")
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    tidy(axes)


def _shares(axes: Axes, rows: list[Any]) -> None:
    columns = (
        ("paper_tokens_per_s", "paper", GREY),
        ("decode_tokens_per_s", "same number of\nsequences", BLUE),
        ("served_output_tokens_per_s", "as many as fit", BLACK),
    )
    for shift, (column, label, colour) in enumerate(columns):
        x = [index + 0.27 * (shift - 1) for index in range(len(rows))]
        values = [round(100 * row[column] / rows[0][column]) for row in rows]
        label_bars(axes, axes.bar(x, values, width=0.25, color=colour, label=label), values, size=7)
    axes.set_ylabel("throughput, % of 4 x TP1")
    axes.set_ylim(0, 165)
    axes.set_xticks(range(len(rows)), [row["deployment"] for row in rows])
    axes.legend(frameon=False, fontsize=8, loc="upper right")
    tidy(axes)
    axes.grid(axis="x", visible=False)


FIGURES.add(
    "tp-tradeoff",
    FigureKind("What tensor parallelism gives and costs", "trade-off", "section 1, motivation", make, draw),
)
