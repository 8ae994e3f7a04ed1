"""Token for token as if nothing had been transformed: random merges and splits at random moments, every toggle."""

import os

import numpy as np
import pytest
from checkpoints import make_checkpoint, reference_generate
from engine.plugging import plug_workers
from engine.transforming import Running, requests, result
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from gyges import Engine, EngineConfig
from gyges.engine.instance import Instance
from gyges.engine.joint import Spot
from gyges.engine.transformer import TransformationReport
from gyges.errors import UserError
from gyges.kv_cache.layouts import LAYOUTS
from gyges.scheduling.batching import Batcher
from gyges.transform.plan import PlanImpossible

pytestmark = pytest.mark.engine

# 12 query heads: TP 1, 2, 3, 4. qwen: 2 KV heads, so that TP4 replicates them.
MODELS = {
    "llama": {"heads": 12, "kv_heads": 12, "head_dim": 8, "hidden": 48, "intermediate": 96},
    "qwen2": {"heads": 8, "kv_heads": 2, "tied": True, "intermediate": 120},
}
DEGREES = {"llama": (1, 2, 3, 4), "qwen2": (1, 2, 4)}
LENGTHS = (1, 5, 33, 70, 16, 129, 200, 47, 90, 11)
SMALL = 2 << 20  # a device on which a TP1 instance holds less than the model's 2,048 positions
COUNTS = [60, 40, 50, 45, 1, 50, 30, 55, 60, 20]
PROMPTS = [[(17 * i + 7 * j * j + j) % 500 + 3 for j in range(n)] for i, n in enumerate(LENGTHS)]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    made = {}

    def get(name: str):
        if name not in made:
            folder = make_checkpoint(tmp_path_factory.mktemp(name), name, **MODELS[name])
            made[name] = folder, reference_generate(folder, PROMPTS, COUNTS)
        return made[name]

    return get


def config(folder, degrees, **options) -> EngineConfig:
    defaults = {"device_memory": 8 << 20, "page_bytes": 4096, "max_batch_tokens": 48, "threads": 1}
    return EngineConfig(model=str(folder), instances=(1,) * 4, tp_degrees=degrees, **(defaults | options))


