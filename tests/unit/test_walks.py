"""The two ways that every byte takes stay short: see ``python -m tests.walks``."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.walks import PACKAGE, Walk, load_walk, save_walk

MAX_FUNCTION_LINES = 50


def test_from_save_to_the_storage(tmp_path: Path) -> None:
    walk = save_walk(tmp_path)
    assert walk.functions[0] == ("modelstore/store.py", "Store.save"), walk
    assert walk.functions[-1] == ("tiers/durable/tiers.py", "DurableTiers.put"), walk
    assert len(walk.functions) <= 9, walk
    assert len(walk.files) <= 4, walk
    assert not _long(walk)


def test_from_a_tensor_to_the_storage(tmp_path: Path) -> None:
    walk = load_walk(tmp_path)
    assert walk.functions[0] == ("modelstore/loading/model.py", "Model.__getitem__"), walk
    assert walk.functions[-1] == ("tiers/durable/tiers.py", "DurableTiers.read"), walk
    assert len(walk.functions) <= 10, walk
    assert len(walk.files) <= 5, walk
    assert not _long(walk)


def _long(walk: Walk) -> list[str]:
    """Functions of a walk above the limit, docstrings not counted."""
    found = []
    for file, name in walk.functions:
        for node in ast.walk(ast.parse((PACKAGE / file).read_text())):
            if isinstance(node, ast.FunctionDef) and node.name == name.rpartition(".")[2]:
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                text = ast.get_docstring(node, clean=False)
                lines -= 0 if text is None else text.count("\n") + 1
                if lines > MAX_FUNCTION_LINES:
                    found.append(f"{file}: {name} has {lines} lines")
    return found
