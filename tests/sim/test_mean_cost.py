"""The mean of several profiles: each step takes the mean of its times, by one step and by many."""

import numpy as np
import pytest
from bundles import attention_us, make_bundle

from gyges.errors import UserError
from gyges.sim.cost.base import StepShape
from gyges.sim.cost.bundle import read_bundle
from gyges.sim.cost.mean import MeanCost
from gyges.sim.cost.tables import TableCost
from gyges.sim.models import sim_model

TINY = sim_model("tiny").geometry  # 4 layers
SHAPES = (StepShape(4, 4 * 300, 300, (), 4), StepShape(3, 600, 200, ((40, 100),), 3), StepShape(prefills=((64, 0),)))


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """By how many times slower than the formulas of the bundle they are."""

    def make(slower):
        folder = make_bundle(tmp_path_factory.mktemp("bundle"), slower=slower)
        return TableCost(read_bundle(folder), TINY)

    return {slower: make(slower) for slower in (1.0, 2.0, 6.0)}


def test_a_step_takes_the_mean_of_what_the_profiles_say(tables):
    mean = MeanCost(list(tables.values()))
    # 34 dense calls, LM head and sampler, attention of 4 layers; three times that, as (1 + 2 + 6) / 3
    once = 34 * (2 + 0.5 * 4) + 4 * 4 + 4 * attention_us(0, 0, 4, 300)
    assert mean.step_s(SHAPES[0]) == pytest.approx(3 * once * 1e-6)


def test_one_profile_gives_its_own_times_to_the_last_bit_and_so_does_the_same_twice(tables):
    alone = tables[6.0]
    for members in ([alone], [alone, alone]):
        assert [MeanCost(members).step_s(shape) for shape in SHAPES] == [alone.step_s(shape) for shape in SHAPES]


def test_a_jump_costs_the_same_as_its_steps_to_the_last_bit(tables):
    mean = MeanCost([tables[slower] for slower in (1.0, 2.0, 6.0, 2.0)])
    one_by_one = [mean.step_s(StepShape(3, 3 * 50 + 3 * i, 77 + i, (), 3)) for i in range(40)]
    jump = mean.decode_steps_s(3, 150, 77, 40)
    assert jump.dtype == np.float64
    assert jump.tolist() == one_by_one


def test_the_coverage_is_that_of_the_profile_that_covers_least(tmp_path):
    wide = make_bundle(tmp_path / "wide")
    narrow = make_bundle(tmp_path / "narrow")
    table = narrow / "tp1" / "attention.csv"
    rows = [line for line in table.read_text().splitlines() if not line.startswith("0,0,32,")]
    table.write_text("\n".join(rows) + "\n")  # decodes to 8 only
    mean = MeanCost([TableCost(read_bundle(folder), TINY) for folder in (wide, narrow)])
    mean.step_s(StepShape(16, 16 * 100, 100, (), 16))
    mean.step_s(StepShape(8, 8 * 100, 100, (), 8))
    assert mean.coverage() == {"steps": 2, "extrapolated_share": 0.5, "beyond": {"decodes": 1}}


def test_profiles_of_different_degrees_have_no_mean(tmp_path):
    bundle = read_bundle(make_bundle(tmp_path, degrees=(1, 2)))
    dense = tmp_path / "tp2" / "dense.csv"
    dense.write_text(dense.read_text() + "all_reduce,1,5\nall_reduce,64,9\n")
    with pytest.raises(UserError, match=r"one TP degree, got \[1, 2\]"):
        MeanCost([TableCost(bundle, TINY, degree) for degree in (1, 2)])
    with pytest.raises(UserError, match="got none"):
        MeanCost([])
