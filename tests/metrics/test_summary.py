"""summary.json: names, hand-computed values, and what may never depend on what."""

import json
import random
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gyges.errors import UserError
from gyges.metrics.records import TransformationEvent
from gyges.metrics.slo import Slo
from gyges.metrics.summary import bucket_label, summarize

from .factory import busy_run, lost, request, sample

LATENCIES = ("ttft_s", "tpot_s", "itl_s", "e2e_s", "queue_s")


def test_a_small_run_by_hand():
    # Tokens at 1.0, 1.5, 2.0 and at 4, 5; window 0 to 5 s.
    records = [
        request("a", at=0.0, first=1.0, gap=0.5, tokens=3, prompt_tokens=100),
        request("b", at=1.0, first=3.0, gap=1.0, tokens=2, prompt_tokens=300),
        lost("c", at=2.0, status="rejected"),
        lost("d", at=2.0, status="failed"),
    ]
    s = summarize(records, slo=Slo(ttft_s=2.0))
    assert s["requests"] == {"offered": 4, "completed": 2, "failed": 1, "rejected": 1, "partial": 0}
    assert s["window_s"] == 5.0
    assert s["throughput"] == {"output_tokens_per_s": 1.0, "total_tokens_per_s": 81.0, "requests_per_s": 0.4}
    # TTFT 1, 3, inf, inf: the median lies between 3 and infinity.
    assert s["ttft_s"] == {"mean": 2.0, "p50": None, "p90": None, "p99": None, "max": None, "count": 2, "infinite": 2}
    assert s["tpot_s"]["mean"] == 0.75
    assert s["e2e_s"]["mean"] == 3.0
    assert s["queue_s"]["mean"] == 1.0
    assert (s["itl_s"]["count"], s["itl_s"]["infinite"], s["itl_s"]["mean"]) == (3, 2, pytest.approx(2 / 3))
    assert s["max_token_gap_s"] == 1.0
    assert s["goodput"] == {"fraction": 0.25, "requests_per_s": 0.2}
    assert list(s["buckets"]) == ["0-256", "256-1k"]
    assert s["buckets"]["256-1k"]["ttft_s"]["p99"] == 3.0
    assert s["buckets"]["256-1k"]["throughput"]["total_tokens_per_s"] == pytest.approx(302 / 5)
    assert s["buckets"]["256-1k"]["goodput"]["fraction"] == 0.0


def test_one_failure_in_a_hundred_makes_p99_infinite_and_null():
    records = [request(f"r{i}") for i in range(99)] + [lost()]
    assert summarize(records)["ttft_s"]["p99"] is None
    assert summarize(records[:99])["ttft_s"]["p99"] == 1.0
    assert summarize(records)["ttft_s"]["infinite"] == 1


def test_every_field_that_the_format_promises_is_there():
    s = json.loads(json.dumps(summarize(*busy_run(requests=30), slo=Slo(ttft_s=1.0)), allow_nan=False))
    for figures in (s, *s["buckets"].values()):
        assert {"offered", "completed", "failed", "rejected"} <= figures["requests"].keys()
        assert {"output_tokens_per_s", "total_tokens_per_s", "requests_per_s"} == figures["throughput"].keys()
        assert all({"mean", "p50", "p90", "p99", "max"} <= figures[name].keys() for name in LATENCIES)
        assert {"fraction", "requests_per_s"} == figures["goodput"].keys()
    assert {"valid", "lag_p99_s"} <= s["replay"].keys()
    assert (s["transformations"]["merges"], s["transformations"]["splits"]) == (2, 2)
    assert sum(b["requests"]["offered"] for b in s["buckets"].values()) == s["requests"]["offered"]


def test_an_empty_run_has_figures_but_no_numbers():
    s = summarize([])
    assert s["requests"]["offered"] == 0
    assert s["throughput"]["requests_per_s"] is None
    assert s["ttft_s"]["p50"] is None
    assert s["ttft_s"]["infinite"] == 0
    assert not s["replay"]["valid"]


def test_goodput_without_an_slo_is_not_made_up():
    assert summarize([request()])["goodput"] == {"fraction": None, "requests_per_s": None}


statuses = st.lists(st.sampled_from(["ok", "failed", "rejected", "partial"]), min_size=1, max_size=12)


