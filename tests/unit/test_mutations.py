"""Every mutation of ``tests/mutations.py`` still applies, and its tests are there. None is run."""

from __future__ import annotations

import functools

import pytest

from tests.mutation_list import MUTATIONS, Mutation
from tests.mutations import ROOT, DoesNotApply, mutated


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_it_applies_and_its_tests_are_there(mutation: Mutation) -> None:
    assert mutated(mutation) != _text("tierstore/" + mutation.file)
    assert mutation.tests
    for test in mutation.tests:
        path, _, case = test.partition("::")
        function = case.partition("[")[0]
        assert f"def {function}(" in _text("tests/" + path), test


@functools.cache
def _text(path: str) -> str:
    return (ROOT / path).read_text()


def test_names_are_unique() -> None:
    names = [mutation.name for mutation in MUTATIONS]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("old", ["no such text", "return"])
def test_a_text_that_is_not_there_once_does_not_apply(old: str) -> None:
    stale = Mutation("stale", "none", "ids.py", old, "pass", ())
    with pytest.raises(DoesNotApply, match=r"stale no longer applies: its text is \d+ times in"):
        mutated(stale)
