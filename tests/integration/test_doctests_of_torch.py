"""The examples of docstrings that need torch."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.doctests import check, examples

EXAMPLES = examples(torch=True)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(EXAMPLES[name], tmp_path, monkeypatch)


def test_there_are_some() -> None:
    assert {name.rpartition(".")[2] for name in EXAMPLES} == {"load_file", "to_torch", "torch"}
