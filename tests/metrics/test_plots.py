import sys

import pytest

from gyges.metrics.plot_devices import device_map
from gyges.metrics.plots import token_rate, write_plots
from gyges.metrics.records import TransformationEvent
from gyges.metrics.slo import Slo

from .factory import busy_run, lost, request, sample


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "plots"
    return write_plots(folder, *busy_run(requests=60), slo=Slo(ttft_s=1.0), label="test")


def test_every_plot_is_there_as_png_and_svg(written):
    names = {p.name for p in written}
    assert names == {f"{n}.{s}" for n in ("latency_cdf", "throughput_queue", "device_map") for s in ("png", "svg")}
    for path in written:
        head = path.read_bytes()[:200]
        assert head.startswith(b"\x89PNG") if path.suffix == ".png" else b"<?xml" in head
        assert path.stat().st_size > 5000


def test_the_same_records_make_the_same_bytes(written, tmp_path):
    again = write_plots(tmp_path / "plots", *busy_run(requests=60), slo=Slo(ttft_s=1.0), label="test")
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in written]


def test_the_device_map_tells_what_broke_and_who_has_no_instance():
    seen = [sample(0, "i0", (0, 1)), sample(2, "i1", (0,)), sample(2, "none", (1,), tp=0, running=0, total=0)]
    events = [
        TransformationEvent("merge", (0, 1), 0.0, 0.5),
        TransformationEvent("split", (0, 1), 1.5, 2.0, error="worker 1 died"),
    ]
    figure = device_map(seen, events, end_s=4.0)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "no instance",
        "TP1",
        "TP2",
        "merge",
        "broke",
        "transforming",
    ]


def test_plotting_touches_no_global_state(written):
    assert "matplotlib.pyplot" not in sys.modules


def test_only_failures_or_one_point_still_plot(tmp_path):
    assert len(write_plots(tmp_path / "a", [lost()], [], [])) == 4
    assert len(write_plots(tmp_path / "b", [request(tokens=1)], [sample(0, "i", (0,))], [])) == 6
    assert write_plots(tmp_path / "c", [], [], []) == []


def test_token_rate_counts_every_token_once_where_it_appeared():
    edges, rates, window = token_rate([request(at=0.0, first=0.25, gap=0.5, tokens=200)], end_s=100.0)
    assert window == 1.0
    assert (edges[0], edges[-1]) == (0.0, 100.0)
    assert rates.tolist() == [2.0] * 100
