"""Step times from operator tables: sums of what was measured, and a clear word where nothing was."""

from pathlib import Path

import numpy as np
import pytest
from bundles import META, attention_us, make_bundle
from hypothesis import given, settings
from hypothesis import strategies as st

from gyges.errors import UserError
from gyges.sim.cost.base import StepShape
from gyges.sim.cost.bundle import read_bundle
from gyges.sim.cost.curves import Curve
from gyges.sim.cost.tables import TableCost
from gyges.sim.hardware import load_hardware
from gyges.sim.models import sim_model

TINY = sim_model("tiny").geometry  # 4 layers
SKEWED = """model: tiny
skew_fit:
  enabled: true
  bucket_axes:
    n_bins: [0, 8, 1000000]
    n_labels: [n<=8, n>8]
    skew_rate_bins: [-0.01, 0.5, 1.01]
    skew_rate_labels: [low, high]
    kv_big_bins: [0, 500, 1000000000]
    kv_big_labels: [short, long]
    kp_bins: [-1, 0, 1000000000]
    kp_labels: [kp=0, kp>0]
  per_tp:
    1: {alpha_default: 0.25}
"""


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return TableCost(read_bundle(make_bundle(tmp_path_factory.mktemp("plain"))), TINY)


@pytest.fixture(scope="module")
def skewed(tmp_path_factory):
    folder = make_bundle(tmp_path_factory.mktemp("skewed"), meta=SKEWED)
    (folder / "tp1" / "skew_fit.csv").write_text(
        "pc,n_label,skew_rate_label,kv_big_label,kp_label,alpha,n_samples\n"
        "0,n<=8,low,short,kp=0,0.5,3\n0,n<=8,high,long,kp=0,-0.1,3\n16,n<=8,low,short,kp>0,0.75,3\n"
    )
    return TableCost(read_bundle(folder), TINY)


def linear_us(tokens: int, sampled: int) -> float:
    """8 calls in each of 4 layers, embedding and last norm; then LM head and sampler."""
    return (8 * 4 + 2) * (2 + 0.5 * tokens) + 4 * sampled


def test_a_decode_step_is_the_sum_of_its_operators(plain):
    step = plain.step_s(StepShape(decodes=4, decode_context=4 * 300, decode_longest=300, sampled=4))
    assert step == pytest.approx((linear_us(4, 4) + 4 * attention_us(0, 0, 4, 300)) * 1e-6)


def test_a_mixed_step_looks_attention_up_for_prefill_and_decodes_together(plain):
    step = plain.step_s(StepShape(3, 3 * 200, 200, ((40, 100),), 3))
    assert step == pytest.approx((linear_us(43, 3) + 4 * attention_us(40, 100, 3, 200)) * 1e-6)


def test_a_second_prefill_adds_its_own_attention_but_not_a_second_call(plain):
    one = plain.step_s(StepShape(prefills=((40, 0),)))
    two = plain.step_s(StepShape(prefills=((40, 0), (20, 100))))
    least = attention_us(16, 0, 0, 0)
    assert two - one == pytest.approx((34 * 0.5 * 20 + 4 * (attention_us(20, 100, 0, 0) - least)) * 1e-6)


def test_unequal_decodes_lie_between_mean_and_longest_as_the_bundle_says(skewed):
    """Three decodes of mean 100, longest 300: rate 1/3 is "low", 300 is "short", alpha 0.5."""
    step = skewed.step_s(StepShape(3, 300, 300, (), 3))
    attention = (attention_us(0, 0, 3, 100) + attention_us(0, 0, 3, 300)) / 2
    assert step == pytest.approx((linear_us(3, 3) + 4 * attention) * 1e-6)


def test_a_bucket_that_was_not_measured_takes_the_pooled_alpha(skewed):
    step = skewed.step_s(StepShape(10, 10 * 200, 450, (), 10))  # n>8
    attention = attention_us(0, 0, 10, 200) + 0.25 * (attention_us(0, 0, 10, 450) - attention_us(0, 0, 10, 200))
    assert step == pytest.approx((linear_us(10, 10) + 4 * attention) * 1e-6)


@settings(max_examples=60, deadline=None)
@given(
    which=st.sampled_from(["plain", "skewed"]),
    decodes=st.integers(1, 50),
    mean=st.integers(1, 2000),
    extra=st.integers(0, 3000),
    steps=st.integers(1, 40),
)
def test_a_jump_costs_the_same_as_its_steps_to_the_last_bit(plain, skewed, which, decodes, mean, extra, steps):
    cost = plain if which == "plain" else skewed
    context, longest = decodes * mean, mean + extra
    one_by_one = [
        cost.step_s(StepShape(decodes, context + i * decodes, longest + i, (), decodes)) for i in range(steps)
    ]
    assert cost.decode_steps_s(decodes, context, longest, steps).tolist() == one_by_one


