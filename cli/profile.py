"""``gyges profile``: what the operators of the engine take on this device, for the simulator."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.engine_options import build_engine_config
from cli.option_groups import adapted, takes
from cli.output import JsonOption, emit, human_console
from gyges.config import EngineConfig

_engine = adapted(
    build_engine_config,
    without=("devices", "device", "collectives", "instances", "tp_degrees", "overlap", "pages_per_step"),
)


@takes(engine=_engine)
def profile(
    *,
    degrees: Annotated[str, typer.Option("--degrees", metavar="N,...", help="TP degrees.")] = "1,2",
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Of each step; the median counts.")] = 5,
    quick: Annotated[bool, typer.Option("--quick", help="A coarse grid: see that it works.")] = False,
    out: Annotated[Path, typer.Option("--out", help="Folder of the bundle, new or empty.")] = Path("profile"),
    json: JsonOption = False,
    engine: EngineConfig,
) -> None:
    """Measure the engine's operators and steps on this device, and write the tables that gyges sim reads with --profile."""
    from cli.bench_tables import stopwatch
    from gyges.errors import UserError
    from gyges.profile.run import ProfileConfig
    from gyges.profile.run import profile as measure

    try:
        wanted = tuple(int(degree) for degree in degrees.split(","))
    except ValueError:
        raise UserError(f"cannot read --degrees {degrees!r}; write for example 1,2,4") from None
    meta = measure(ProfileConfig(engine, wanted, repeats, quick), out, stopwatch())
    human_console(json).print(f"profile: {out}", soft_wrap=True, highlight=False)
    if json:
        emit({**meta, "folder": str(out)})
