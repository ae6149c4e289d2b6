"""Every example of a docstring runs as it stands, in an empty folder; every public name has one.

Those that need torch run in ``tests/integration/test_doctests_of_torch.py``.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

import tierstore
from tests.doctests import check, examples
from tierstore.admin.admin import Admin, TierAdmin

EXAMPLES = examples(torch=False)
OWNERS = {
    "Store": tierstore.Store, "Model": tierstore.Model, "Tensor": tierstore.Tensor,
    "Admin": Admin, "TierAdmin": TierAdmin,
}  # fmt: skip
"""Classes whose methods have examples of their own."""


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(EXAMPLES[name], tmp_path, monkeypatch)


def public() -> Iterator[tuple[str, object]]:
    for name in sorted({*tierstore.__all__, "open"} - {"errors"}):
        yield name, getattr(tierstore, name)
    for owner, kind in OWNERS.items():
        for name, value in inspect.getmembers(kind, inspect.isfunction):
            if not name.startswith("_") and value.__module__.startswith("tierstore."):
                yield f"{owner}.{name}", value


@pytest.mark.parametrize(("name", "value"), list(public()))
def test_what_is_public_is_explained(name: str, value: object) -> None:
    text = inspect.getdoc(value) or ""
    assert ">>> " in text, f"give {name} an example"
    first = text.partition("\n\n")[0]
    assert first.endswith("."), f"{name} begins with no sentence: {first!r}"
