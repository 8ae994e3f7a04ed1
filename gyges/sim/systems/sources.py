"""Whose ideas the systems are: what `gyges sim systems` shows and docs/neighbours.md says more about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

Build = TypeVar("Build", bound=Callable[..., object])


@dataclass(frozen=True, slots=True)
class Source:
    """title: as its authors call it.   arxiv: id of the paper.   code: repository on GitHub.   idea: in a few words. Empty:
    none."""

    title: str
    arxiv: str
    code: str
    idea: str


def described(source: Source) -> Callable[[Build], Build]:
    """Decorator of a builder: says whose idea it builds."""

    def attach(build: Build) -> Build:
        build.source = source  # type: ignore[attr-defined]
        return build

    return attach


def source_of(build: Callable[..., object]) -> Source | None:
    """None of a builder that says nothing."""
    return getattr(build, "source", None)
