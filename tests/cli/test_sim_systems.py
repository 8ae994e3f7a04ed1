"""gyges sim systems: every way of serving with its source, and what papers report beside what the simulator gives."""

from command import gyges

from gyges.sim import papers
from gyges.sim.system import SYSTEMS


def test_every_system_is_listed_with_its_source_and_its_figures(capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    outcome = gyges(capfd, monkeypatch, "sim", "systems", "--hardware", "h20x8", "--json")
    assert outcome.code == 0
    listed = outcome.document["systems"]
    assert set(listed) == set(SYSTEMS.names())
    assert listed["kunserve"]["arxiv"] == "2412.18169"
    figures = listed["kunserve"]["figures"]
    assert figures["degrees"] == [1, 2, 4, 8]
    assert figures["kv_tokens"]["8"] > 8 * figures["kv_tokens"]["1"]
    assert figures["merge"]["pause_s"] < figures["split"]["ahead_s"] + figures["split"]["pause_s"]
    assert listed["shift"]["figures"]["merge"] is None
    assert all(len(line) <= 80 for line in outcome.err.splitlines())


def test_a_system_that_does_not_fit_is_listed_with_the_reason(capfd, monkeypatch):
    arguments = ("--hardware", "h20x2", "--model", "meta-llama/Llama-3.1-70B", "--json")
    listed = gyges(capfd, monkeypatch, "sim", "systems", *arguments).document["systems"]
    assert "no room for the weights in both forms" in listed["shift"]["refused"]
    assert listed["shift"]["figures"] is None
    assert listed["fixed"]["figures"]["degrees"] == [2]


def test_what_is_unknown_is_refused_by_name(capfd, monkeypatch):
    outcome = gyges(capfd, monkeypatch, "sim", "systems", "--hardware", "h21x8")
    assert outcome.code == 2
    assert "h20" in outcome.err


def test_what_papers_report_is_shown_beside_what_the_simulator_gives(capfd, monkeypatch):
    short = [each for each in papers.COMPARISONS if each.system in ("seesaw", "pipelive")]
    monkeypatch.setattr(papers, "COMPARISONS", short)
    monkeypatch.setenv("COLUMNS", "80")
    outcome = gyges(capfd, monkeypatch, "sim", "systems", "--papers", "--json")
    assert [row["system"] for row in outcome.document["comparisons"]] == ["seesaw", "pipelive"]
    assert all(row["here"] and row["why"] for row in outcome.document["comparisons"])
    assert "-97.2 %" in outcome.err
    assert all(len(line) <= 80 for line in outcome.err.splitlines())
