"""Admission, streaming, aborting, and leaving nothing behind."""

import asyncio
import os
from dataclasses import replace

import psutil
import pytest

from gyges import Engine, EngineConfig, Request, SamplingParams
from gyges.errors import UnknownNameError, UserError

pytestmark = pytest.mark.engine

CONFIG = EngineConfig(model="tiny", device_memory=16 << 20, threads=1)


@pytest.fixture(scope="module")
def engine():
    with Engine(CONFIG) as running:
        yield running


def request(name: str, prompt: int = 20, output: int = 10, **sampling) -> Request:
    return Request(
        name, tuple(3 + i % 2000 for i in range(prompt)), SamplingParams(max_tokens=output, ignore_eos=True, **sampling)
    )


def idle(engine: Engine) -> bool:
    return all(s.running == s.waiting == s.kv_used_blocks == 0 for s in engine.status())


def test_generate_yields_each_request_once_with_all_tokens_and_times(engine):
    outputs = list(engine.generate(request(f"g{i}", 5 + i, 3 + i) for i in range(6)))
    assert sorted(o.request_id for o in outputs) == [f"g{i}" for i in range(6)]
    for out in outputs:
        count = 3 + int(out.request_id[1:])
        assert len(out.token_ids) == len(out.token_times) == count
        assert out.submitted_s <= out.scheduled_s <= out.token_times[0]
        assert out.token_times == sorted(out.token_times)
        assert out.finished_s == out.token_times[-1]
    assert idle(engine)


def test_stream_delivers_the_same_tokens_piece_by_piece(engine):
    (whole,) = engine.generate([request("w", 30, 12)])

    async def collect():
        return [out async for out in engine.stream(request("s", 30, 12))]

    pieces = asyncio.run(collect())
    assert [t for out in pieces for t in out.token_ids] == whole.token_ids
    assert [out.finished for out in pieces] == [False] * 11 + [True]


def test_leaving_a_stream_early_aborts_the_request(engine):
    async def first_only():
        stream = engine.stream(request("early", 10, 2000))
        first = await anext(stream)
        await stream.aclose()
        return first

    assert len(asyncio.run(first_only()).token_ids) == 1
    (after,) = engine.generate([request("after", 10, 5)])
    assert len(after.token_ids) == 5
    assert idle(engine), "the aborted request must give its blocks back"


def test_a_request_that_can_never_fit_is_rejected_with_the_figure_and_the_rest_goes_on(engine):
    room = engine.placement.instances[0].max_tokens
    assert room < 16384
    huge = request("huge", room, 100)
    outputs = {o.request_id: o for o in engine.generate([huge, request("fits")])}
    assert outputs["huge"].finish_reason == "rejected"
    # The last sampled token is never written.
    assert f"needs {room + 99} tokens of KV cache" in outputs["huge"].error
    assert outputs["fits"].finish_reason == "length"


def test_longest_request_that_fits_does_run():
    small = replace(CONFIG, device_memory=11 << 20)
    with Engine(small) as engine:
        room = engine.placement.instances[0].max_tokens
        prompt = room - 2
        (out,) = engine.generate([request("edge", prompt, 3)])
        assert out.finish_reason == "length"
        (over,) = engine.generate([request("over", prompt, 4)])
        assert over.finish_reason == "rejected"


def test_identical_ids_and_foreign_tokens_are_refused(engine):
    with pytest.raises(UserError, match="token ids must be in"):
        engine.submit(Request("x", (5, 99999)), print)
    done = []
    engine.submit(request("same", 10, 400), done.append)
    with pytest.raises(UserError, match="already in use"):
        engine.submit(request("same"), print)
    engine.abort("same")
    list(engine.generate([request("later")]))
    assert done[-1].finish_reason == "aborted"


def test_what_cannot_work_is_said_before_any_process_starts():
    with pytest.raises(UserError, match=r"too small for tiny.*--device-memory \d+MiB"):
        Engine(replace(CONFIG, device_memory=1 << 20))
    with pytest.raises(UserError, match="TP degree 5 is impossible"):
        Engine(replace(CONFIG, instances=(5,)))
    with pytest.raises(
        UnknownNameError,
        match=r"unknown scheduler policy 'best'; known: .*gyges, llf, .*, rr, static",
    ):
        Engine(CONFIG, policy="best")
    with pytest.raises(UnknownNameError, match=r"unknown KV layout 'rows'; known: .*shard-pages"):
        replace(CONFIG, layout="rows")
    with pytest.raises(UserError, match="gone-model"):
        Engine(replace(CONFIG, model="gone-model"))
    with pytest.raises(UserError, match="smaller --device-memory"), Engine(replace(CONFIG, device_memory=1 << 50)):
        pass


def test_the_budget_named_as_sufficient_is_sufficient():
    with pytest.raises(UserError) as caught:
        Engine(replace(CONFIG, device_memory=1 << 20))
    named = int(str(caught.value).rsplit("--device-memory ", 1)[1].removesuffix("MiB"))
    assert Engine(replace(CONFIG, device_memory=named << 20)).placement.instances[0].max_tokens > 0


def test_pages_are_conserved_on_every_worker():
    with Engine(replace(CONFIG, instances=(1, 2), device_memory=12 << 20)) as engine:
        capacity = engine.placer.device_pages
        for ready, instance in zip(engine.ready, [0, 1, 1], strict=True):
            placed = engine.placement.instances[instance]
            assert ready.weight_pages + ready.free_pages == capacity, "KV pages are mapped when a block is in use"
            assert ready.weight_pages <= placed.weight_pages
            assert placed.kv_pages + engine.placer.shape.reserve_pages <= ready.free_pages


def test_closing_leaves_no_process_descriptor_or_file_behind():
    me = psutil.Process()
    with Engine(CONFIG) as warm:  # whatever is made once per process is made here
        list(warm.generate([request("a")]))
    children, descriptors = set(me.children(recursive=True)), set(os.listdir("/proc/self/fd"))
    shared = set(os.listdir("/dev/shm"))
    with Engine(replace(CONFIG, instances=(1, 2))) as engine:
        list(engine.generate([request("a"), request("b")]))
        assert len(set(me.children(recursive=True)) - children) == 3
        engine.submit(request("left running", 10, 2000), lambda out: None)
    assert set(me.children(recursive=True)) == children
    assert set(os.listdir("/dev/shm")) == shared
    assert set(os.listdir("/proc/self/fd")) == descriptors