@given(statuses, st.floats(min_value=0.01, max_value=10), st.randoms(use_true_random=False))
def test_invariants_of_any_mix_of_endings(endings, limit, rng):
    records = []
    for i, ending in enumerate(endings):
        name, at, prompt = f"r{i}", rng.uniform(0, 9), rng.randint(1, 90_000)
        if ending == "ok":
            made = request(name, at=at, first=rng.uniform(0, 9), tokens=rng.randint(1, 5), prompt_tokens=prompt)
        else:
            made = lost(name, at=at, status=ending, prompt_tokens=prompt)
        records.append(made)
    events = [TransformationEvent("merge", (0, 1), 1.0, 2.0)]
    s = summarize(records, [], events, slo=Slo(ttft_s=limit))
    assert 0 <= s["goodput"]["fraction"] <= s["requests"]["completed"] / s["requests"]["offered"] <= 1
    assert sum(n for name, n in s["requests"].items() if name != "offered") == s["requests"]["offered"]
    assert (s["e2e_s"]["max"] is None) == (set(endings) != {"ok"})
    known = [v for p in ("p50", "p90", "p99", "max") if (v := s["e2e_s"][p]) is not None]
    assert known == sorted(known)
    shuffled = records.copy()
    rng.shuffle(shuffled)
    assert summarize(shuffled, [], events, slo=Slo(ttft_s=limit)) == s


def test_the_order_of_samples_does_not_matter():
    records, samples, events = busy_run(requests=40)
    expected = summarize(records, samples, events)
    random.Random(1).shuffle(samples)
    assert summarize(records[::-1], samples, events[::-1]) == expected


def test_lag_invalidates_an_open_replay_only():
    late = [request(f"r{i}", sent_s=0.02) for i in range(10)]
    judged = summarize(late, replay_mode="open")["replay"]
    assert (judged["valid"], judged["lag_p99_s"]) == (False, 0.02)
    assert "20 ms is over 10 ms" in judged["reason"]
    for mode in ("closed", "asap"):
        judged = summarize(late, replay_mode=mode)["replay"]
        assert (judged["valid"], judged["lag_p99_s"], judged["reason"]) == (True, None, None)
    with pytest.raises(UserError, match="known: asap, closed, open"):
        summarize(late, replay_mode="fast")


def test_lag_over_a_twentieth_of_median_ttft_invalidates():
    judged = summarize([request(first=0.1, sent_s=0.006)])["replay"]
    assert not judged["valid"]
    assert "5% of median TTFT" in judged["reason"]


def test_kv_use_is_weighted_by_time_and_follows_the_devices_through_a_merge():
    samples = [
        sample(0.0, "a", (0,), used=20),  # device 0: 20 % for 1 s, then 80 % for 3 s
        sample(0.0, "b", (1,), used=60),
        sample(1.0, "ab", (0, 1), used=160, total=200),
        sample(4.0, "ab", (0, 1), used=180, total=200),
    ]
    kv = summarize([request()], samples)["kv"]
    assert kv["0"] == {"mean": pytest.approx(0.65), "max": 0.9}
    assert kv["1"] == {"mean": pytest.approx(0.75), "max": 0.9}


def test_transformations_add_up():
    events = [
        TransformationEvent("merge", (0, 1), 1.0, 1.5, 100, 0.02, "long"),
        TransformationEvent("merge", (2, 3), 2.0, 2.25, 50, 0.01, "long", extra_bytes=1024),
        TransformationEvent("split", (0, 1), 5.0, 6.0, 10, 0.05, "idle"),
        TransformationEvent("split", (2, 3), 5.0, 9.0, 999, 3.0, "idle", error="worker 2 died"),
    ]
    assert summarize([request()], [], events)["transformations"] == {
        "merges": 2,
        "splits": 1,
        "failed": 1,
        "bytes_moved": 160,
        "time_total_s": 1.75,
        "pause_total_s": pytest.approx(0.08),
        "pause_max_s": 0.05,
        "extra_bytes_max": 1024,
    }


def test_buckets_take_their_lower_edge_and_leave_the_upper():
    records = [request(f"r{n}", prompt_tokens=n) for n in (255, 256, 1023, 1024, 65535, 65536)]
    counts = {label: b["requests"]["offered"] for label, b in summarize(records)["buckets"].items()}
    assert counts == {"0-256": 1, "256-1k": 2, "1k-4k": 1, "32k-64k": 1, "64k+": 1}
    assert bucket_label(0, 1000) == "0-1000"


def test_figures_load_no_heavy_library():
    code = "import sys, gyges.metrics.records, gyges.metrics.summary, gyges.metrics.results, gyges.metrics.plots;"
    code += "print(*[m for m in ('pandas', 'pyarrow', 'matplotlib', 'torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""
