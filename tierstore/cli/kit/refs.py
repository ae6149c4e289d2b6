"""References on the command line: ``MODEL@ALIAS`` in one word, ``MODEL ALIAS`` in two."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from types import NoneType
from typing import Annotated, get_args, get_origin

from tierstore.cli.kit.params import Declared
from tierstore.errors import UsageError

_METAVARS = {
    "REF", "REF|PACK", "OLD", "NEW", "SINCE",
    "MODEL@ALIAS", "MODEL[@ALIAS]", "MODEL[@ALIAS|@+VARIANT]",
}  # fmt: skip
"""How arguments that are references are called in help."""


def references(parameters: Sequence[inspect.Parameter]) -> list[str]:
    """Return the names of those parameters of a command that are references.

    None are where one is a list of words: the command itself has to tell those apart.
    """
    arguments = {
        each.name: (kind, declared.metavar)
        for each in parameters
        for kind, declared in [get_args(each.annotation)]
        if isinstance(declared, Declared) and not declared.is_option
    }
    if any(get_origin(kind) is list for kind, _ in arguments.values()):
        return []
    return [name for name, (_, metavar) in arguments.items() if metavar in _METAVARS]


def as_words(parameter: inspect.Parameter) -> inspect.Parameter:
    """Return a parameter for a reference as one that takes any number of words."""
    kind, declared = get_args(parameter.annotation)
    words = list[str] | None if NoneType in get_args(kind) else list[str]
    return parameter.replace(annotation=Annotated[words, declared])


def joined(words: Sequence[str], count: int) -> list[str]:
    """Return the references that the words of a command line are: ``MODEL@ALIAS`` each.

    A word without ``@`` and the one behind it are one reference where there are more words than
    references; else the word is one by itself.

    Args:
        words: The words in order.
        count: How many references they are.

    Raises:
        UsageError: There are more words than that.
    """
    left, found = list(words), list[str]()
    while left:
        word = left.pop(0)
        more = len(found) + 1 + len(left) > count
        if more and left and "@" not in word and "@" not in left[0]:
            word = f"{word}@{left.pop(0)}"
        found.append(word)
    if len(found) > count:
        raise UsageError(
            f"unexpected extra argument {found[count]!r}: a reference is MODEL@ALIAS in one word, "
            "or MODEL ALIAS in two"
        )
    return found