@given(st.lists(st.tuples(st.integers(0, 10**6), st.floats(0, 1e6)), min_size=1, unique_by=lambda p: p[0]), st.data())
def test_a_curve_goes_through_its_points_and_gives_one_and_many_the_same(points, data):
    points.sort()
    curve = Curve([x for x, _ in points], [y for _, y in points])
    assert all(curve(x) == y for x, y in points)
    asked = data.draw(st.lists(st.floats(0, 2e6), min_size=1))
    assert curve.many(np.array(asked)).tolist() == [curve(x) for x in asked]


def test_steps_beyond_the_measured_range_are_counted_by_what_they_exceed(tmp_path):
    cost = TableCost(read_bundle(make_bundle(tmp_path)), TINY)
    cost.step_s(StepShape(4, 400, 100, (), 4))
    cost.step_s(StepShape(40, 4000, 100, (), 40))
    cost.decode_steps_s(2, 1990, 995, 10)  # contexts 995 to 1004: four of them beyond 1000
    cost.step_s(StepShape(prefills=((101, 0),)))
    cost.step_s(StepShape(prefills=((10, 201),)))
    coverage = cost.coverage()
    assert coverage["beyond"] == {"decodes": 1, "context": 4, "tokens": 1, "tokens before a chunk": 1}
    assert coverage["extrapolated_share"] == 7 / 14


def test_gaps_between_kernels_are_the_hardwares_and_longer_where_there_is_no_graph(tmp_path):
    bundle = read_bundle(make_bundle(tmp_path))
    card = load_hardware("h20")[0]
    bare, gapped = TableCost(bundle, TINY), TableCost(bundle, TINY, hardware=card, graph_tokens=50)
    kernels = 9 * 4 + 4  # with attention; embedding, norm, LM head, sampler
    for tokens, gap in ((50, 0.5e-6), (51, 0.9e-6)):
        shape = StepShape(prefills=((tokens, 0),), sampled=1)
        assert gapped.step_s(shape) - bare.step_s(shape) == pytest.approx(kernels * gap)


def test_an_emulated_degree_gets_its_all_reduces_from_the_link(tmp_path):
    bundle = read_bundle(make_bundle(tmp_path, degrees=(2,)))
    card = load_hardware("h20")[0]
    shape = StepShape(prefills=((64, 0),))
    with pytest.raises(UserError, match=r"no all_reduce at TP2.*hardware"):
        TableCost(bundle, TINY, 2)
    least = 2 * 4 * (10e-6 + 64 * 192 * 4 / (0.8 * 450e9))  # two a layer; fp32, hidden size 192
    assert TableCost(bundle, TINY, 2, card).step_s(shape) > least


def lose(folder: Path, file: str, text: str) -> None:
    path = folder / "tp1" / file
    path.write_text("\n".join(line for line in path.read_text().splitlines() if text not in line) + "\n")


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("dense.csv", "o_proj", r"dense\.csv lacks the operator o_proj"),
        ("per_sequence.csv", "lm_head", "lacks the operator lm_head"),
        ("dense.csv", "layer,", "lacks the column"),
        ("attention.csv", "0,0,", "no rows without a prefill"),
    ],
)
def test_what_a_profile_lacks_is_named(tmp_path, file, text, said):
    lose(make_bundle(tmp_path), file, text)
    with pytest.raises(UserError, match=said):
        TableCost(read_bundle(tmp_path), TINY)


def test_a_degree_that_was_not_profiled_is_refused_and_those_that_were_are_listed(tmp_path):
    with pytest.raises(UserError, match=r"has TP1, TP2, not TP4.*analytic"):
        read_bundle(make_bundle(tmp_path, degrees=(1, 2))).tables(4)


def test_a_folder_that_is_no_bundle_is_told_what_one_is(tmp_path):
    with pytest.raises(UserError, match=r"no meta\.yaml.*a bundle has"):
        read_bundle(tmp_path)
    (tmp_path / "meta.yaml").write_text(META)
    with pytest.raises(UserError, match="no folder of a TP degree"):
        read_bundle(tmp_path)


def test_a_figure_that_is_no_time_is_refused_with_its_line(tmp_path):
    make_bundle(tmp_path)
    path = tmp_path / "tp1" / "dense.csv"
    path.write_text(path.read_text().replace("layernorm,2,3.0", "layernorm,2,fast", 1))
    with pytest.raises(UserError, match=r"dense\.csv:3: time_us .* 'fast'"):
        read_bundle(tmp_path).tables(1)


def test_an_operator_that_is_not_known_is_noted_not_counted(tmp_path):
    make_bundle(tmp_path)
    with (tmp_path / "tp1" / "dense.csv").open("a") as file:
        file.write("mystery,1,1000\n")
    bundle = read_bundle(tmp_path)
    step = TableCost(bundle, TINY).step_s(StepShape(1, 16, 16, (), 1))
    assert step == pytest.approx((linear_us(1, 1) + 4 * attention_us(0, 0, 1, 16)) * 1e-6)
    assert any("mystery" in note for note in bundle.notes)
