"""Views of instances for tests of policies: TP1 holds 100 tokens, TP2 250, TP4 600."""

from __future__ import annotations

from collections.abc import Sequence

from gyges.scheduling.routing import Ask, FlatPrices, HostView, InstanceView

HOST = HostView({1: 100, 2: 250, 4: 600}, prices=FlatPrices(fixed_s=0.1, tokens_per_s=100, moved_per_s=1e9))
SHORT, MIDDLE, LONG = 100, 250, 600


def ask(length: int, at: float = 0.0, name: str = "") -> Ask:
    return Ask(length, length, at, name)


def views(
    *degrees: int,
    load: Sequence[int] = (),
    requests: Sequence[int] = (),
    longest: Sequence[int] = (),
    held: Sequence[int] = (),
    becoming: dict[int, tuple[int, ...]] | None = None,
) -> list[InstanceView]:
    """Instances of these TP degrees on devices in order. ``becoming``: index -> degrees, for those in a transformation."""
    becoming = becoming or {}
    made, device = [], 0
    for index, degree in enumerate(degrees):
        most, long = HOST.max_tokens[degree], longest[index] if longest else 0
        holding = held[index] if held else 0
        made.append(
            InstanceView(
                name=f"i{device}x{degree}",
                degree=degree,
                devices=tuple(range(device, device + degree)),
                max_tokens=most,
                free_tokens=most - holding,
                running=requests[index] if requests else int(long > 0),
                waiting=0,
                remaining_tokens=load[index] if load else 0,
                longest_tokens=long,
                transforming=index in becoming,
                held_tokens=holding,
                long_requests=int(long > SHORT),
                becoming=becoming.get(index, ()),
            )
        )
        device += degree
    return made
