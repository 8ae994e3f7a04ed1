"""What people see: tables at 80 and 120 columns, the live view on a terminal and in a log."""

import io

import pytest
from rich.console import Console

from cli.bench_run import _Rate
from cli.live import LiveSnapshot, LiveView
from cli.render import number, percent, render_summary, seconds
from gyges.metrics.records import TransformationEvent
from gyges.metrics.slo import Slo
from gyges.metrics.summary import summarize

from .factory import busy_run, lost, request, sample


def rendered(summary, width):
    console = Console(file=io.StringIO(), width=width)
    render_summary(console, summary)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_no_figure_is_truncated(width):
    records, samples, events = busy_run(requests=300)
    # The widest that a column meets: six-digit counts, kilosecond latencies.
    summary = summarize(
        records, samples, events, slo=Slo(ttft_s=2, tpot_s=0.05, e2e_s=60), simulated=True, partial=True
    )
    for bucket in summary["buckets"].values():
        bucket["requests"] |= {"completed": 123456, "offered": 234567}
        bucket["throughput"]["output_tokens_per_s"] = 123456.7
        for name in ("ttft_s", "tpot_s", "e2e_s", "itl_s", "queue_s"):
            bucket[name] |= dict.fromkeys(("p50", "p90", "p99", "max"), 0.1234)
    text = rendered(summary, width)
    assert "\u2026" not in text
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    assert text.count("123k/234k") == text.count("123457") == len(summary["buckets"])
    assert text.count("123 ms") >= 4 * len(summary["buckets"])
    assert "SIMULATED" in text
    assert "PARTIAL" in text


def test_an_invalid_replay_and_an_infinite_tail_stand_out():
    text = rendered(summarize([request(sent_s=0.5), lost()]), 80)
    assert "INVALID: p99 send lag" in text
    assert "inf" in text
    assert "1 failed" in text


def test_an_empty_summary_renders():
    assert "0 offered" in rendered(summarize([]), 80)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0123, "12.3 ms"),
        (0.9996, "1.00 s"),
        (0.00025, "250 us"),
        (0.9994, "999 ms"),
        (1234.5, "1234 s"),
        (0, "0 s"),
        (None, "-"),
    ],
)
def test_seconds_have_three_digits_and_a_unit(value, text):
    assert seconds(value) == text


def test_numbers_and_percentages_for_people():
    assert [number(v) for v in (None, 0.5, 12.34, 43795.2, 12_345_678.0, 195)] == [
        "-",
        "0.500",
        "12.3",
        "43795",
        "12.3M",
        "195",
    ]
    assert [percent(v) for v in (None, 1, 0.99999, 0.5)] == ["-", "100%", "99.9%", "50.0%"]


def snapshot(ended=3):
    instances = [sample(1, "i0", (0, 1), used=50), sample(1, "i1", (2,), used=0)]
    return LiveSnapshot(12.0, 6, ended, 1, 1, instances, 432.1)


def test_off_a_terminal_the_view_is_log_lines_at_intervals():
    now = [0.0]
    console = Console(file=io.StringIO(), width=40)
    with LiveView(console, 10, clock=lambda: now[0]) as view:
        view.update(snapshot(1))
        assert console.file.getvalue() == ""
        now[0] = 5.0
        view.update(snapshot(2))
        view.update(snapshot(3))
    first, last = console.file.getvalue().splitlines()
    assert "4/10 ended (1 failed, 1 rejected)" in first
    assert "5/10 ended" in last
    assert "1 in flight, 2 running, 0 waiting, 432 tokens/s, KV 25%, 1xTP1 1xTP2" in last
    assert "\x1b" not in first + last


def test_a_transformation_under_way_and_devices_without_an_instance_show():
    instances = [
        sample(1, "i4", (2, 0), used=50),
        sample(1, "i1", (1,)),
        sample(1, "none", (3,), tp=0, running=0, total=0),
    ]
    now = LiveSnapshot(12.0, 6, 3, instances=instances, transforming={"i4": "merge", "i1": "soon"})
    log = Console(file=io.StringIO(), width=40)
    with LiveView(log) as view:
        view.update(now)
    assert log.file.getvalue().rstrip().endswith("1xTP1 1xTP2 (1 without instance), merging 0,2")
    terminal = Console(file=io.StringIO(), width=80, force_terminal=True)
    with LiveView(terminal) as view:
        view.update(now)
    rows = terminal.file.getvalue().splitlines()
    assert any("i4" in row and "0,2" in row and "merging" in row for row in rows)
    assert any("i1" in row and "ing" not in row for row in rows)
    assert any("no instance" in row for row in rows)


def test_the_rate_is_of_the_last_seconds():
    rate = _Rate()
    assert rate.update(0.0, 0) == 0.0
    assert rate.update(1.0, 100) == 100.0
    assert rate.update(4.0, 100) == pytest.approx(0.0), "what was long ago does not count"


def test_transformations_have_a_line_of_their_own():
    event = TransformationEvent("merge", (0, 1), 1.0, 1.25, 3 << 20, 0.02)
    text = " ".join(rendered(summarize([request()], [], [event]), 80).split())
    assert "1 merge, 0 splits; 250 ms in all, 3.0 MiB moved; longest pause 20.0 ms" in text
    broken = TransformationEvent("split", (0, 1), 2.0, 3.0, error="worker 1 died")
    assert "1 merge, 0 splits, 1 failed;" in " ".join(rendered(summarize([request()], [], [event, broken]), 80).split())


@pytest.mark.parametrize("total", [10, None, 0])
def test_on_a_terminal_the_view_shows_each_instance(total):
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    with LiveView(console, total) as view:
        view.update(snapshot())
    text = console.file.getvalue()
    assert "i0" in text
    assert "#####..... " in text
    assert "432 output tokens/s" in text
