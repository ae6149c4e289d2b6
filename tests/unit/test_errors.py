"""The exception tree: what a handler may catch, and what the command exits with."""

from __future__ import annotations

import ast
import inspect
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tierstore
from tierstore import errors

EXIT_CODES = {
    "TierstoreError": 1, "UsageError": 2, "InvalidName": 2, "ConfigError": 2, "SourceError": 1,
    "InvalidSafetensors": 1, "UnsafeSource": 1, "SourceChanged": 1, "NotFound": 5, "Conflict": 6,
    "GateClosed": 6, "FileMissing": 5, "TensorMissing": 5,
    "Damaged": 4, "UnsupportedFormat": 1, "OtherHome": 1, "BackendError": 1, "PermissionDenied": 1,
    "NotDurable": 1,
    "OutOfSpace": 7, "Archived": 1, "Unreachable": 8,
}  # fmt: skip
CLASSES: dict[str, Any] = {
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
    error.add_note("a note")
    error.tier = "warm"
    assert str(error) == "what 'happened'"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(error, protocol))
        assert type(again) is type(error)
        assert again.args == ("what 'happened'",)
        assert (str(again), repr(again)) == (str(error), repr(error))
        assert (again.__notes__, again.tier) == (["a note"], "warm")


def test_errors_are_also_what_python_would_raise() -> None:
    assert issubclass(errors.NotFound, LookupError)
    assert issubclass(errors.UsageError, ValueError)
    assert issubclass(errors.InvalidSafetensors, ValueError)
    assert issubclass(errors.FileMissing, FileNotFoundError)
    assert issubclass(errors.TensorMissing, KeyError)
    assert issubclass(errors.PermissionDenied, PermissionError)
    assert issubclass(errors.Unreachable, ConnectionError)


@pytest.mark.parametrize("name", ["FileMissing", "PermissionDenied", "Unreachable"])
def test_ours_say_nothing_of_an_errno(name: str) -> None:
    """Handlers that look for a full disk or a missing file must not find one."""
    error = CLASSES[name]("what happened")
    assert (error.errno, error.strerror, error.filename) == (None, None, None)


def test_a_missing_tensor_is_a_missing_key(tmp_path: Path) -> None:
    with tierstore.init(tmp_path / "store") as store:
        store.save("m", {"w": np.zeros(3, "<f4")})
        model = store.load("m")
        message = "m@1 has no tensor 'v'; 'tierstore tensors m@1' lists its 1"
        with pytest.raises(KeyError) as caught:
            model["v"]
        assert str(caught.value) == message
        for look in (
            lambda: model.tensor("v"), lambda: model.load(["w", "v"]),
            lambda: model.load_into({"v": bytearray(12)}),
            lambda: store.patch("m", {"v": tierstore.Dense(np.zeros(3, "<f4"))}),
        ):  # fmt: skip
            with pytest.raises(errors.TensorMissing, match="m@1 has no tensor 'v'; "):
                look()
        assert model.get("v") is None


def test_a_message_can_be_gone_on_with() -> None:
    """Others are put behind it, as in ``tier warm could not be asked: …; check again``."""
    found = []
    for path in sorted(Path(tierstore.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)):
                continue
            for given in node.exc.args:
                last = given.values[-1] if isinstance(given, ast.JoinedStr) else given
                text = last.value if isinstance(last, ast.Constant) else None
                if isinstance(text, str) and re.search(r"[?!]\Z|[^.]\.\Z", text):
                    found.append(f"{path.name}:{node.lineno}: {text}")
    assert found == ["reading.py:63: Invalid username or password."], "what Hugging Face says"
