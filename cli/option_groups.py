"""Options that several commands share, written once as the signature of a function that builds a value from them.

    @app.command()
    @takes(engine=build_engine_config, trace_options=build_trace_options)
    def run(trace: ..., *, engine: EngineConfig, trace_options: TraceOptions) -> None: ...

The command is offered with every parameter of the builders, and called with what they built.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection
from typing import Any


def adapted(builder: Callable[..., Any], *, without: Collection[str] = (), **defaults: Any) -> Callable[..., Any]:
    """The builder, offered without some of its options, and with other defaults for some."""
    signature = inspect.signature(builder, eval_str=True)
    unknown = ({*defaults, *without}) - signature.parameters.keys()
    assert not unknown, f"no such options: {unknown}"

    @functools.wraps(builder)
    def wrapper(**given: Any) -> Any:
        return builder(**({name: p.default for name, p in signature.parameters.items()} | defaults | given))

    offered = [p for name, p in signature.parameters.items() if name not in without]
    parameters = [p.replace(default=defaults.get(p.name, p.default)) for p in offered]
    wrapper.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return wrapper


def takes(**groups: Callable[..., Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """``groups``: parameter of the command -> builder whose keyword parameters replace it."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True).parameters
        members = {name: inspect.signature(builder, eval_str=True).parameters for name, builder in groups.items()}

        @functools.wraps(command)
        def wrapper(**given: Any) -> None:
            for name, builder in groups.items():
                given[name] = builder(**{each: given.pop(each) for each in members[name]})
            command(**given)

        parameters = [p for p in own.values() if p.name not in groups]
        for name in groups:
            parameters += members[name].values()
        # Typer looks at both; keyword-only, since options have no order.
        keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
        wrapper.__signature__ = inspect.Signature(keyword)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in keyword}
        return wrapper

    return decorate
