"""Names to things: an extension is one file plus one ``register``; an unknown name lists the known ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from gyges.errors import UnknownNameError

T = TypeVar("T")


class Registry(Generic[T]):
    """A mapping from names to values of one kind.

    ``kind`` is the word the error uses ("KV layout", "trace source" …).
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator form of :meth:`add`."""

        def enter(value: T) -> T:
            return self.add(name, value)

        return enter

    def add(self, name: str, value: T) -> T:
        assert name not in self._entries, f"{self.kind} {name!r} is registered twice"
        self._entries[name] = value
        return value

    def get(self, name: str) -> T:
        """Raises :class:`gyges.errors.UnknownNameError` (a ValueError) that lists what exists."""
        try:
            return self._entries[name]
        except KeyError:
            raise UnknownNameError(self.kind, name, self._entries) from None

    def names(self) -> list[str]:
        return list(self._entries)

    def items(self) -> Iterator[tuple[str, T]]:
        return iter(self._entries.items())

    def __contains__(self, name: str) -> bool:
        return name in self._entries
