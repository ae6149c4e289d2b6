"""Reads back what is about to be written: a value that no reader would get is not stored."""

import re

import msgspec

from tierstore.arguments import shown
from tierstore.format.checks import Broken
from tierstore.prepared import prepared

_WORDS = {
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "True or False",
    "null": "None",
    "array": "a list",
    "object": "a dict",
    "bytes": "bytes",
}
_WORD = re.compile("`([^`]*)`")


def read_back(value: msgspec.Struct, *, packed: bool = False) -> bytes:
    """Return the bytes of a value once they were read as its reader will read them.

    Args:
        value: A struct that is stored, or is part of one.
        packed: Whether its form is msgpack; otherwise it is JSON.

    Raises:
        Broken: The reader would refuse it or get another value; says which field is wrong.
    """
    form = msgspec.msgpack if packed else msgspec.json
    kind = type(value)
    try:
        data: bytes = form.encode(value)
        read = form.decode(data, type=prepared(kind))
    except msgspec.ValidationError as error:
        raise Broken(in_words(str(error), value)) from None
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise Broken(f"{_not_encoded(value, packed)}: {error}") from None
    if read != value:
        raise Broken(_differing(value, read))
    return data


def in_words(text: str, value: msgspec.Struct | None = None) -> str:
    """Return an error of msgspec with the field first, and in the words of Python.

    Args:
        text: The error's message.
        value: The struct that it is about; what was given for one of its fields is then shown.
    """
    what, _, path = text.partition(" - at `")
    field = path.removesuffix("`").removeprefix("$").removeprefix(".")
    said = _WORD.sub(lambda match: _type_in_words(match[1]), what)
    if value is not None and field in value.__struct_fields__:
        said = f"{said.partition(', got ')[0]}, not {shown(getattr(value, field))}"
    return f"{field}: {said[:1].lower()}{said[1:]}" if field else said


def _type_in_words(name: str) -> str:
    return " or ".join(_WORDS.get(part, f"`{part}`") for part in name.split(" | "))


def _not_encoded(value: msgspec.Struct, packed: bool) -> str:
    """Return the name of the first field that cannot be encoded."""
    form = msgspec.msgpack if packed else msgspec.json
    for field in value.__struct_fields__:
        try:
            form.encode(getattr(value, field))
        except (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError):
            return field
    return type(value).__name__


def _differing(value: msgspec.Struct, read: msgspec.Struct) -> str:
    for field in value.__struct_fields__:
        mine, stored = getattr(value, field), getattr(read, field)
        if mine != stored:
            return (
                f"{field}: a value of type {type(mine).__name__} would be read as one of type "
                f"{type(stored).__name__}"
            )
    return "it would be read as another value"
