"""Text and chats to lengths: with a tokenizer where one is given, by an estimate that says so otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gyges.errors import UserError
from workloads.sources.values import BadValue, json_or_none

_ASSISTANTS = frozenset({"assistant", "gpt", "chatgpt", "bing", "bard", "model", "ai", "bot"})
BYTES_PER_TOKEN = 4


@dataclass
class TextMeasure:
    """Counts tokens in text. ``used`` becomes true at the first count, so that a note is only made where it matters."""

    name: str
    counter: Callable[[str], int]
    note: str | None = None
    used: bool = field(default=False, init=False)

    def count(self, text: str | None) -> int:
        self.used = True
        return self.counter(text) if text else 0


def text_measure(tokenizer: str | None) -> TextMeasure:
    """The measure for ``--tokenizer``: a Hugging Face folder or id; None estimates one token per 4 UTF-8 bytes."""
    if tokenizer is None:
        note = f"lengths of texts are estimates: one token per {BYTES_PER_TOKEN} UTF-8 bytes (no --tokenizer was given)"
        return TextMeasure("estimate", lambda text: -(-len(text.encode("utf-8", "replace")) // BYTES_PER_TOKEN), note)
    from transformers import AutoTokenizer

    try:
        loaded: Any = AutoTokenizer.from_pretrained(tokenizer)
    except (OSError, ValueError, KeyError) as error:
        first = (str(error).strip().splitlines() or [""])[0]
        raise UserError(
            f"cannot load tokenizer {tokenizer!r}: {first} Pass the path of a local folder that holds tokenizer.json, "
            "or leave --tokenizer out to estimate lengths"
        ) from None
    return TextMeasure(tokenizer, lambda text: len(loaded(text, add_special_tokens=False, verbose=False)["input_ids"]))


def split_chat(value: object) -> tuple[str, str]:
    """(prompt, reply) of a chat: the last assistant turn is the reply, all that precedes it the prompt.

    Turns are joined by a newline without a chat template, whose few tokens per turn are therefore not counted. Both
    are empty where there is no assistant turn; an empty one is then refused as a zero length.
    """
    turns = _turns(value)
    for last in range(len(turns) - 1, -1, -1):
        if turns[last][0] in _ASSISTANTS:
            return "\n".join(content for _, content in turns[:last]), turns[last][1]
    return "\n".join(content for _, content in turns), ""


def _turns(value: object) -> list[tuple[str, str]]:
    if isinstance(value, str):
        value = json_or_none(value)
    if isinstance(value, Mapping):  # a sequence of structs, as older `datasets` features return it: columns of lists
        lists = {key: column for key, column in value.items() if isinstance(column, list)}
        value = [dict(zip(lists, cells, strict=False)) for cells in zip(*lists.values(), strict=False)]
    if not isinstance(value, list):
        raise BadValue("not a list of chat turns")
    turns = []
    for turn in value:
        if not isinstance(turn, Mapping):
            raise BadValue(f"chat turn {turn!r} is not an object with role and content")
        role = turn.get("role", turn.get("from"))
        content = turn.get("content", turn.get("value"))
        if not isinstance(role, str):
            raise BadValue("a chat turn has neither role nor from")
        turns.append((role.lower(), _content(content)))
    return turns


def _content(content: object) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):  # parts, as in the OpenAI schema; only text has a length here
        parts = (part.get("text") for part in content if isinstance(part, Mapping))
        return "".join(part for part in parts if isinstance(part, str))
    raise BadValue("a chat turn's content is not text")
