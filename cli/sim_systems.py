"""What ``gyges sim systems`` shows: every way of serving, whose idea it is, and what it comes to on one host."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from cli.render import number, seconds
from gyges.config import format_bytes
from gyges.errors import UserError
from gyges.sim.hardware import load_hardware
from gyges.sim.models import sim_model
from gyges.sim.survey import Survey, survey
from gyges.sim.system import SYSTEMS, SystemSpec, make_system
from gyges.sim.systems.sources import Source, source_of


def systems_command(console: Console, hardware: str, model: str) -> dict[str, Any]:
    """The list, and the figures; a system that cannot be had on this host is listed with the reason."""
    from gyges.sim import systems  # noqa: F401 - registers all

    device, count = load_hardware(hardware)
    spec = SystemSpec(sim_model(model), device, count)
    sources, found, refused = {}, {}, {}
    for name, build in SYSTEMS.items():
        sources[name] = source_of(build)
        try:
            found[name] = survey(make_system(name, spec))
        except UserError as error:
            refused[name] = str(error)
    console.print(_list(sources, found))
    console.print(_steps(found, f"{model} on {hardware}"))
    console.print(_switches(found))
    for name, reason in refused.items():
        console.print(f"{name}: {reason}", highlight=False, markup=False)
    return {
        "model": model,
        "hardware": hardware,
        "systems": {
            name: {
                "title": source.title,
                "arxiv": source.arxiv,
                "code": source.code,
                "idea": source.idea,
                "figures": found[name].as_dict() if name in found else None,
                "refused": refused.get(name),
            }
            for name, source in sources.items()
        },
    }


def papers_command(console: Console) -> dict[str, Any]:
    """Every figure that a paper reports and that could be built here, computed."""
    from gyges.sim.papers import compare

    rows = compare()
    table = Table(title="Papers, and this simulator", box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
    for head in ("system", "figure", "setting here", "paper", "here"):
        table.add_column(head, no_wrap=head == "system")
    for row in rows:
        table.add_row(row["system"], row["what"], row["setting"], row["paper"], row["here"])
    console.print(table)
    return {"comparisons": rows}


def _list(sources: dict[str, Source], found: dict[str, Survey]) -> Table:
    table = Table(title="Ways of serving", box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
    for head in ("name", "idea", "source", "scheduler"):
        table.add_column(head, no_wrap=head == "name", overflow="fold")
    for name, source in sources.items():
        paper = f"arXiv {source.arxiv}" if source.arxiv else ""
        whose = ", ".join(each for each in (source.title, paper, source.code) if each)
        table.add_row(name, source.idea, whose, found[name].policy if name in found else "")
    return table


def _steps(found: dict[str, Survey], title: str) -> Table:
    table = _table(title, "devices", "KV tokens", "step of 32 decodes", "prompt of 8,192")
    for name, each in found.items():
        ends = sorted({each.degrees[0], each.degrees[-1]})
        room = [number(each.kv_tokens[degree]) for degree in ends]
        times = [[seconds(by[degree]) for degree in ends] for by in (each.decode_s, each.prompt_s)]
        table.add_row(name, *("\n".join(lines) for lines in ([str(degree) for degree in ends], room, *times)))
    table.caption = "of the narrowest and the widest instance"
    return table


def _switches(found: dict[str, Survey]) -> Table:
    table = _table("Changes", "merge: pause", "in all", "moved", "split: pause", "in all", "requests")
    for name, each in found.items():
        merge, split = each.merge, each.split
        if merge is None or split is None:
            table.add_row(name, *["-"] * 6)
            continue
        cells = [seconds(merge.pause_s), seconds(merge.total_s), format_bytes(merge.bytes_moved)]
        cells += [seconds(split.pause_s), seconds(split.total_s)]
        table.add_row(name, *cells, "drained" if each.restarts else "go on" if merge.keeps_kv else "computed anew")
    table.caption = "merge: of narrow instances 90 % full into the widest; split: back, of as much as half fills them"
    return table


def _table(title: str, *heads: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title_justify="left")
    table.caption_justify = "left"
    table.add_column("name", no_wrap=True)
    for head in heads:
        table.add_column(head, justify="right")
    return table
