"""Which cells an ablation has: combinations of the toggles, in every environment that ``--set`` makes.

An environment is one combination of the axes that are set; cells are compared within theirs. A toggle that is set is part of the
environment: it no longer goes on and off.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gyges.bench.ablation.axes import AXES, Axis, Settings, toggles
from gyges.errors import UserError

ALL_ON, ALL_OFF = "all on", "all off"
KINDS = ("on", "off", "without", "only")


@dataclass(frozen=True)
class Cell:
    """One combination. ``state``: toggle -> on or off.   settings: of all axes that the grid decides.

    reference: name of the cell that it is compared with; its own name: none.
    """

    name: str
    state: Mapping[str, bool]
    environment: Settings
    settings: Settings
    reference: str

    @property
    def slug(self) -> str:
        """Of its folder; as unique as the name."""
        return re.sub(r"[^A-Za-z0-9.+=-]+", "-", self.name).strip("-")


@dataclass(frozen=True, slots=True)
class Grid:
    """What was asked for. ``sets``: axis -> its values.   full: every combination of the toggles.

    kinds: of the default grid's cells (:data:`KINDS`).
    """

    sets: Mapping[str, tuple[str, ...]]
    full: bool = False
    kinds: tuple[str, ...] = KINDS

    def cells(self) -> list[Cell]:
        """Everything on first, everything off second, in each environment. Raises UserError where none is left."""
        free = [axis for axis in toggles() if axis.name not in self.sets]
        states = _states(free, self.full, self.kinds)
        if not states:
            raise UserError(f"no cell is left; --cells takes one or more of {', '.join(KINDS)}")
        off = {axis.name: False for axis in free}
        found: list[Cell] = []
        for environment in _product(self.sets):
            where = ", ".join(f"{name}={value}" for name, value in environment.items() if len(self.sets[name]) > 1)

            def named(state: Mapping[str, bool], where: str = where) -> str:
                # With one combination, the environment says all.
                return ", ".join(filter(None, ("" if where and len(states) == 1 else _name(state), where)))

            reference = named(off if off in states else states[0])
            for state in states:
                settings = {axis.name: self._side(axis, state[axis.name]) for axis in free} | environment
                found.append(Cell(named(state), state, environment, settings, reference))
        return _against_the_first(found) if len(states) == 1 else found

    @staticmethod
    def _side(axis: Axis, on: bool) -> str:
        assert axis.on is not None
        assert axis.off is not None
        return axis.on if on else axis.off


def _against_the_first(cells: list[Cell]) -> list[Cell]:
    """With one combination of toggles, cells of different engines or schedulers are compared across environments: with the first
    that replays the same requests."""
    first: dict[tuple[tuple[str, str], ...], str] = {}
    found = []
    for cell in cells:
        trace = tuple((n, v) for n, v in cell.environment.items() if AXES.get(n).of == "trace")
        reference = first.setdefault(trace, cell.name)
        found.append(Cell(cell.name, cell.state, cell.environment, cell.settings, reference))
    return found


def _product(sets: Mapping[str, tuple[str, ...]]) -> list[dict[str, str]]:
    return [dict(zip(sets, values, strict=True)) for values in itertools.product(*sets.values())]


def _states(free: Sequence[Axis], full: bool, kinds: Sequence[str]) -> list[dict[str, bool]]:
    names = [axis.name for axis in free]
    every = [dict(zip(names, values, strict=True)) for values in itertools.product((True, False), repeat=len(names))]
    if full:
        # The two ends first, as in the default grid: an interrupted run has what it is compared with.
        return [every[0], every[-1], *every[1:-1]] if len(every) > 1 else every
    wanted = []
    for kind in kinds:
        if kind == "on":
            wanted += [dict.fromkeys(names, True)]
        elif kind == "off":
            wanted += [dict.fromkeys(names, False)]
        elif kind in ("without", "only"):
            wanted += [{name: (name == one) == (kind == "only") for name in names} for one in names]
        else:
            raise UserError(f"unknown kind of cells {kind!r}; --cells takes one or more of {', '.join(KINDS)}")
    return [state for index, state in enumerate(wanted) if state not in wanted[:index]]


def _name(state: Mapping[str, bool]) -> str:
    on = [name for name, value in state.items() if value]
    off = [name for name, value in state.items() if not value]
    if not off:
        return ALL_ON
    if not on:
        return ALL_OFF
    if len(off) == 1:
        return f"without {off[0]}"
    return f"only {on[0]}" if len(on) == 1 else "only " + " + ".join(on)
