"""The report's file: everything is in it, text stays text, and what is no result folder is refused."""

import json
import re
from html.parser import HTMLParser

import pytest

from gyges.errors import UserError
from gyges.metrics.results import ResultFolder
from gyges.report.content import read_content
from gyges.report.page import write_report

from .folders import ablation_folder, run_folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return run_folder(tmp_path_factory.mktemp("report") / "run")


@pytest.fixture(scope="module")
def ablation(tmp_path_factory):
    return ablation_folder(tmp_path_factory.mktemp("report") / "ablation")


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.links, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"unbalanced </{tag}>"


@pytest.mark.parametrize("which", ["run", "ablation"])
def test_a_report_is_one_file_that_links_to_nothing(which, request):
    folder = request.getfixturevalue(which)
    text = write_report(folder).read_text()
    page = _Page(text)
    assert page.open == []
    assert all(link.startswith("data:") for link in page.links)
    assert re.findall(r"url\(|@import|https?://(?!www\.w3\.org)", re.sub(r"data:[^\"]*", "", text)) == []
    svgs = len(list((folder / "plots").glob("*.svg")))
    assert page.tags.count("img") == svgs >= 3


@pytest.mark.parametrize("which", ["run", "ablation"])
def test_it_holds_the_manifest_and_the_command(which, request):
    folder = request.getfixturevalue(which)
    content = read_content(folder)
    assert content.steps[-1] == json.loads((folder / "manifest.json").read_text())["command"]
    text = write_report(folder).read_text()
    assert "&lt;b&gt;bold&lt;/b&gt; &amp; co" in text
    assert "<b>bold" not in text
    assert "memory_bytes" in text


def test_every_figure_of_every_cell_is_in_the_table(ablation):
    document = json.loads((ablation / "ablation.json").read_text())
    figures = read_content(ablation).tables[0]
    assert len(figures.rows) == len(document["cells"])
    assert {len(row) for row in figures.rows} == {len(figures.heads)} == {1 + len(document["figures"])}


def test_what_never_came_sorts_above_every_number(ablation):
    table = read_content(ablation).tables[0]
    column = next(i for i, head in enumerate(table.heads) if head.startswith("long TTFT p99"))
    cells = {row[0].text: row[column] for row in table.rows}
    assert (cells["all off"].text, cells["all off"].sort) == ("inf", "Infinity")
    assert float(cells["all on"].sort) > 0


def test_a_folder_that_cannot_be_shown_says_why(tmp_path):
    with pytest.raises(UserError, match="not a result folder"):
        write_report(tmp_path)
    with ResultFolder.create(tmp_path / "other", "bench-peers"):
        pass
    with pytest.raises(UserError, match="ablation"):
        write_report(tmp_path / "other")
    with ResultFolder.create(tmp_path / "empty", "run"):
        pass
    with pytest.raises(UserError, match="did the run end"):
        write_report(tmp_path / "empty")


def test_a_run_that_failed_or_has_no_plots_yet_is_shown_with_both(run, tmp_path):
    (tmp_path / "run").mkdir()
    for name in ("manifest.json", "summary.json", "requests.parquet", "timeline.parquet"):
        (tmp_path / "run" / name).write_bytes((run / name).read_bytes())
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    (tmp_path / "run" / "manifest.json").write_text(
        json.dumps(manifest | {"state": "failed", "reason": "worker 2 died"})
    )
    content = read_content(tmp_path / "run")
    assert any("worker 2 died" in warning for warning in content.warnings)
    assert len(content.plots) == 3
