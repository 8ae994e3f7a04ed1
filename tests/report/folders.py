"""Result folders to report on, without an engine."""

from __future__ import annotations

from pathlib import Path

from bench.ablations import config_of, run_made_up, the_backend
from metrics.factory import busy_run, lost

from gyges.bench.ablation.plot import write_plots as ablation_plots
from gyges.bench.ablation.table import write_tables
from gyges.metrics.plots import write_plots
from gyges.metrics.results import ResultFolder
from gyges.metrics.summary import summarize

ARGV = ["gyges", "bench", "run", "--trace", "<b>bold</b> & co"]


def run_folder(path: Path) -> Path:
    """With a rejected request, transformations, and a command that would be markup."""
    records, samples, events = busy_run(requests=40)
    records = [*records, lost("gone", at=1.0, status="rejected")]
    with ResultFolder.create(
        path, "run", argv=ARGV, configuration={"scheduler": "llf"}, trace={"name": "busy"}
    ) as folder:
        folder.save(records, samples, events, summarize(records, samples, events, notes=["a note"]))
        write_plots(folder.plots, records, samples, events)
    return path


def ablation_folder(path: Path) -> Path:
    the_backend()
    config = config_of()
    with ResultFolder.create(
        path, "ablation", argv=ARGV, configuration=config.to_dict(), trace={"name": "made-up"}
    ) as folder:
        _, document = run_made_up(path, config)
        folder.write_json("ablation.json", document)
        write_tables(path, document)
        ablation_plots(folder.plots, document, path)
    return path
