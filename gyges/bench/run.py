"""The benchmark as a whole: who runs when, what is paired with what, and which goals were reached. No torch here.

A round is one mix served once by every peer, in turn, with the machine's rates measured before and after it; rounds of
all mixes make a repeat (a peer that takes minutes runs in the first one only). Ratios pair the runs of one round, so that
a machine that is slower for a minute slows both sides of a ratio; a share of the floor uses the mean of its round's rates.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

from gyges.bench.child import KEEP_FREED_MEMORY, Child, ChildError
from gyges.bench.floor import cost_of, floor_of
from gyges.bench.mixes import MIXES, Work, make_work
from gyges.bench.peers import GENERATE, GENERATE_BATCH, OWN, PEERS
from gyges.config import available_cores
from gyges.core import ModelGeometry
from gyges.errors import UnknownNameError, UserError
from gyges.models.hub import ResolvedModel, resolve_model
from gyges.models.presets import PRESETS

LOAD_TIMEOUT_S = 240.0
PREPARE_TIMEOUT_S = 600.0
RUN_TIMEOUT_S = 1200.0
RATES_TIMEOUT_S = 120.0
STARTUP_TIMEOUT_S = 240.0

ALL_REDUCE, STARTUP = "all-reduce", "start-up"
ALL_REDUCE_WORKERS, ALL_REDUCE_BYTES = 4, 16 * 1024
STARTUP_MODEL = "tiny"
STARTUP_LAYOUTS = {"4 x TP1": (1, 1, 1, 1), "1 x TP4": (4,)}
_SIDE_REPEATS = 2

Progress = Callable[[str], None]
Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class PeersConfig:
    """What to measure. ``skip``: peers, or the parts "all-reduce" and "start-up". Raises UserError for unknown names."""

    preset: str = "small"
    mixes: tuple[str, ...] = ("mixed", "decode-heavy")
    requests: int = 64
    repeats: int = 2
    seed: int = 0
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        PRESETS.get(self.preset)
        for mix in self.mixes:
            MIXES.get(mix)
        known = [*PEERS.names(), ALL_REDUCE, STARTUP]
        for name in self.skip:
            if name not in known:
                raise UnknownNameError("part to skip", name, known)
        if not self.mixes:
            raise UserError(f"give at least one request mix: {', '.join(MIXES.names())}")
        if self.requests < 1 or self.repeats < 1:
            raise UserError(f"requests and repeats are at least 1, got {self.requests} and {self.repeats}")

    @property
    def peers(self) -> list[str]:
        return [name for name in PEERS.names() if name not in self.skip]


@dataclass(slots=True)
class _Measured:
    """One peer on one mix: the results of its rounds by number, or why there are none (any more)."""

    runs: dict[int, Document] = field(default_factory=dict)
    settings: Document = field(default_factory=dict)
    error: str | None = None


def bench_peers(config: PeersConfig, progress: Progress) -> Document:
    """Everything; minutes. Peers that fail are reported with their error; nothing that was started outlives the call."""
    model = resolve_model(config.preset)
    geometry = model.config.geometry("float32")
    works = {mix: make_work(mix, config.requests, geometry.vocab_size, config.seed) for mix in config.mixes}
    with tempfile.TemporaryDirectory(prefix="gyges-bench-") as folder:
        mixes, rates, peers = _measure(config, geometry, works, folder, progress)
    from gyges.models.source import tensor_shapes

    parameters = sum(math.prod(shape) for shape in tensor_shapes(model.config).values())
    document: Document = {
        "configuration": asdict(config),
        "cores": available_cores(),
        "model": {"name": config.preset, "parameters": parameters, "dtype": "float32", **_sizes(model, geometry)},
        "rates": rates,
        "peers": peers,
        "mixes": mixes,
        "all_reduce": None if ALL_REDUCE in config.skip else measure_all_reduce(progress),
        "start_up": None if STARTUP in config.skip else measure_startup(progress),
    }
    document["goals"] = goals(document)
    return document


def _sizes(model: ResolvedModel, geometry: ModelGeometry) -> Document:
    return {"architecture": model.config.architecture, "geometry": asdict(geometry)}


# -- rounds -----------------------------------------------------------------------------------------------------------


def _measure(
    config: PeersConfig, geometry: ModelGeometry, works: Mapping[str, Work], folder: str, progress: Progress
) -> tuple[Document, Document, Document]:
    """(mixes, rates, peers) of the document."""
    threads = available_cores()
    measured = {mix: {name: _Measured() for name in config.peers} for mix in works}
    facts: dict[str, Document] = {name: asdict(PEERS.get(name)) for name in config.peers}
    samples: dict[tuple[str, int], list[Document]] = {}
    with contextlib.ExitStack() as stack:
        rates = stack.enter_context(Child("gyges.bench.rates:Rates", threads, guards=folder))
        progress(f"writing {config.preset} as a checkpoint for all peers")
        rates.call("write_checkpoint", LOAD_TIMEOUT_S, preset=config.preset, folder=folder)
        sizes = {"hidden": geometry.hidden_size, "intermediate": geometry.intermediate_size}
        rates.call("load", LOAD_TIMEOUT_S, threads=threads, **sizes)
        children = {
            name: stack.enter_context(Child(PEERS.get(name).target, threads, KEEP_FREED_MEMORY))
            for name in config.peers
        }
        kv_tokens = max(sum(p + n for p, n in work.lengths) for work in works.values())
        needs = {"folder": folder, "threads": threads, "requests": config.requests, "kv_tokens": kv_tokens}

        def load(name: str) -> None:
            with _failure_of([measured[mix][name] for mix in works]):
                facts[name]["load"] = children[name].call("load", LOAD_TIMEOUT_S, **needs)

        progress(f"loading {', '.join(children)}")
        with ThreadPoolExecutor(max(1, len(children))) as pool:  # side by side: nothing is timed yet
            list(pool.map(load, children))
        for mix, work in works.items():
            for name, child in children.items():
                one = measured[mix][name]
                if one.error is None:
                    progress(f"{mix}: warming up {name}")
                    with _failure_of([one]):
                        arguments = {"prompts": work.prompts, "outputs": work.outputs}
                        one.settings = child.call("prepare", PREPARE_TIMEOUT_S, **arguments)
        for repeat in range(config.repeats):
            for mix, work in works.items():
                before = rates.call("measure", RATES_TIMEOUT_S)
                for name, child in children.items():
                    if repeat and PEERS.get(name).once:
                        continue
                    said = _run_once(child, measured[mix][name], work, repeat)
                    progress(f"{mix}, repeat {repeat + 1} of {config.repeats}: {name}: {said}")
                samples[mix, repeat] = [before, rates.call("measure", RATES_TIMEOUT_S)]
        for name, child in children.items():
            with contextlib.suppress(ChildError):
                facts[name]["end"] = child.call("close", LOAD_TIMEOUT_S)
    mixes = {
        mix: _mix_result(work, geometry, measured[mix], {r: s for (m, r), s in samples.items() if m == mix})
        for mix, work in works.items()
    }
    return mixes, _rates_result(samples), facts


def _run_once(child: Child, one: _Measured, work: Work, repeat: int) -> str:
    """One peer's part of a round, kept in ``one``; says how it went."""
    if one.error is None:
        with _failure_of([one]):
            settings = one.settings
            run = child.call("run", RUN_TIMEOUT_S, prompts=work.prompts, outputs=work.outputs, settings=settings)
            _check(run, work)
            one.runs[repeat] = run
            return f"{run['wall_s']:.1f} s, {work.useful_tokens / run['wall_s']:.0f} useful tokens/s"
    return f"failed: {one.error}"


