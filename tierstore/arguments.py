"""Checks of what users give: a message names the argument, what was given, and what is meant."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeVar

from tierstore.errors import UsageError

_T = TypeVar("_T")
_SHOWN = 80


def shown(value: object) -> str:
    """Return what was given, for a message: a short value itself, or else its type."""
    if value is None or isinstance(value, bool | int | float | str):
        text = repr(value)
        return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
    return f"a value of type {type(value).__name__}"


def wrong(argument: str, meant: str, given: object) -> UsageError:
    """Return the error that ``argument`` takes what is ``meant``, and not what was given."""
    return UsageError(f"{argument} takes {meant}, not {shown(given)}")


def as_message(given: str | None) -> str:
    """Return the note of a log entry; ``None`` is no note. Raises as ``as_text``."""
    return "" if given is None else as_text("message", given, "text, or None for no message")


def as_text(argument: str, given: object, meant: str) -> str:
    """Return text as it was given.

    Raises ``UsageError`` for what is no text, or cannot be written as UTF-8.
    """
    if not isinstance(given, str):
        raise wrong(argument, meant, given)
    try:
        given.encode()
    except UnicodeEncodeError:
        raise UsageError(
            f"{argument} holds a lone surrogate, which no text in a store can hold; leave it out"
        ) from None
    return str(given)


def as_path(argument: str, given: object, meant: str) -> str:
    """Return the text of a path or of text.

    Raises ``UsageError`` for anything else, and for what no file system takes as a path.
    """
    found = os.fspath(given) if isinstance(given, os.PathLike) else given
    if not isinstance(found, str):
        raise wrong(argument, meant, given)
    try:
        whole = b"\0" not in os.fsencode(found)
    except UnicodeEncodeError:
        whole = False
    if not whole:
        raise UsageError(
            f"{argument} holds a NUL or a lone surrogate, which no path can hold: {shown(found)}"
        )
    return str(found)


def as_list(argument: str, given: Iterable[_T], example: str, hint: str = "") -> list[_T]:
    """Return the items of a list.

    One text is refused, since its letters would be taken for items.

    Args:
        argument: The argument's name.
        given: What the user gave.
        example: A list as it could be. One of texts becomes a list of the text that was given.
        hint: Put behind the message.

    Raises:
        UsageError: It is one text, a path, or no list at all.
    """
    if isinstance(given, str) and example.startswith("['"):
        example = f"[{given[:200]!r}]"
    if isinstance(given, str | bytes | os.PathLike) or not isinstance(given, Iterable):
        raise UsageError(f"{argument} takes a list, such as {example}, not {shown(given)}{hint}")
    return list(given)


def as_texts(argument: str, given: Iterable[str], example: str) -> list[str]:
    """Return the texts of a list; ``UsageError`` for one text alone and for other items."""
    return [
        as_text(f"{argument}[{number}]", item, "text")
        for number, item in enumerate(as_list(argument, given, example))
    ]


def as_table(argument: str, given: object, example: str) -> Mapping[Any, Any]:
    """Return a mapping as it was given; ``UsageError`` for anything else."""
    if not isinstance(given, Mapping):
        raise wrong(argument, f"a dict, such as {example}", given)
    return given


def as_whole(argument: str, given: object, meant: str, least: int | None = None) -> int:
    """Return a whole number; ``UsageError`` for another type, or one below ``least``."""
    if isinstance(given, bool) or not hasattr(given, "__index__"):
        raise wrong(argument, meant, given)
    number = operator.index(given)
    if least is not None and number < least:
        raise wrong(argument, meant, number)
    return number


def as_number(argument: str, given: Any, meant: str, least: float, *, above: bool = False) -> float:
    """Return a finite number of at least ``least``, or above it; ``UsageError`` for any other."""
    if isinstance(given, bool | str | bytes) or not hasattr(given, "__float__"):
        raise wrong(argument, meant, given)
    number = float(given)
    if not math.isfinite(number) or number < least or (above and number == least):
        raise wrong(argument, meant, number)
    return number


def as_function(argument: str, given: _T, meant: str) -> _T:
    """Return what can be called; ``UsageError`` for anything else."""
    if not callable(given):
        raise wrong(argument, meant, given)
    return given


def check_choice(argument: str, given: object, choices: Collection[str]) -> None:
    """Raise ``UsageError`` unless one of ``choices`` was given."""
    if not isinstance(given, str) or given not in choices:
        raise wrong(argument, f"one of {', '.join(map(repr, choices))}", given)
