"""The examples of the package's docstrings, each to be run in an empty folder of its own."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import numpy as np
import pytest

import tierstore

ROOT = Path(tierstore.__file__).parent
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
GIVEN = {"np": np, "tierstore": tierstore}
"""What examples do not import, see the package's docstring."""


def examples(*, torch: bool) -> dict[str, doctest.DocTest]:
    """Those that need torch, or all others, by the name of what they are of."""
    finder, found = doctest.DocTestFinder(), {}
    for path in sorted(ROOT.rglob("*.py")):
        text = path.read_text()
        if ">>> " not in text or (not torch and ">>> import torch" in text):
            continue
        parts = ["tierstore", *path.relative_to(ROOT).with_suffix("").parts]
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        for test in finder.find(importlib.import_module(name)):
            if test.examples and _needs_torch(test) == torch:
                found[test.name] = test
    return found


def _needs_torch(test: doctest.DocTest) -> bool:
    return any("torch" in example.source + example.want for example in test.examples)


def check(test: doctest.DocTest, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run one; fails with what it printed instead."""
    monkeypatch.chdir(folder)
    test.globs = {**test.globs, **GIVEN}
    told: list[str] = []
    try:
        doctest.DocTestRunner(optionflags=FLAGS).run(test, out=told.append, clear_globs=False)
    finally:
        for value in test.globs.values():
            if isinstance(value, tierstore.Store):
                value.close()
    assert not told, "".join(told)