@contextlib.contextmanager
def _failure_of(affected: Sequence[_Measured]) -> Iterator[None]:
    """A peer that fails is a result, not the end of the benchmark."""
    try:
        yield
    except ChildError as error:
        for one in affected:
            one.error = str(error)


def _check(run: Document, work: Work) -> None:
    counts = [len(tokens) for tokens in run["tokens"]]
    if counts != list(work.outputs):
        wrong = next(i for i, (got, wanted) in enumerate(zip(counts, work.outputs, strict=True)) if got != wanted)
        raise ChildError(f"request {wrong} has {counts[wrong]} tokens, {work.outputs[wrong]} were asked for")


# -- figures ----------------------------------------------------------------------------------------------------------


def spread(values: Sequence[float]) -> Document | None:
    """Median, smallest and largest of ``values``, and themselves; None of none."""
    if not values:
        return None
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "values": list(values)}


def agreement(tokens: Sequence[Sequence[int]], reference: Sequence[Sequence[int]]) -> Document:
    """How far two peers' tokens are the same: whole requests, and tokens before the first difference of each request."""
    prefix = total = same = 0
    for mine, theirs in zip(tokens, reference, strict=True):
        at = next((i for i, (a, b) in enumerate(zip(mine, theirs, strict=True)) if a != b), len(mine))
        prefix, total, same = prefix + at, total + len(mine), same + (at == len(mine))
    return {"requests": same / max(1, len(tokens)), "tokens": prefix / max(1, total)}


