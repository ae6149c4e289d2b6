"""Every mutation of ``tests/mutations.py`` still applies, and its tests are there. None is run.

What would become of them is tried on a package of a few lines.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest

from tests.mutation_forks import NOT_RUN, CannotExchange, Exchange, Forks
from tests.mutation_list import MUTATIONS, Mutation
from tests.mutations import ROOT, Copy, DoesNotApply, mutated
from tests.waiting import wait_until


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


GUARDS = '''
"""A package with guards, which are removed."""
import functools

LIMIT = 3

def checked(value):
    if value > LIMIT:
        raise ValueError("more than the limit")
    return value

class Counter:
    start = 0
    def count(self, items):
        return sum(1 for item in items if item is not None)
    @property
    def doubled(self):
        return 2 * self.start

@functools.lru_cache
def kept(value):
    def inner():
        return value + 1
    return inner()

twice = lambda value: 2 * value
'''


def loaded(tmp_path: Path, name: str) -> tuple[ModuleType, Callable[[str, str], None]]:
    """Return a module of these guards, and what exchanges a piece of its text."""
    path = tmp_path / f"{name}.py"
    path.write_text(GUARDS)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def exchange(old: str, new: str) -> None:
        text = GUARDS.replace(old, new)
        assert text != GUARDS
        Exchange(name, str(path), GUARDS, text).make()

    return module, exchange


def test_the_code_of_functions_is_exchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, exchange = loaded(tmp_path, "guards_exchanged")
    exchange("more than", "above")  # it is not loaded as far as Python knows: nothing is done
    with pytest.raises(ValueError, match="more than"):
        module.checked(4)
    monkeypatch.setitem(sys.modules, "guards_exchanged", module)
    counter, checked = module.Counter(), module.checked
    exchange('    if value > LIMIT:\n        raise ValueError("more than the limit")\n', "")
    assert checked(4) == 4
    for old, new, value, before, after in (
        ("item is not None", "True", lambda: counter.count([1, None]), 1, 2),
        ("2 * self", "7 + self", lambda: counter.doubled, 0, 7),
        ("value + 1", "value + 2", lambda: module.kept.__wrapped__(1), 2, 3),
        ("2 * value", "3 * value", lambda: module.twice(1), 2, 3),
    ):
        assert value() == before
        exchange(old, new)
        assert value() == after


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("LIMIT = 3", "LIMIT = 4", "<module> itself"),
        ("start = 0", "start = 1", "Counter itself"),
        ("def kept(value):", "def kept(value, more=1):", "<module> itself"),
        ("    @property\n", "", "Counter itself"),
    ],
)
def test_what_was_executed_is_not_exchanged(
    old: str, new: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, exchange = loaded(tmp_path, "guards_executed")
    monkeypatch.setitem(sys.modules, "guards_executed", module)
    with pytest.raises(CannotExchange, match=why):
        exchange(old, new)


def test_a_function_that_nothing_has_is_not_exchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, exchange = loaded(tmp_path, "guards_gone")
    monkeypatch.setitem(sys.modules, "guards_gone", module)
    del module.twice
    with pytest.raises(CannotExchange, match="nothing has the code of <lambda>"):
        exchange("2 * value", "3 * value")


TESTS = """
import time, pytest
import tierstore

def test_checked():
    with pytest.raises(ValueError):
        tierstore.checked(4)

def test_kept():
    assert tierstore.kept(1)

def test_doubled():
    assert tierstore.Counter().doubled == 1

def test_late():
    from tierstore import late
    assert late.VALUE == 1
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Copy]:
    """A copy of a small package with tests."""
    source, root = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("copy")
    for path, text in {
        "tierstore/__init__.py": GUARDS,
        "tierstore/late.py": "VALUE = 1\n",
        "tests/__init__.py": "",
        "tests/mutation_forks.py": _text("tests/mutation_forks.py"),
        "tests/test_it.py": TESTS,
        "pyproject.toml": "",
    }.items():
        (source / path).parent.mkdir(exist_ok=True)
        (source / path).write_text(text)
    with Copy(root.resolve(), source, timeout_s=60) as copy:
        yield copy


CHECK = "if value > LIMIT:"


@pytest.mark.parametrize(
    ("file", "old", "new", "test", "status", "detail", "processes"),
    [
        ("__init__.py", CHECK, "if False:", "checked", "killed", "", 0),
        ("late.py", "1", "2", "late", "killed", "", 0),  # imported in the child alone
        ("__init__.py", "LIMIT = 3", "LIMIT = 4", "kept", "SURVIVED", "passed", 1),
        ("__init__.py", "2 * self", "self", "doubled", "broken", "without the mutation", 1),
        ("__init__.py", "no such text", "", "kept", "did not apply", "0 times", 0),
        ("__init__.py", CHECK, "if (:", "kept", "did not apply", "invalid syntax", 0),
    ],
)  # fmt: skip
def test_what_becomes_of_a_mutation(
    file: str, old: str, new: str, test: str, status: str, detail: str, processes: int,
    copy: Copy, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """``processes`` of their own are started to judge it, besides the forks."""
    started: list[Sequence[str]] = []
    run = copy._in_a_process

    def noted(tests: Sequence[str]) -> object:
        started.append(tests)
        return run(tests)

    monkeypatch.setattr(copy, "_in_a_process", noted)
    outcome = copy.run(Mutation("one", "all", file, old, new, (f"test_it.py::test_{test}",)))
    assert (outcome.status, len(started)) == (status, processes), outcome.detail
    assert detail in outcome.detail
    assert (copy.root / "tierstore/__init__.py").read_text() == GUARDS
    assert (copy.root / "tierstore/late.py").read_text() == "VALUE = 1\n"


def test_a_child_that_does_not_end_is_killed(copy: Copy) -> None:
    options, tests = copy._arguments(["test_it.py::test_kept"])
    path = copy.root / "tierstore/__init__.py"
    hangs = GUARDS.replace("def inner():", "def inner():\n        while True: pass")
    copy._forks._timeout_s, before = 0.5, copy._forks._timeout_s
    try:
        asked = Exchange("tierstore", str(path), GUARDS, hangs)
        assert copy._forks.run(options, tests, asked) == NOT_RUN
    finally:
        copy._forks._timeout_s = before
    assert copy._forks.run(options, tests) == 0


def test_a_process_that_is_ended_leaves_no_child(copy: Copy) -> None:
    options, tests = copy._arguments(["test_it.py::test_kept"])
    path, noted = copy.root / "tierstore/__init__.py", copy.root / "pid"
    hangs = GUARDS.replace(
        "def inner():",
        f"def inner():\n        import os; open({str(noted)!r}, 'w').write(f'{{os.getpid()}}\\n')\n"
        "        while True: pass",
    )
    forks = Forks(copy.root, copy._environment, timeout_s=60)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(
            forks.run, options, tests, Exchange("tierstore", str(path), GUARDS, hangs)
        )
        wait_until(lambda: noted.exists() and noted.read_text().endswith("\n"), "the child runs")
        forks._process.terminate()
        assert asked.result() == NOT_RUN
    forks.close()
    assert not Path("/proc", noted.read_text().strip()).exists()