def compositions(total: int, degrees: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Ordered ways to write ``total`` as a sum of at least two of the degrees."""
    found = []
    for first in degrees:
        if first < total:
            found += [(first, *rest) for rest in [(total - first,), *compositions(total - first, degrees)]]
    return [c for c in dict.fromkeys(found) if all(d in degrees for d in c)]


def act(engine: Engine, choice: int, overlap: bool, degrees: tuple[int, ...]) -> None:
    """One merge or split out of what is possible now; refusals are answers too."""
    instances = engine.status()
    options: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []
    for chosen in range(1, 1 << len(instances)):
        part = [s for i, s in enumerate(instances) if chosen >> i & 1]
        devices = tuple(d for s in part for d in s.devices)
        if len(part) > 1 and len(devices) in degrees:
            options.append(("merge", devices, ()))
        if len(part) == 1:
            options += [("split", devices, c) for c in compositions(len(devices), degrees)]
    kind, devices, parts = options[choice % len(options)]
    try:
        future = (
            engine.merge(devices, overlap=overlap) if kind == "merge" else engine.split(devices, parts, overlap=overlap)
        )
        report = result(future)
    except PlanImpossible:
        return
    assert report.overlap == overlap
    assert sorted(d for s in engine.status() for d in s.devices) == [0, 1, 2, 3]
    assert all(w["peak_pages"] <= engine.placer.device_pages for w in report.workers.values())


def back_to_tp1(engine: Engine) -> None:
    for status in engine.status():
        if status.degree > 1:
            result(engine.split(status.devices, (1,) * status.degree))


def physical_bytes(engine: Engine) -> list[int]:
    """What each device's pages really take, as the kernel counts them."""
    sizes = []
    for worker in engine.workers:
        folder = f"/proc/{worker.pid}/fd"
        sizes += [
            os.stat(f"{folder}/{fd}").st_blocks * 512
            for fd in os.listdir(folder)
            if os.readlink(f"{folder}/{fd}").startswith(f"/memfd:gyges-device-{worker.worker} ")
        ]
    return sizes


LATE = """
def plug(memory):
    from transform.late_memory import LateMemory

    memory.CpuMemory = LateMemory
"""


@pytest.fixture
def copies(request, monkeypatch, tmp_path) -> str:
    """Late ones overlap with the workers' steps, and take as long as they may (tests/transform/late_memory.py)."""
    if request.param == "late":
        plug_workers(monkeypatch, tmp_path, "gyges.transform.memory", LATE)
    return request.param


def overlapping(report: TransformationReport) -> bool:
    """Whether KV cache was copied that somebody had to wait for."""
    return any(worker["kv_host_s"] for worker in report.workers.values())


CASES = [("llama", layout, padding) for layout in LAYOUTS.names() for padding in (True, False)]
CASES = [(*case, "at launch") for case in CASES]
# Late copies in every layout with padding and without it: tests/transform/test_device.py.
CASES += [("llama", layout, index % 2 == 0, "late") for index, layout in enumerate(LAYOUTS.names())]
CASES += [("qwen2", "shard-pages", True, "at launch"), ("qwen2", "token-first", False, "at launch")]
# Heads that two workers have: one goes on to write them while a peer copies them from it.
CASES += [("qwen2", "shard-pages", True, "late")]


@pytest.mark.parametrize(("name", "layout", "padding", "copies"), CASES, indirect=["copies"])
def test_tokens_equal_transformers_whatever_merges_and_splits(models, name, layout, padding, copies):
    """Half-done prefills (48 tokens a step), requests that arrive and end meanwhile, steps in between or none."""
    folder, expected = models(name)
    wanted = requests(PROMPTS, COUNTS)
    degrees = DEGREES[name]
    with Engine(config(folder, degrees, layout=layout, padding=padding, pages_per_step=24)) as engine:
        runs, most = iter(range(1000)), 4 if copies == "at launch" else 2

        @settings(max_examples=most, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
        @given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 1000), st.booleans()), min_size=2, max_size=5))
        def transform_at_random(schedule):
            running, run = Running(engine), next(runs)
            named = requests(PROMPTS, COUNTS, name=f"{run}-")
            running.submit(*named[:6])
            for index, (tokens, choice, overlap) in enumerate(schedule):
                if not running.wait_for_tokens(tokens + 60 * index):
                    break
                if index == 1:
                    running.submit(*named[6:])
                act(engine, choice, overlap, degrees)
            if len(running.tokens) == 6:
                running.submit(*named[6:])
            assert list(running.finish().values()) == expected
            back_to_tp1(engine)
            assert all(s.kv_used_blocks == 0 for s in engine.status())

        transform_at_random()
        assert engine.failure is None
        assert not engine.incidents
        assert physical_bytes(engine) == [engine.placer.device_pages * 4096] * 4
        assert any(map(overlapping, engine.reports)) == (copies == "late")
    assert len(wanted) == len(expected)


@pytest.fixture
def preemptions(monkeypatch) -> list[bool]:
    """One entry per preemption: whether it was in the middle of a transformation."""
    seen: list[bool] = []
    launch = Instance.launch

    def watched(instance, now):
        joint, before = instance.joint is not None, instance.preemptions
        launched = launch(instance, now)
        seen.extend([joint] * (instance.preemptions - before))
        return launched

    monkeypatch.setattr(Instance, "launch", watched)
    return seen


