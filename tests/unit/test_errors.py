"""The exception tree: what a handler may catch, and what the command exits with."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest

from tierstore import errors

EXIT_CODES = {
    "TierstoreError": 1, "UsageError": 2, "InvalidName": 2, "ConfigError": 2, "SourceError": 1,
    "InvalidSafetensors": 1, "UnsafeSource": 1, "SourceChanged": 1, "NotFound": 5, "Conflict": 6,
    "GateClosed": 6, "FileMissing": 5,
    "Damaged": 4, "UnsupportedFormat": 1, "BackendError": 1, "PermissionDenied": 1,
    "OutOfSpace": 7, "Archived": 1, "Unreachable": 8,
}  # fmt: skip
CLASSES = {
    name: value
    for name, value in vars(errors).items()
    if inspect.isclass(value) and issubclass(value, Exception)
}


def test_exit_codes() -> None:
    assert {name: one.exit_code for name, one in CLASSES.items()} == EXIT_CODES


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes() -> None:
    drawn: dict[str, str | None] = {}
    stack: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"( +[│ ]*(?:[├└]─ )?)([A-Z]\w+)(?: .*exit (\d))?", line)
        if not match:
            continue
        depth, name = len(match[1]), match[2]
        while stack and stack[-1][0] >= depth:
            stack.pop()
        drawn[name] = stack[-1][1] if stack else None
        stack.append((depth, name))
        if match[3]:
            assert int(match[3]) == EXIT_CODES[name], name
    bases = {name: one.__bases__[0].__name__ for name, one in CLASSES.items()}
    assert drawn == bases | {"TierstoreError": None}


@pytest.mark.parametrize("name", CLASSES)
def test_a_message_is_shown_as_it_was_written_and_survives_a_process(name: str) -> None:
    error = CLASSES[name]("what 'happened'")
    assert str(error) == "what 'happened'"
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)


def test_errors_are_also_what_python_would_raise() -> None:
    assert issubclass(errors.NotFound, LookupError)
    assert issubclass(errors.UsageError, ValueError)
    assert issubclass(errors.InvalidSafetensors, ValueError)