def _mean_rates(pair: Sequence[Document]) -> tuple[float, float]:
    return (
        statistics.fmean(sample["gemm_flops_per_s"] for sample in pair),
        statistics.fmean(sample["copy_bytes_per_s"] for sample in pair),
    )


def _mix_result(
    work: Work, geometry: ModelGeometry, measured: Mapping[str, _Measured], samples: Mapping[int, Sequence[Document]]
) -> Document:
    cost = cost_of(work.lengths, geometry)
    floors = {repeat: floor_of(cost, *_mean_rates(pair)) for repeat, pair in samples.items()}
    time_s = spread([floor.time_s for floor in floors.values()])
    peers: Document = {}
    for name, one in measured.items():
        peers[name] = {
            "error": one.error,
            "settings": one.settings,
            "wall_s": spread([run["wall_s"] for run in one.runs.values()]),
            "tokens_per_s": spread([work.useful_tokens / run["wall_s"] for run in one.runs.values()]),
            "share_of_floor": spread([floors[r].time_s / run["wall_s"] for r, run in one.runs.items()]),
            "ratio_to": {
                other: spread([two.runs[r]["wall_s"] / run["wall_s"] for r, run in one.runs.items() if r in two.runs])
                for other, two in measured.items()
                if other != name
            },
            "agreement_with": {
                other: agreement(_any(one)["tokens"], _any(two)["tokens"])
                for other, two in measured.items()
                if other != name and one.runs and two.runs
            },
            "details": [{k: v for k, v in run.items() if k not in ("tokens", "wall_s")} for run in one.runs.values()],
        }
    return {
        "requests": len(work.outputs),
        "prompt_tokens": sum(len(prompt) for prompt in work.prompts),
        "output_tokens": work.useful_tokens,
        "cost": cost.to_dict(),
        "floor": {
            "time_s": time_s,
            "compute_s": spread([floor.compute_s for floor in floors.values()]),
            "memory_s": spread([floor.memory_s for floor in floors.values()]),
            "bound": [floor.bound for floor in floors.values()],
            "tokens_per_s": spread([work.useful_tokens / floor.time_s for floor in floors.values()]),
        },
        "peers": peers,
    }


def _any(one: _Measured) -> Document:
    """The first round's result."""
    return one.runs[min(one.runs)]


def _rates_result(samples: Mapping[tuple[str, int], Sequence[Document]]) -> Document:
    every = [sample for pair in samples.values() for sample in pair]
    return {
        "gemm_flops_per_s": spread([sample["gemm_flops_per_s"] for sample in every]),
        "copy_bytes_per_s": spread([sample["copy_bytes_per_s"] for sample in every]),
        "rounds": [
            {"mix": mix, "repeat": repeat, "before": before, "after": after}
            for (mix, repeat), (before, after) in samples.items()
        ],
    }


# -- beside the mixes -------------------------------------------------------------------------------------------------


def measure_all_reduce(progress: Progress) -> Document:
    """Seconds; interleaved. ``ratio`` is gloo / shm of neighbouring runs."""
    from gyges.bench.allreduce import BACKENDS, all_reduce_times

    medians: dict[str, list[float]] = {backend: [] for backend in BACKENDS}
    errors: dict[str, str] = {}
    for _ in range(_SIDE_REPEATS):
        for backend in BACKENDS:
            if backend in errors:
                continue
            try:
                times = all_reduce_times(backend, ALL_REDUCE_WORKERS, ALL_REDUCE_BYTES)
            except ChildError as error:
                errors[backend] = str(error)
                continue
            medians[backend].append(statistics.median(times))
            progress(f"all-reduce of {ALL_REDUCE_BYTES // 1024} KiB, {backend}: {medians[backend][-1] * 1e3:.3f} ms")
    pairs = zip(medians["shm"], medians["gloo"], strict=False)
    return {
        "workers": ALL_REDUCE_WORKERS,
        "bytes": ALL_REDUCE_BYTES,
        "median_s": {backend: spread(values) for backend, values in medians.items()},
        "ratio": spread([gloo / shm for shm, gloo in pairs]),
        "errors": errors,
    }


