"""Every figure is made, coarsely; its files agree with one another; what can be worked out another way is."""

import csv
import json
import math

import pytest

from gyges.errors import UnknownNameError
from gyges.figures import paper
from gyges.figures.base import GROUPS, Context
from gyges.figures.catalogue import FIGURES
from gyges.figures.run import make_figures
from gyges.figures.tradeoff import fitted_bytes_per_token, fitted_context
from gyges.figures.weights import padding_memory
from gyges.sim.models import sim_model
from workloads.published import published_trace


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures")
    return folder, make_figures(FIGURES.names(), folder, Context(read_trace=published_trace, quick=True))


@pytest.mark.parametrize("name", FIGURES.names())
def test_a_figure_is_a_table_a_plot_and_lines(made, name):
    folder, document = made
    figure = document["figures"][name]
    assert sorted(figure["files"]) == [f"{name}.csv", f"{name}.png", f"{name}.svg"]
    assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader((folder / f"{name}.csv").open()))
    assert rows
    assert all(None not in row and None not in row.values() for row in rows), "all rows have all columns"
    numbers = [float(cell) for row in rows for cell in row.values() if _is_number(cell)]
    assert numbers
    assert all(map(math.isfinite, numbers))
    assert figure["lines"]
    assert all(line["source"] for line in figure["lines"])


def test_lines_are_the_same_for_people_and_for_programs(made):
    folder, document = made
    assert json.loads((folder / "figures.json").read_text()) == json.loads(json.dumps(document))
    text = (folder / "lines.md").read_text()
    for name, figure in document["figures"].items():
        assert f"## {name}: " in text
        for line in figure["lines"]:
            assert f"| {line['what']} | {line['shown']['paper']} | {line['shown']['here']} |" in text


def test_every_group_has_a_figure_and_every_figure_of_the_paper_compares_with_it(made):
    _, document = made
    assert {kind.group for _, kind in FIGURES.items()} == set(GROUPS)
    for figure in document["figures"].values():
        compared = any(line["paper"] is not None for line in figure["lines"])
        assert compared == (figure["where"] != "beyond the paper")


def test_figures_that_are_made_later_join_those_of_the_folder(made, tmp_path):
    _, document = made
    others = {name: figure for name, figure in document["figures"].items() if name != "tp-tradeoff"}
    (tmp_path / "figures.json").write_text(json.dumps({"figures": others}))
    joined = make_figures(["tp-tradeoff"], tmp_path, Context(read_trace=published_trace, quick=True))
    assert list(joined["figures"]) == FIGURES.names()
    assert (tmp_path / "lines.md").read_text().count("\n## ") == len(FIGURES.names())


def test_an_unknown_figure_is_refused_before_any_is_made(tmp_path):
    with pytest.raises(UnknownNameError, match=r"unknown figure 'pie'; known: .*tp-tradeoff"):
        make_figures(["tp-tradeoff", "pie"], tmp_path, Context(read_trace=published_trace, quick=True))
    assert list(tmp_path.iterdir()) == []


# -- figure 1 ---------------------------------------------------------------------------------------------------------


def test_the_line_through_the_papers_contexts_predicts_the_third():
    assert [fitted_context(d) for d in (1, 2)] == [paper.CONTEXT_TOKENS[d] for d in (1, 2)]
    assert fitted_context(4) == 116_250
    # 32.76e9 parameters in bf16 over the 33.75K tokens that they cost.
    assert fitted_bytes_per_token(sim_model("Qwen/Qwen2.5-32B")) == pytest.approx(2 * 32.76e9 / 33_750, rel=0.005)


def test_wider_instances_hold_longer_requests_and_narrow_ones_serve_more_tokens(made):
    rows = list(csv.DictReader((made[0] / "tp-tradeoff.csv").open()))
    deployments = [row for row in rows if not row["sequences"]]
    for column, rises in (("context_tokens", True), ("decode_tokens_per_s", False)):
        values = [float(row[column]) for row in deployments]
        assert values == sorted(values, reverse=not rises)


# -- figures 2 to 4 ---------------------------------------------------------------------------------------------------


def test_the_paper_layout_costs_serving_less_than_the_naive_one_and_the_overlap_less_again(made):
    rows = list(csv.DictReader((made[0] / "kv-transformation.csv").open()))
    lost = {(r["model"], r["layout"], r["overlap"]): float(r["lost_s"]) for r in rows if r["part"] == "simulated"}
    for model in paper.MODELS:
        for layout in ("header-centric", "shard-pages"):
            assert lost[model, layout, "False"] < lost[model, "token-first", "False"]
            assert lost[model, layout, "True"] < lost[model, layout, "False"]


def test_padding_memory_is_what_rows_and_pages_give():
    # 27648 / 8 rows x 5120 x 2 bytes x 3 matrices = 50.625 pages of 2 MiB, so 0.375 page for each of 64 layers x 8 shards.
    found = padding_memory(sim_model("Qwen/Qwen2.5-32B"), 8)
    assert found["padding_bytes"] == 64 * 8 * 0.375 * 2**21
    # Rows of 10 KiB end on a page every 1024: 3456 rows become 4096, three times.
    assert found["by_matrix_bytes"] == 3 * 64 * 8 * (4096 - 3456) * 5120 * 2
    # Llama3-8B: 14336 / 4 rows x 8 KiB = 14 pages, nothing to pad.
    assert padding_memory(sim_model("meta-llama/Meta-Llama-3-8B"), 4)["padding_bytes"] == 0


def test_experts_that_are_padded_one_by_one_cost_more_than_their_weights():
    # An expert's matrix has 768 / 4 = 192 rows of 4 KiB in a shard, and a page has 512.
    found = padding_memory(sim_model("Qwen/Qwen3-30B-A3B"), 4)
    assert found["by_matrix_bytes"] == pytest.approx(found["ffn_bytes"] * (512 - 192) / 192)
    assert found["padding_bytes"] < 0.01 * found["ffn_bytes"]


def test_what_padding_measured_is_taken_from_the_folder_or_said_to_be_missing(made, tmp_path):
    _, document = made
    (line,) = [each for each in document["figures"]["weight-transformation"]["lines"] if "GEMM" in each["what"]]
    assert (line["here"], line["source"]) == (None, "not measured")
    cell = {"model": "a", "rows": 16, "slowdown": {"median": 0.002, "min": -0.01, "max": 0.01}}
    (tmp_path / "transform.json").write_text(json.dumps({"padding": {"gemm": [cell]}, "micro": None}))
    context = Context(read_trace=published_trace, quick=True, measured=tmp_path)
    data = FIGURES.get("weight-transformation").make(context)
    (line,) = [each for each in data.lines if "GEMM" in each.what]
    assert (line.here, line.source) == (0.002, "measured on a CPU")


def _is_number(cell):
    try:
        float(cell)
    except ValueError:
        return False
    return True