def device_for(folder, degrees, tokens: int, **options) -> int:
    """Bytes of the device on which a TP1 instance holds that many tokens, and no group of blocks more."""
    shape = Engine(config(folder, degrees, **options)).placer.shape
    unit = shape.kv_geometry(1)
    groups = -(-tokens // (unit.blocks_per_group * shape.block_size))
    return 4096 * (shape.weight_pages(1) + shape.reserve_pages + groups * unit.pages_per_group)


@pytest.mark.parametrize(
    ("layout", "copies"),
    [*((layout, "at launch") for layout in LAYOUTS.names()), ("token-first", "late")],
    indirect=["copies"],
)
def test_with_every_page_in_use_and_preemptions_nothing_changes(models, layout, preemptions, copies):
    """So little room that requests preempt each other; transformations exchange pages in rounds."""
    folder, expected = models("llama")
    longest = max(n + c for n, c in zip(LENGTHS, COUNTS, strict=True))
    memory = device_for(folder, (1, 2, 4), longest * 5 // 4, layout=layout)
    with Engine(config(folder, (1, 2, 4), layout=layout, device_memory=memory, pages_per_step=16)) as engine:
        running = Running(engine)
        running.submit(*requests(PROMPTS, COUNTS), *requests(PROMPTS, COUNTS, name="again"))
        overlap = True
        for round_ in range(4):
            running.wait_for_tokens(100 * round_ + 30)
            for ask in (
                lambda o: engine.merge((0, 1, 2, 3), overlap=o),
                lambda o: engine.split((0, 1, 2, 3), (1,) * 4, overlap=o),
            ):
                try:
                    report = result(ask(overlap))
                except (PlanImpossible, UserError):
                    continue
                assert all(w["peak_pages"] * 4096 <= memory for w in report.workers.values())
                overlap = not overlap
        tokens = running.finish()
        assert engine.failure is None
        assert not engine.incidents
    assert preemptions
    assert [tokens[f"r{i}"] for i in range(len(PROMPTS))] == expected
    assert [tokens[f"again{i}"] for i in range(len(PROMPTS))] == expected


@pytest.mark.parametrize(
    ("layout", "copies"),
    [("shard-pages", "at launch"), ("shard-pages", "late"), ("token-first", "late")],
    indirect=["copies"],
)
def test_a_worker_that_lags_behind_still_finds_what_it_copies(models, monkeypatch, layout, copies):
    """Requests are preempted in the very step in which a slow peer copies their blocks."""
    extend_running, victims = Batcher._extend_running, []

    def preempt_what_moves(batcher, plan):
        extend_running(batcher, plan)
        spots = getattr(batcher.allocator, "spots", {})
        moving = [s for s in batcher.running if s in spots and spots[s].copied]
        if moving and len(batcher.running) > 1:
            batcher._preempt(moving[-1], plan)
            victims.append(moving[-1])

    monkeypatch.setattr(Batcher, "_extend_running", preempt_what_moves)
    monkeypatch.setenv("GYGES_FAULT", "worker=2 at=Transfer do=slow")
    folder, expected = models("llama")
    with Engine(config(folder, (1, 4), layout=layout, pages_per_step=16)) as engine:
        running = Running(engine)
        running.submit(*requests(PROMPTS, COUNTS))
        running.wait_for_tokens(30)
        assert overlapping(result(engine.merge((0, 1, 2, 3)))) == (copies == "late")
        result(engine.split((0, 1, 2, 3), (1,) * 4))
        assert list(running.finish().values()) == expected
        assert not engine.incidents
    assert victims


@pytest.mark.parametrize("copies", ["late"], indirect=True)
def test_a_block_can_be_written_in_the_step_in_which_a_copy_to_it_has_become_superfluous(models, monkeypatch, copies):
    """A request is preempted while its blocks are copied, no page becomes free by it, and another gets the last of the blocks."""
    extend_running, inherited = Batcher._extend_running, []

    def preempt_for_who_grows(batcher, plan):
        spots = getattr(batcher.allocator, "spots", {})
        growing = [s for s in batcher.running if len(s.blocks) < batcher.blocks_for(s.known)]
        given: list[int] = []
        if any(s in spots and spots[s].switched for s in growing):
            given = next(filter(None, (_copied_to_shared_pages(batcher, spots.get(s)) for s in batcher.running)), [])
        if given:
            (victim,) = (s for s in batcher.running if s in spots and spots[s].back[: len(given)] == given)
            batcher._preempt(victim, plan)
            back = batcher.allocator.back[0]
            # The group has been open for longest, or might have been: then its blocks are taken first, the latest before others.
            back._partial = {given[-1] // back.blocks_per_group: None} | back._partial
        extend_running(batcher, plan)
        taken = [block for s, blocks in plan.extended if s in spots and spots[s].switched for block in blocks]
        inherited.extend(set(taken) & set(given))

    folder, expected = models("llama")
    with Engine(config(folder, (1, 4), layout="token-first", block_size=1, pages_per_step=1)) as engine:
        monkeypatch.setattr(Batcher, "_extend_running", preempt_for_who_grows)
        for again in range(8):  # it takes a request that has just begun to be copied beside one that has changed over
            running = Running(engine)
            running.submit(*requests(PROMPTS, COUNTS, name=f"{again}-"))
            running.wait_for_tokens(30)
            result(engine.merge((0, 1, 2, 3)))
            assert list(running.finish().values()) == expected
            if inherited:
                break
            result(engine.split((0, 1, 2, 3), (1,) * 4))
        assert not engine.incidents
    assert inherited


def _copied_to_shared_pages(batcher: Batcher, spot: Spot | None) -> list[int]:
    """The back blocks that a sequence has copied so far, if pages of theirs would not be given up with them."""
    if spot is None or not spot.copied:
        return []
    given = spot.back[: spot.copied]
    workers = batcher.allocator.planner.interpreters.values()
    dropped = [worker.copy().side(spot.narrow, back=True).drop(np.array(given)) for worker in workers]
    return [] if any(len(move.slots) for move in dropped) else given


def test_a_request_that_fits_no_tp1_instance_runs_after_a_merge(models):
    folder, _ = models("llama")
    with Engine(config(folder, (1, 2, 4), device_memory=SMALL), policy="on-demand") as engine:
        room = {d: engine.placer.shape.max_tokens(d) for d in (1, 2, 4)}
        assert room[1] + 100 < room[2] < room[4]
        assert room[4] > 4 * room[1], "merged workers give up weights, and the KV cache gets their room"
        long = [[(31 * j) % 500 + 3 for j in range(room[1] + 50)]]
        short = requests(PROMPTS[:4], [60, 40, 50, 45])
        running = Running(engine)
        running.submit(*short)
        running.wait_for_tokens(8)
        running.submit(*requests(long, [12], name="long"))
        tokens = running.finish()
        assert engine.reports[0].kind == "merge"
    assert tokens["long0"] == reference_generate(folder, long, [12])[0]
    assert [tokens[f"r{i}"] for i in range(4)] == reference_generate(folder, PROMPTS[:4], [60, 40, 50, 45])


@pytest.fixture(scope="module")
def host(models):
    """Four TP1 instances, which every test leaves as it found them."""
    with Engine(config(models("llama")[0], (1, 2, 4), device_memory=SMALL)) as engine:
        yield engine


def test_seeded_sampling_survives_too(host):
    sampling = {"temperature": 0.8, "top_p": 0.9, "seed": 7}
    wanted = requests(PROMPTS[:6], COUNTS[:6], **sampling)
    still = Running(host)
    still.submit(*wanted)
    expected = still.finish()
    running = Running(host)
    running.submit(*wanted)
    running.wait_for_tokens(20)
    result(host.merge((0, 1, 2, 3)))
    running.wait_for_tokens(100)
    result(host.split((0, 1, 2, 3), (2, 1, 1)))
    assert running.finish() == expected
    back_to_tp1(host)


def test_a_long_request_keeps_its_instance_merged(host):
    result(host.merge((0, 1, 2, 3)))
    room = host.placer.shape.max_tokens(1)
    assert room < 1500, "so that a request can be longer than that"
    running = Running(host)
    running.submit(*requests([[5] * room], [300], name="long"))
    running.wait_for_tokens(2)
    with pytest.raises(PlanImpossible, match="needs more than"):
        result(host.split((0, 1, 2, 3), (1, 1, 1, 1)))
    running.finish()
    assert result(host.split((0, 1, 2, 3), (1, 1, 1, 1))).after == (1, 1, 1, 1)


def test_what_makes_no_sense_is_refused_with_a_remedy(host):
    with pytest.raises(UserError, match="--tp-degrees"):
        result(host.merge((0, 1, 2)))
    with pytest.raises(UserError, match="whole instances"):
        result(host.split((0,), (1, 1)))
    result(host.merge((1, 3)))
    with pytest.raises(UserError, match="whole instances"):
        result(host.merge((0, 1)))
    back_to_tp1(host)
