"""Prices of transformations: what must hold whatever the constants are."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gyges.sim.systems  # noqa: F401 - registers all
from gyges.errors import UnknownNameError, UserError
from gyges.scheduling.specification import make_policy
from gyges.sim.hardware import load_hardware
from gyges.sim.models import sim_model
from gyges.sim.setup import SimSetup, prepare
from gyges.sim.simulator import SimRequest
from gyges.sim.system import SYSTEMS, SystemPrices, SystemSpec, make_system
from gyges.transform.price import bytes_to_move

QWEN = "Qwen/Qwen2.5-32B"
MERGES = [((1, 1), (2,)), ((2, 2), (4,)), ((1, 1, 1, 1), (4,)), ((1, 1, 2), (4,)), ((1,) * 8, (8,))]


def spec(hardware="h20", devices=8, model=QWEN, **more):
    return SystemSpec(sim_model(model), load_hardware(hardware)[0], devices, **more)


TEXTS = [
    "gyges", "gyges:paper", "gyges+layout=token-first", "gyges+layout=page-friendly+overlap=off", "gyges+padding=off",
]  # fmt: skip
_KNOWN: dict = {}


def make(text, hardware="h20"):
    if (text, hardware) not in _KNOWN:
        _KNOWN[text, hardware] = make_system(text, spec(hardware))
    return _KNOWN[text, hardware]


@pytest.fixture
def made():
    return make


@pytest.mark.parametrize("name", SYSTEMS.names())
def test_every_system_keeps_the_contract(made, name):
    system = made(name)
    make_policy(system.policy)
    assert list(system.degrees) == sorted(set(system.degrees))
    tokens = [system.kv_tokens[degree] for degree in system.degrees]
    assert tokens == sorted(tokens)
    assert tokens[0] > 0
    for degree in system.degrees:
        assert system.costs[degree].degree == degree
        assert 0 < system.work_s(1000, degree) < system.work_s(2000, degree)
    lowest, highest = system.degrees[0], system.degrees[-1]
    before = (lowest,) * (highest // lowest)
    assert system.restart(before, (highest,)).pause_s > 1


def test_a_fixed_host_says_what_to_take_instead(made):
    with pytest.raises(UserError, match=r"--system gyges.*restarts the host"):
        made("fixed").switch((1, 1), (2,), (0, 0))


@pytest.mark.parametrize("kind", ["merge", "split"])
@pytest.mark.parametrize(("narrow", "wide"), MERGES)
def test_what_moves_between_devices_is_what_the_planner_says(made, kind, narrow, wide):
    before, after = (narrow, wide) if kind == "merge" else (wide, narrow)
    system = made("gyges")
    held = [3000 * degree for degree in before]
    assert system.switch(before, after, held).bytes_moved == pytest.approx(
        bytes_to_move(system.host, before, after, sum(held)), rel=0.01
    )


@pytest.mark.parametrize("hardware", ["h20", "a100-80g", "rtx-pro-6000"])
@pytest.mark.parametrize(("before", "after"), [*MERGES, *((b, a) for a, b in MERGES)])
def test_the_overlap_shortens_the_pause_and_moves_the_same(made, hardware, before, after):
    on, off = made("gyges", hardware), made("gyges+overlap=off", hardware)
    held = [8000 * degree for degree in before]
    overlapped, stopped = on.switch(before, after, held), off.switch(before, after, held)
    assert overlapped.pause_s < stopped.pause_s
    assert overlapped.bytes_moved == stopped.bytes_moved
    assert (overlapped.ahead_s > 0) == (len(before) == 1)
    assert (overlapped.behind_s > 0) == (len(after) == 1)
    assert stopped.ahead_s == stopped.behind_s == 0
    assert stopped.pause_s == pytest.approx(sum(stopped.parts.values()))


@pytest.mark.parametrize(("before", "after"), MERGES)
def test_padding_spares_a_merge_all_copies_of_weights(made, before, after):
    held = [0] * len(before)
    padded, packed = made("gyges+overlap=off"), made("gyges+overlap=off+padding=off")
    assert padded.switch(before, after, held).bytes_moved == 0
    assert padded.switch(before, after, held).descriptors == 0
    assert packed.switch(before, after, held).parts["weights"] > padded.switch(before, after, held).parts["weights"]
    assert packed.switch(after, before, [0]).parts["weights"] > padded.switch(after, before, [0]).parts["weights"]


def test_padding_costs_pages(made):
    padded, packed = made("gyges").host, made("gyges+padding=off").host
    assert all(padded.weight_pages(degree) >= packed.weight_pages(degree) for degree in padded.degrees)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_more_to_move_never_costs_less(data):
    system = make(data.draw(st.sampled_from(TEXTS)))
    before, after = data.draw(st.sampled_from([*MERGES, *((b, a) for a, b in MERGES)]))
    held = [data.draw(st.integers(0, system.kv_tokens[degree])) for degree in before]
    more = [h + data.draw(st.integers(0, 5000)) for h in held]
    less, much = system.switch(before, after, held), system.switch(before, after, more)
    assert less.total_s <= much.total_s + 1e-12
    assert less.bytes_moved <= much.bytes_moved
    assert less.descriptors <= much.descriptors
    assert less.extra_bytes <= much.extra_bytes


def test_a_lopsided_load_costs_more_than_an_even_one(made):
    system = made("gyges+overlap=off")
    assert system.switch((1, 1), (2,), (60_000, 0)).pause_s > system.switch((1, 1), (2,), (30_000, 30_000)).pause_s


def test_layouts_whose_shards_own_pages_need_no_compaction_and_few_copies(made):
    held = [20_000] * 4
    found = {
        name: made(f"gyges+overlap=off+layout={name}").switch((1,) * 4, (4,), held)
        for name in ("token-first", "page-friendly", "header-centric", "shard-pages")
    }
    assert found["token-first"].parts["compaction"] > 0
    assert found["header-centric"].parts["compaction"] == found["shard-pages"].parts["compaction"] == 0
    assert found["header-centric"].descriptors * 100 < found["token-first"].descriptors
    assert found["shard-pages"].pause_s <= found["header-centric"].pause_s < found["token-first"].pause_s
    assert len({switch.bytes_moved for switch in found.values()}) == 1


def test_more_layers_a_step_end_sooner_and_hold_steps_up_more(made):
    switches = [made(f"gyges+layers={n}").switch((1,) * 4, (4,), (50_000,) * 4) for n in (1, 5, 32, 64)]
    assert [s.behind_s for s in switches] == sorted((s.behind_s for s in switches), reverse=True)
    assert [s.slowdown for s in switches] == sorted(s.slowdown for s in switches)
    assert len({s.pause_s for s in switches}) == 1
    assert [s.extra_bytes for s in switches] == sorted(s.extra_bytes for s in switches)


def test_policies_are_told_the_price_of_the_whole(made):
    system = made("gyges")
    prices = SystemPrices(system)
    switch = system.switch((1, 1), (2,), (1000, 1000))
    assert prices.transformation_s((1, 1), (2,), 2000) == pytest.approx(switch.total_s)
    assert prices.work_s(100, 1) == system.work_s(100, 1)


def test_only_degrees_that_hold_the_model_are_taken():
    assert make_system("gyges", spec(model="meta-llama/Llama-3.1-70B")).degrees == (4, 8)
    assert make_system("fixed", spec(model="meta-llama/Llama-3.1-70B")).degrees == (2, 4, 8)
    with pytest.raises(UserError, match="does not fit h20 at TP1"):
        make_system("fixed", spec(model="meta-llama/Llama-3.1-70B", devices=1))


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("gigas", UnknownNameError, "gyges"),
        ("gyges:thesis", UnknownNameError, "gyges:paper"),
        ("gyges+colour=red", UnknownNameError, "layout"),
        ("gyges+layout=zigzag", UnknownNameError, "token-first"),
        ("gyges+overlap=perhaps", UserError, "on or off"),
        ("gyges+layers=0", UserError, "more than 0"),
    ],
)
def test_an_unknown_system_or_option_lists_the_known_ones(text, error, said):
    with pytest.raises(error, match=said):
        make_system(text, spec())


def test_what_is_neither_a_merge_nor_a_split_has_no_price(made):
    with pytest.raises(UserError, match="neither a merge nor a split"):
        made("gyges").switch((1, 1), (1, 1), (0, 0))
    with pytest.raises(UserError, match="TP3 is not among"):
        made("gyges").switch((1, 2), (3,), (0, 0))


@pytest.mark.parametrize("name", SYSTEMS.names())
def test_every_system_serves_a_mixed_trace_with_the_policy_that_it_is_meant_for(name):
    prepared = prepare(SimSetup(system=name))
    requests = [SimRequest(0.5 * i, 150_000 if i % 30 == 7 else 1000, 40) for i in range(90)]
    result = prepared.simulator().run(requests)
    for record in result.records:
        assert record.status == "completed" or (record.status == "rejected" and "KV cache" in record.reason)
    assert prepared.facts["policy"] == prepared.system.policy
    assert all(event.end_s >= event.start_s >= event.asked_s for event in result.transformations)


@pytest.mark.parametrize("policy", ["gyges", "gyges:paper", "oracle", "llf", "rr", "on-demand"])
def test_a_host_whose_lowest_degree_is_not_1_merges_and_splits_too(policy):
    """Prices are asked of whole instances only: TP4 and TP4 to TP8, never of as many TP4 as there are devices."""
    prepared = prepare(SimSetup(model="meta-llama/Llama-3.1-70B", hardware="h20x16", policy=policy))
    assert prepared.system.degrees[0] == 4
    longest = prepared.system.kv_tokens[4]
    requests = [SimRequest(1.0 * i, longest + 5000 if i % 9 == 3 else 2000, 60) for i in range(60)]
    result = prepared.simulator().run(requests)
    assert {record.status for record in result.records} == {"completed"}
    assert any(event.kind == "merge" for event in result.transformations)
