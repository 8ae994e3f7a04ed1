"""What an engine's configuration does not say and a simulation of it needs. Light: commands that only may simulate import it."""

from __future__ import annotations

from dataclasses import dataclass

CPU = "cpu"
MODES = ("open", "asap")  # of replays; a closed one needs a client's clock


@dataclass(frozen=True, slots=True)
class Simulation:
    """``hardware``: of each device, without a count.   cost: source of step times, ``profile`` the folder that it reads."""

    hardware: str = CPU
    cost: str = "analytic"
    profile: str | None = None

    @property
    def on_cpu(self) -> bool:
        """Whether it is this project's engine as it stands that is simulated."""
        return self.hardware == CPU


THIS_ENGINE = Simulation()