def measure_startup(progress: Progress) -> Document:
    """Seconds from the engine's construction to its first token, for 4 devices; bytes per worker. Interleaved."""
    found: dict[str, list[Document]] = {name: [] for name in STARTUP_LAYOUTS}
    errors: dict[str, str] = {}
    for _ in range(_SIDE_REPEATS):
        for name, instances in STARTUP_LAYOUTS.items():
            try:
                # Its own process per start: nothing is imported or warm. A controller needs no thread pool.
                with Child("gyges.bench.startup:Startup", available_cores()) as child:
                    result = child.call("measure", STARTUP_TIMEOUT_S, model=STARTUP_MODEL, instances=instances)
            except ChildError as error:
                errors[name] = str(error)
                continue
            found[name].append(result)
            progress(f"start to first token, {name}: {result['first_token_s']:.1f} s")
    return {
        "model": STARTUP_MODEL,
        "first_token_s": {name: spread([r["first_token_s"] for r in runs]) for name, runs in found.items()},
        "ready_s": {name: spread([r["ready_s"] for r in runs]) for name, runs in found.items()},
        "worker_peak_rss_bytes": {
            name: spread([peak for r in runs for peak in r["worker_peak_rss_bytes"] if peak])
            for name, runs in found.items()
        },
        "errors": errors,
    }


# -- goals ------------------------------------------------------------------------------------------------------------

_AT_LEAST_GENERATE = {"mixed": 1.3, "decode-heavy": 2.0}
_AT_LEAST_FLOOR = {"mixed": 0.7}
_FIRST_TOKEN_S, _ALL_REDUCE_S = 12.0, 0.3e-3


def goals(document: Mapping[str, Any]) -> list[Document]:
    """Each goal with what was reached: ``met`` is None where it was not measured. Medians decide."""
    found: list[Document] = []

    def add(name: str, aim: str, limit: float, reached: Document | None, unit: str, *, least: bool = True) -> None:
        value = reached["median"] if reached else None
        met = None if value is None else (value >= limit if least else value <= limit)
        extremes = {"min": reached["min"] if reached else None, "max": reached["max"] if reached else None}
        found.append({"name": name, "aim": aim, "limit": limit, "unit": unit, "reached": value, **extremes, "met": met})

    for mix, result in document["mixes"].items():
        own = result["peers"].get(OWN)
        if own is None:
            continue
        if (share := _AT_LEAST_FLOOR.get(mix)) is not None:
            add(f"{mix}: share of the floor", f"at least {share:.0%}", share, own["share_of_floor"], "share")
        for peer in (GENERATE, GENERATE_BATCH):
            ratio = own["ratio_to"].get(peer)
            least = _AT_LEAST_GENERATE.get(mix, 1.0) if peer == GENERATE else 1.0
            add(f"{mix}: speed over {peer}", f"at least {least:g}x", least, ratio, "ratio")
    if (reduced := document["all_reduce"]) is not None:
        name = f"all-reduce, {reduced['bytes'] // 1024} KiB, {reduced['workers']} workers"
        add(name, "under 0.3 ms", _ALL_REDUCE_S, reduced["median_s"]["shm"], "s", least=False)
    if (started := document["start_up"]) is not None:
        for layout, seconds in started["first_token_s"].items():
            add(f"start to first token, {layout}", "under 12 s", _FIRST_TOKEN_S, seconds, "s", least=False)
    return found


def rates_drift(document: Mapping[str, Any]) -> float:
    """Largest relative change of a rate within a round: how unsteady the machine was."""
    changes = [
        abs(each["after"][name] / each["before"][name] - 1)
        for each in document["rates"]["rounds"]
        for name in ("gemm_flops_per_s", "copy_bytes_per_s")
    ]
    return max(changes, default=0.0)
