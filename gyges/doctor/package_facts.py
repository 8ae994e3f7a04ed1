"""The group ``python``: the interpreter, and every package that the project's own metadata names."""

from __future__ import annotations

import platform
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from gyges.doctor.facts import PROBES, Fact
from gyges.version import __version__

# What can be done without, and what it is needed for. Everything else is needed by the engine or the command.
LESS_WITHOUT = {
    "datasets": "hf: traces from the Hugging Face hub",
    "triton": "GPU kernels, and their parity tests under Triton's interpreter",
    "matplotlib": "plots",
    "jinja2": "gyges report",
    "pyyaml": "the simulator's hardware files",
}
EXTRAS = {"cuda": "the memory pool on NVIDIA GPUs", "aic": "step times from NVIDIA's aiconfigurator"}


def requirements() -> tuple[list[str], dict[str, list[str]]]:
    """(what gyges requires, what each extra adds), as requirement strings: of the checkout, or else of the installed package."""
    project = Path(__file__).resolve().parents[2] / "pyproject.toml"
    if project.is_file():
        about = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
        return about["dependencies"], about["optional-dependencies"]
    needed: list[str] = []
    extras: dict[str, list[str]] = {}
    for line in metadata.requires("gyges") or ():
        extra = re.search(r"extra == ['\"](\w+)['\"]", line)
        (extras.setdefault(extra[1], []) if extra else needed).append(line)
    return needed, extras


@PROBES.register("python")
def packages() -> Iterator[Fact]:
    old = sys.version_info < (3, 11)
    yield Fact(
        "python", "python", f"{platform.python_version()}, {sys.executable}", "missing" if old else "good",
        "gyges needs Python 3.11 or newer" if old else "", platform.python_version(),
    )  # fmt: skip
    yield Fact("python", "gyges", f"{__version__}, {Path(__file__).resolve().parents[1]}", data=__version__)
    needed, extras = requirements()
    for line in needed:
        yield _package(line, LESS_WITHOUT.get(_name(line)))
    for extra, what in EXTRAS.items():
        for line in extras.get(extra, ()):
            yield _extra(line, extra, what)


def _name(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match, f"{requirement!r} names no package"
    return match[0].lower()


def _spec(requirement: str) -> str:
    """``"triton>=3.6; platform_system == 'Linux'"`` -> ``"triton>=3.6"``."""
    return requirement.split(";")[0].strip()


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _package(requirement: str, less: str | None) -> Fact:
    name, spec = _name(requirement), _spec(requirement)
    version = _installed(name)
    state: Any = "good"
    if version is None:
        value, state = "not installed", "missing"
    elif satisfies(version, spec):
        value = version
    else:
        value, state = f"{version}; {spec} is wanted", "warn"
    if less and state == "missing":
        value, state = f"not installed: no {less}", "warn"
    remedy = "" if state == "good" else f"pip install '{spec}'"
    return Fact("python", name, value, state, remedy, version)


def satisfies(version: str, requirement: str) -> bool:
    """Whether a version is one that a requirement ("torch>=2.11,<2.14") allows; True where nobody can tell."""
    try:
        from packaging.requirements import Requirement
    except ImportError:  # the doctor must work where much is missing
        return True
    return Requirement(requirement).specifier.contains(version, prereleases=True)


def _extra(requirement: str, extra: str, what: str) -> Fact:
    name = _name(requirement)
    version = _installed(name)
    if version is None:
        return Fact("python", name, f"not installed (extra {extra}: {what})", "note", f"pip install 'gyges[{extra}]'")
    return Fact("python", name, f"{version} (extra {extra}: {what})", "good", "", version)
