"""Policies by name: ``NAME[:WORD][+option=value...]``.

    gyges    gyges:paper    gyges+reserve=off+dwell=5    rr    llf    static    static:tp2+tp1+tp1    on-demand

A word chooses a variant (``static``: the layout). Options are the keyword parameters of the policy's constructor: ``on`` and
``off`` for switches, words where the default is one, numbers otherwise. Other things that are made by name use the same grammar.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

from gyges.config import parse_instances
from gyges.errors import UnknownNameError, UserError
from gyges.registry import Registry
from gyges.scheduling.routing import POLICIES, RoutingPolicy

# "policy:word" -> its keyword arguments
VARIANTS: Registry[dict[str, Any]] = Registry("variant of a scheduler policy")
_SWITCH = {"on": True, "off": False}


def make_policy(text: str) -> RoutingPolicy:
    """The policy that ``text`` asks for. Raises UserError for unknown names, words, options and values, listing what there is."""
    name, word, options = parts_of(text, "scheduler")
    make = POLICIES.get(name)
    given: dict[str, Any] = {}
    if name == "static" and word:
        given["layout"] = parse_instances(word)
    elif word:
        known = [each for each in VARIANTS.names() if each.startswith(f"{name}:")]
        if f"{name}:{word}" not in known:
            raise UnknownNameError(f"variant of policy {name}", word, [each.partition(":")[2] for each in known])
        given |= VARIANTS.get(f"{name}:{word}")
    return make(**given | arguments_of(make, f"policy {name}", options))


def parts_of(text: str, what: str) -> tuple[str, str, list[tuple[str, str]]]:
    """``static:tp2+tp1+x=1`` -> static, tp2+tp1, [(x, 1)]: what has no ``=`` belongs to the word. ``what`` it is, for errors."""
    match = re.fullmatch(r"\s*([^:+\s]+)(?::([^=]*?))?((?:\+[^+=]+=[^+]*)*)\s*", text)
    if match is None:
        raise UserError(f"cannot read {what} {text!r}; write NAME, NAME:WORD or NAME+option=value")
    pairs = [pair.partition("=") for pair in match[3].split("+") if pair]
    return match[1], match[2] or "", [(name.strip(), value.strip()) for name, _, value in pairs]


def arguments_of(make: Callable[..., Any], what: str, options: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Values of keyword-only parameters of ``make``, read by the kind of their defaults. Raises UserError."""
    parameters = {p.name: p for p in inspect.signature(make).parameters.values() if p.kind is p.KEYWORD_ONLY}
    given = {}
    for option, value in options:
        if option not in parameters:
            raise UnknownNameError(f"option of {what}", option, parameters)
        given[option] = _value(option, value, parameters[option].default)
    return given


def _value(option: str, text: str, default: Any) -> Any:
    if isinstance(default, bool):
        if text not in _SWITCH:
            raise UserError(f"{option}={text!r}: a switch is on or off")
        return _SWITCH[text]
    if isinstance(default, str):
        return text
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{option}={text!r} is not a number") from None


def layout_of(policy: RoutingPolicy, devices: int) -> tuple[int, ...]:
    """TP degrees of the instances that a policy wants on so many devices; empty: as configured. UserError if they do not fit."""
    layout: tuple[int, ...] = getattr(policy, "layout", ())
    if not layout:
        return ()
    if devices % sum(layout):
        raise UserError(
            f"static:{'+'.join(f'tp{d}' for d in layout)} takes {sum(layout)} devices or a multiple of that; "
            f"there are {devices}"
        )
    return layout * (devices // sum(layout))
