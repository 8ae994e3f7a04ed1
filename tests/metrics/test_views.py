"""What people see: tables at 80 and 120 columns, the live view on a terminal and in a log."""

import io

import pytest
from rich.console import Console

from cli.live import LiveSnapshot, LiveView
from cli.render import number, percent, render_summary, seconds
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


@pytest.mark.parametrize("total", [10, None, 0])
def test_on_a_terminal_the_view_shows_each_instance(total):
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    with LiveView(console, total) as view:
        view.update(snapshot())
    text = console.file.getvalue()
    assert "i0" in text
    assert "#####..... " in text
    assert "432 output tokens/s" in text
