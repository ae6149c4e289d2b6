"""Raises an error in a place of the package that guards calls of the operating system.

A place is named ``module:function#n``, module below ``tierstore``: the n-th ``try`` with a handler
for ``OSError`` (or a base or a subclass that ours have), or ``suppress`` of it, in a function. The
function is compiled again with a call at the begin of that block; everything else of it is as it
was, handlers included.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, NamedTuple

import pytest

import tierstore
from tierstore.errors import PermissionDenied, Unreachable

ROOT = Path(tierstore.__file__).parent
OURS = (PermissionDenied, Unreachable)
GUARDED = {
    "OSError", "ConnectionError", "PermissionError", "IOError", "EnvironmentError",
    "_SILENT", "_OBSTORE_ERRORS",
}  # fmt: skip
"""Names of what catches ours, those of tuples included."""
EXTRAS = ("blobs.redis.", "blobs.memcached.", "serving.hub.", "serving.metrics:")
"""Modules that need optional libraries."""
_DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def places() -> dict[str, Path]:
    """Every guarded place of the package, and its file."""
    return _found()[0]


def checks_of_types() -> set[str]:
    """``module:function`` of every ``isinstance`` that is true of ours as they are OSErrors."""
    return _found()[1]


@functools.cache
def _found() -> tuple[dict[str, Path], set[str]]:
    places: dict[str, Path] = {}
    checks: set[str] = set()
    for path in sorted(ROOT.rglob("*.py")):
        nodes = _nodes(ast.parse(path.read_text()))
        places |= {name: path for name, _ in _blocks(nodes, _module(path))}
        for function, node in nodes:
            named = isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance"
            if named and _names(node.args[1]) & GUARDED:
                checks.add(f"{_module(path)}:{function}")
    return places, checks


def _module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def _names(node: ast.AST) -> set[str]:
    return {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}


def _nodes(tree: ast.AST) -> list[tuple[str, Any]]:
    """Every node, and the outermost function that it is in."""
    found: list[tuple[str, Any]] = []

    def add(tree: ast.AST, function: str, inside: bool) -> None:
        for node in ast.iter_child_nodes(tree):
            name, within = function, inside
            if isinstance(node, _DEFINITIONS) and not inside:
                name = f"{function}.{node.name}".lstrip(".")
                within = not isinstance(node, ast.ClassDef)
            found.append((name, node))
            add(node, name, within)

    add(tree, "", False)
    return found


def _blocks(nodes: list[tuple[str, Any]], module: str) -> Iterator[tuple[str, Any]]:
    counts: dict[str, int] = {}
    for function, node in nodes:
        guarded = isinstance(node, ast.Try) and any(
            handler.type is not None and _names(handler.type) & GUARDED for handler in node.handlers
        )
        suppressed = isinstance(node, ast.With) and any(
            "suppress(" in ast.unparse(item.context_expr) and _names(item.context_expr) & GUARDED
            for item in node.items
        )
        if guarded or suppressed:
            counts[function] = counts.get(function, 0) + 1
            yield f"{module}:{function}#{counts[function]}", node


@contextmanager
def raising(place: str, error: Exception, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[None]]:
    """Raise ``error`` at the begin of a guarded block; gives a list with an item for each time."""
    name, _, rest = place.partition(":")
    function = rest.partition("#")[0]
    path = ROOT / (name.replace(".", "/") + ".py")
    tree = ast.parse(path.read_text())
    (node,) = (node for found, node in _blocks(_nodes(tree), name) if found == place)
    call = ast.parse("_raise_ours()").body[0]
    node.body.insert(0, ast.copy_location(call, node.body[0]))
    code = _code(compile(ast.fix_missing_locations(tree), str(path), "exec"), function)
    module = importlib.import_module(f"tierstore.{name}")
    raised: list[None] = []

    def raise_ours() -> None:
        raised.append(None)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(module, "_raise_ours", raise_ours, raising=False)
        patch.setattr(_function(module, function), "__code__", code)
        yield raised


def _code(code: CodeType, name: str) -> CodeType:
    for found in code.co_consts:
        if isinstance(found, CodeType):
            if found.co_qualname == name:
                return found
            if name.startswith(f"{found.co_qualname}."):
                return _code(found, name)
    raise LookupError(name)


def _function(owner: Any, name: str) -> FunctionType:
    for part in name.split("."):
        owner = inspect.getattr_static(owner, part)
    for attribute in ("__func__", "fget", "func"):  # static methods, properties, cached ones
        owner = getattr(owner, attribute, owner)
    found = inspect.unwrap(owner)
    assert isinstance(found, FunctionType)
    return found


class Case(NamedTuple):
    """How a place is reached, and what is to become of an error of ours there.

    Attributes:
        run: reaches the place; gets an empty folder.
        outcome: ``PASSES``: the error itself is raised. An exception's class: that is raised, as
            for any error of the operating system. Anything else: what ``run`` returns, as the place
            does without what it asked for. A dictionary has one of these for each of ours.
    """

    run: Callable[[Path], Any]
    outcome: object


PASSES = "the error itself is raised"


def check(
    place: str, case: Case, kind: type[Exception], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Raise an error of ours in a place, and see what becomes of it."""
    error = kind("what 'happened'")
    outcome = case.outcome[kind] if isinstance(case.outcome, dict) else case.outcome
    with raising(place, error, monkeypatch) as raised:
        if outcome is PASSES or isinstance(outcome, type):
            with pytest.raises(Exception) as caught:  # noqa: PT011
                case.run(folder)
            assert caught.value is error if outcome is PASSES else type(caught.value) is outcome
        else:
            assert case.run(folder) == outcome
    assert raised, f"{place} was not reached"
