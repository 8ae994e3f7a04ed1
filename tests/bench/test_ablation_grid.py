"""Which cells an ablation has, and what each is compared with."""

import pytest

from gyges.bench.ablation.axes import AXES, engine_config, parse_set, toggles
from gyges.bench.ablation.grid import Grid
from gyges.config import MIB, EngineConfig
from gyges.errors import UnknownNameError, UserError

TOGGLES = ["layout", "padding", "overlap", "scheduler"]


def cells(*sets, **more):
    return Grid(dict(map(parse_set, sets)), **more).cells()


def test_the_default_grid_is_both_ends_each_part_missing_and_each_part_alone():
    found = cells()
    assert [axis.name for axis in toggles()] == TOGGLES
    states = [tuple(cell.state[name] for name in TOGGLES) for cell in found]
    assert states[:2] == [(True,) * 4, (False,) * 4]
    assert sorted(map(sum, states)) == [0, 1, 1, 1, 1, 3, 3, 3, 3, 4]
    assert len(set(states)) == 10
    assert {cell.reference for cell in found} == {"all off"}


def test_settings_are_the_sides_of_each_toggle():
    by_name = {cell.name: cell.settings for cell in cells()}
    assert by_name["only layout"] | {"layout": AXES.get("layout").off} == by_name["all off"]
    assert by_name["without padding"] | {"padding": "on"} == by_name["all on"]


def test_full_is_the_factorial():
    found = cells(full=True)
    assert len({tuple(cell.state.values()) for cell in found}) == len(found) == 16


@pytest.mark.parametrize("more", [{}, {"full": True}])
def test_names_and_folders_are_unique(more):
    found = cells("rate=1,2", "devices=2,4", **more)
    assert len({cell.name for cell in found}) == len({cell.slug.lower() for cell in found}) == len(found)


def test_a_cell_is_compared_within_its_environment():
    for cell in cells("rate=1,2", "device-memory=16MiB,24MiB"):
        environment = [f"{name}={value}" for name, value in cell.environment.items()]
        assert cell.reference == ", ".join(["all off", *environment])


def test_a_toggle_that_is_set_no_longer_goes_on_and_off():
    found = cells("overlap=on")
    assert {cell.settings["overlap"] for cell in found} == {"on"}
    assert all("overlap" not in cell.state for cell in found)
    assert len(found) == 8


def test_one_combination_is_compared_across_engines_but_never_across_traces():
    found = cells("scheduler=llf,rr", "rate=1,2", kinds=("on",))
    assert {cell.name: cell.reference for cell in found} == {
        "scheduler=llf, rate=1": "scheduler=llf, rate=1",
        "scheduler=llf, rate=2": "scheduler=llf, rate=2",
        "scheduler=rr, rate=1": "scheduler=llf, rate=1",
        "scheduler=rr, rate=2": "scheduler=llf, rate=2",
    }


def test_values_have_one_spelling_and_reach_the_engine():
    name, values = parse_set("device-memory=16777216, 24MiB")
    assert (name, values) == ("device-memory", ("16MiB", "24MiB"))
    config = engine_config(
        EngineConfig(), {"device-memory": values[1], "devices": "3", "overlap": "off", "layout": "token-first"}
    )
    assert (config.device_memory, config.instances, config.overlap, config.layout) == (
        24 * MIB,
        (1, 1, 1),
        False,
        "token-first",
    )


@pytest.mark.parametrize("axis", [axis for _, axis in AXES.items() if axis.of == "engine"], ids=lambda axis: axis.name)
def test_every_engine_axis_names_a_field(axis):
    assert hasattr(EngineConfig(), axis.field)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rate", "rate=VALUE"),
        ("rate=0", "positive"),
        ("overlap=maybe", "neither on nor off"),
        ("devices=1,1", "twice"),
        ("layout=diagonal", "shard-pages"),
        ("scheduler=guess", "gyges"),
        ("scheduler=gyges+speed=1", "option"),
        ("long-share=1.5", "between 0 and 1"),
    ],
)
def test_bad_values_say_what_is_wanted(text, said):
    with pytest.raises(UserError, match=said):
        parse_set(text)


def test_an_unknown_axis_lists_the_known_ones():
    with pytest.raises(UnknownNameError, match="device-memory"):
        parse_set("colour=red")


def test_cells_of_an_unknown_kind_are_refused():
    with pytest.raises(UserError, match="without"):
        cells(kinds=("both",))
