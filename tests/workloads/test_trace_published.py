"""Traces that figures ask for: the published file where it is there, a generated one of its shape elsewhere."""

from dataclasses import replace

import pytest

from workloads import published
from workloads.known import KNOWN
from workloads.published import STAND_INS, published_trace
from workloads.sources.containers import file_sha256

# Of the published files: requests/s, mean and p99 of the prompts, mean of the outputs (tokens).
FACTS = {"azure-2023-conv": (5.53, 1155, 4142, 211), "mooncake-conversation": (3.40, 12035, 85400, 343)}


@pytest.mark.parametrize("name", FACTS)
def test_a_stand_in_has_the_rate_and_lengths_of_what_it_stands_for(name):
    trace = published_trace(name)
    rate, mean, p99, output = FACTS[name]
    prompts = sorted(request.prompt_tokens for request in trace.requests)
    assert len(trace) / trace.duration_s == pytest.approx(rate, rel=0.05)
    assert sum(prompts) / len(prompts) == pytest.approx(mean, rel=0.1)
    assert prompts[int(0.99 * len(prompts))] == pytest.approx(p99, rel=0.15)
    assert sum(request.output_tokens for request in trace.requests) / len(trace) == pytest.approx(output, rel=0.1)
    assert trace.name == f"{name} (generated)"
    assert "not at hand" in trace.manifest()["provenance"]["notes"][0]


def test_every_stand_in_is_for_a_trace_whose_file_can_be_recognised():
    assert all(KNOWN.get(name).sha256 for name in STAND_INS)


def test_a_file_is_recognised_by_its_content_whatever_its_name(tmp_path, monkeypatch):
    file = tmp_path / "some.csv"
    file.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n")
    known = replace(KNOWN.get("azure-2023-conv"), sha256=file_sha256(file))
    monkeypatch.setattr(published.KNOWN, "_entries", {**KNOWN._entries, "azure-2023-conv": known})
    (tmp_path / "other.txt").write_text("nothing")
    trace = published_trace("azure-2023-conv", folder=tmp_path)
    assert [(r.prompt_tokens, r.output_tokens) for r in trace.requests] == [(374, 44)]
    assert not trace.manifest()["provenance"]["notes"]


def test_rate_limit_and_mixing_are_applied_and_recorded():
    trace = published_trace(
        "azure-2023-conv", rate=2.0, limit=100, mix_in="synthetic:constant?rate=0.5&prompt=50000&output=10"
    )
    assert len(trace) == 100
    long = [request for request in trace.requests if request.prompt_tokens == 50_000]
    assert len(long) == pytest.approx(20, abs=5)
    assert [record.name for record in trace.provenance.transforms] == ["time_scale", "mix_in", "limit"]


def test_other_names_are_those_of_every_command():
    assert published_trace("paper-mix?duration=60").requests
