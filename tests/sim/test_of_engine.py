"""An engine's configuration, simulated: the ablation's switches all matter, and sizes are the engine's own."""

import pytest

from gyges.config import MIB, EngineConfig
from gyges.engine.engine import Engine
from gyges.errors import UserError
from gyges.sim.of_engine import prepare_engine, requests_of
from gyges.sim.simulation import Simulation
from gyges.sim.simulator import SimRequest

CONFIG = EngineConfig(model="tiny", instances=(1,) * 4, device_memory=16 * MIB)
H20 = Simulation("h20")
BIG = EngineConfig(model="Qwen/Qwen2.5-32B", instances=(1,) * 8, max_batch_tokens=2048, max_seqs=128)


def long_and_short(scale=1):
    """Short requests all the time, somebody of whom always decodes, and a long one every now and then."""
    short = [SimRequest(0.1 * i, 30 * scale, 300) for i in range(120)]
    long = [SimRequest(2.0 * i + 0.01, 3500 * scale, 40) for i in range(5)]
    return sorted([*short, *long], key=lambda request: request.arrival_s)


@pytest.mark.parametrize("layout", ["shard-pages", "token-first"])
def test_on_the_cpu_the_sizes_are_the_engines(layout):
    config = CONFIG.with_(layout=layout)
    prepared, engine = prepare_engine(config, "gyges", Simulation()), Engine(config, "gyges")
    shape = engine.placer.shape
    assert prepared.system.kv_tokens == {degree: shape.max_tokens(degree) for degree in shape.degrees}
    assert prepared.limits.block_size == engine.placement.block_size
    assert prepared.degrees == (1, 1, 1, 1)


def run(config, scheduler, simulation, requests):
    result = prepare_engine(config, scheduler, simulation).simulator().run(requests)
    assert {record.status for record in result.records} == {"completed"}
    return result


@pytest.mark.parametrize(
    ("config", "simulation", "scale"), [(CONFIG, Simulation(), 1), (BIG, H20, 30)], ids=["tiny on cpu", "32B on h20"]
)
def test_every_switch_of_the_ablation_matters(config, simulation, scale):
    requests = long_and_short(scale)

    def figures(scheduler="llf", **changes):
        result = run(config.with_(**changes), scheduler, simulation, requests)
        events = result.transformations
        assert events, "long requests make instances merge"
        return {
            "count": len(events),
            "pause_s": max(event.pause_s for event in events),
            "moved": sum(event.bytes_moved for event in events),
            "parts": result.parts,
            "end_s": sum(record.end_s for record in result.records),
        }

    on = figures()
    stopped, packed = figures(overlap=False), figures(padding=False, overlap=False)
    if simulation.on_cpu:  # on the card, the chunk of a long prompt in the first step is longer than any pause
        assert stopped["pause_s"] > on["pause_s"]
    assert packed["parts"]["weights"] > stopped["parts"]["weights"]
    assert figures(layout="token-first")["parts"]["compaction"] > on["parts"]["compaction"] == 0
    assert figures("gyges")["count"] < on["count"]
    assert len({each["end_s"] for each in (on, stopped, packed, figures(layout="token-first"))}) == 4


def test_a_degree_that_the_card_cannot_hold_names_those_that_it_can():
    config = EngineConfig(model="meta-llama/Llama-3.1-70B", instances=(1,) * 8)
    with pytest.raises(UserError, match=r"cannot run at TP1 on h20.*TP4, TP8: give --instances"):
        prepare_engine(config, "gyges", H20)


def test_all_at_once_means_that_nobody_arrives_later_and_a_closed_loop_is_refused():
    requests, order = requests_of([(3.0, 5, 1), (1.0, 6, 2)], "asap")
    assert [(r.arrival_s, r.prompt_tokens) for r in requests] == [(0.0, 5), (0.0, 6)]
    assert order == [0, 1]
    assert requests_of([(3.0, 5, 1), (1.0, 6, 2)], "open")[1] == [1, 0]
    with pytest.raises(UserError, match="open or asap"):
        requests_of([], "closed")
