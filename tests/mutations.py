"""Removes one guard after the other from a copy of the package: a named test must fail each time.

::

    python -m tests.mutations [NAME...] [-j JOBS] [--json]

NAME is a part of a mutation's name; without any, all are run. Prints what became of each, and ends
with 1 unless every one was killed. The checkout itself is not touched.

Tests run in forks of one process that has them loaded (``tests/mutation_forks.py``), which is fast.
What is not killed there for certain a process of its own judges.

A mutation that does not apply any more says so: the guarded code has changed, and
``tests/mutation_list.py`` must be changed with it.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import py_compile
import queue
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, Self
from xml.etree import ElementTree

from tests.mutation_forks import Exchange, Forks
from tests.mutation_list import MUTATIONS, Mutation

ROOT = Path(__file__).parents[1]
_COPIED = ("tierstore", "tests", "pyproject.toml")
_TEST_TIMEOUT_S = 300
_RUN_TIMEOUT_S = 1800
_BROKEN = ("SyntaxError", "ImportError", "ModuleNotFoundError", "NameError", "IndentationError")
"""Errors that say that the mutated code does not run at all, and nothing of a guard."""

Status = Literal["killed", "SURVIVED", "did not apply", "broken"]
Verdict = tuple[Status, str]
"""A status, and why it is not ``killed``."""


@dataclass(frozen=True)
class Outcome:
    """What became of one mutation.

    Attributes:
        name: The mutation's name.
        promise: What its guard holds.
        tests: The ids of the tests that were run, below ``tests/``.
        status: ``killed`` when every named test failed; ``SURVIVED`` when one passed; ``broken``
            when a test could not be run, or failed because the code did not run.
        detail: Why it was not killed.
        seconds: That it took.
    """

    name: str
    promise: str
    tests: tuple[str, ...]
    status: Status
    detail: str
    seconds: float


@dataclass(slots=True)
class Ran:
    """What became of the cases of one test.

    Attributes:
        failures: What its calls failed with; of cases that passed nothing.
        errors: What went wrong before or behind a call, and so says nothing of the test.
    """

    failures: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


class DoesNotApply(Exception):
    """The text that a mutation replaces is not in its file exactly once."""


def mutated(mutation: Mutation, root: Path = ROOT) -> str:
    """Return the text of the mutation's file with the guard removed.

    Raises:
        DoesNotApply: The file is gone, or does not hold the text exactly once.
        SyntaxError: The result is no Python.
    """
    path = root / "tierstore" / mutation.file
    count = path.read_text().count(mutation.old) if path.is_file() else 0
    if count != 1:
        where = (
            f"its text is {count} times in {mutation.file}" if path.is_file() else "no such file"
        )
        raise DoesNotApply(f"mutation {mutation.name} no longer applies: {where}")
    text = path.read_text().replace(mutation.old, mutation.new)
    compile(text, str(path), "exec")
    return text


class Copy:
    """A copy of package and tests in a directory of its own, in which tests are run.

    Args:
        root: The directory.
        source: What is copied from.
        timeout_s: After so many seconds tests that have not ended are taken for not run.
    """

    def __init__(self, root: Path, source: Path = ROOT, timeout_s: float = _RUN_TIMEOUT_S) -> None:
        self.root, self._timeout_s = root, timeout_s
        ignored = shutil.ignore_patterns("__pycache__", ".mypy_cache")
        for name in _COPIED:
            if (source / name).is_dir():
                shutil.copytree(source / name, root / name, ignore=ignored)
            else:
                shutil.copy(source / name, root / name)
        # compiled files that are told from their source by its content: a mutation that is as long
        # as the original, and as young, is seen
        compileall.compile_dir(
            root / "tierstore",
            quiet=2,
            invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH,
        )
        self._environment = os.environ | {
            "PYTHONPATH": str(root),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HYPOTHESIS_PROFILE": "unshrunk",
        }
        asked = [sys.executable, "-c", "import tierstore; print(tierstore.__file__)"]
        found = self._run(asked).stdout.strip()
        if Path(found).parent != root / "tierstore":
            raise RuntimeError(f"tests in {root} would import {found}, and not the copy there")
        self._forks = Forks(root, self._environment, timeout_s)
        self._passed: set[str] = set()
        """Tests that pass in a fork without a mutation."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._forks.close()

    def _run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=self.root, env=self._environment, capture_output=True, text=True,
            check=False, timeout=self._timeout_s,
        )  # fmt: skip

    def run(self, mutation: Mutation) -> Outcome:
        """Apply one mutation, run its tests, and take it back."""
        began = time.monotonic()
        verdict: Verdict
        try:
            text = mutated(mutation, self.root)
        except (DoesNotApply, SyntaxError) as error:
            verdict = "did not apply", str(error)
        else:
            verdict = self._tried(mutation, text)
        seconds = round(time.monotonic() - began, 1)
        return Outcome(mutation.name, mutation.promise, mutation.tests, *verdict, seconds)

    def _tried(self, mutation: Mutation, text: str) -> Verdict:
        """Try a mutation in a fork; in a process of its own if it is not killed there for certain.

        A test that does not pass without the mutation says nothing when it fails.
        """
        if self._pass_in_a_fork(mutation.tests):
            found = self._in_a_fork(mutation.tests, mutation.file, text)
            verdict = _verdict(mutation, found, "")
            if verdict[0] == "killed":
                return verdict
        else:
            found, output = self._in_a_process(mutation.tests)
            if (bad := _first_bad(mutation.tests, found)) is not None:
                return "broken", f"without the mutation {bad} does not pass:\n{output[-2000:]}"
        with self._written(mutation.file, text):
            return _verdict(mutation, *self._in_a_process(mutation.tests))

    def _pass_in_a_fork(self, tests: Iterable[str]) -> bool:
        """Whether tests pass there without a mutation; of those that did it is known."""
        new = [test for test in tests if test not in self._passed]
        if new and _first_bad(new, self._in_a_fork(new)) is None:
            self._passed.update(new)
        return self._passed.issuperset(tests)

    @contextmanager
    def _written(self, file: str, text: str) -> Iterator[None]:
        """Give a module another text, for the block."""
        path = self.root / "tierstore" / file
        before = path.read_text()
        path.write_text(text)
        try:
            yield
        finally:
            path.write_text(before)

    def _in_a_fork(
        self, tests: Sequence[str], file: str | None = None, text: str = ""
    ) -> dict[str, Ran]:
        """Run tests in a child of a process that has them loaded, with another text of a module.

        The file has it as well: modules that are imported late and other programs are of it.
        """
        options, ids = self._arguments(tests)
        if file is None:
            return self._read(self._forks.run(options, ids))
        path = self.root / "tierstore" / file
        name = ".".join(("tierstore", *Path(file).with_suffix("").parts))
        exchange = Exchange(name.removesuffix(".__init__"), str(path), path.read_text(), text)
        with self._written(file, text):
            return self._read(self._forks.run(options, ids, exchange))

    def _in_a_process(self, tests: Sequence[str]) -> tuple[dict[str, Ran], str]:
        """Run tests in a process of their own; what became of them, and what pytest printed."""
        options, ids = self._arguments(tests)
        try:
            done = self._run([sys.executable, "-m", "pytest", *options, *ids])
        except subprocess.TimeoutExpired as error:
            return {}, str(error)
        return self._read(done.returncode), done.stdout + done.stderr

    @property
    def _report(self) -> Path:
        return self.root / "report.xml"

    def _arguments(self, tests: Sequence[str]) -> tuple[list[str], list[str]]:
        """Return the options of pytest, and the ids of tests as it takes them."""
        options = [
            "-q", "--no-header", "--tb=short", "-o", "addopts=", "-p", "no:cacheprovider",
            "-p", "no:rerunfailures", "-p", "no:schemathesis", "-p", "no:anyio",
            f"--timeout={_TEST_TIMEOUT_S}", f"--basetemp={self.root / 'tmp'}",
            f"--junitxml={self._report}",
        ]  # fmt: skip
        if len(tests) == 1:  # one case that fails is enough
            options.append("-x")
        return options, [f"tests/{test}" for test in tests]

    def _read(self, exit_code: int) -> dict[str, Ran]:
        """Return what became of tests by their ids without parameters, as pytest reported it."""
        found: dict[str, Ran] = {}
        if exit_code in (0, 1) and self._report.exists():  # else no tests were run, or not all
            for case in ElementTree.parse(self._report).iter("testcase"):
                path = case.get("classname", "").removeprefix("tests.").replace(".", "/")
                name = _without_parameters(case.get("name", ""))
                ran = found.setdefault(f"{path}.py::{name}", Ran())
                ran.failures += [one.get("message", "") for one in case.iter("failure")]
                ran.errors += [one.get("message", "") for one in case.iter("error")]
            self._report.unlink()  # the next run may end before it writes one
        return found


def _verdict(mutation: Mutation, found: Mapping[str, Ran], output: str) -> Verdict:
    for test in mutation.tests:
        ran = found.get(_without_parameters(test))
        if ran is None or ran.errors:
            return "broken", f"{test} did not get to its call:\n{output[-2000:]}"
        if not ran.failures:
            return "SURVIVED", f"{test} passed"
        if all(message.startswith(_BROKEN) for message in ran.failures):
            return "broken", f"{test}: {ran.failures[0]}"
    return "killed", ""


def _first_bad(tests: Iterable[str], found: Mapping[str, Ran]) -> str | None:
    """Return the first test of which a case did not pass, or none was run."""
    for test in tests:
        ran = found.get(_without_parameters(test))
        if ran is None or ran.failures or ran.errors:
            return test
    return None


def _without_parameters(test: str) -> str:
    return test.partition("[")[0]


def run_all(mutations: list[Mutation], jobs: int) -> list[Outcome]:
    """Run ``mutations``, ``jobs`` of them at a time; their outcomes in the same order."""
    with (
        tempfile.TemporaryDirectory(prefix="tierstore-mutations-") as folder,
        ExitStack() as copies,
    ):
        free: queue.SimpleQueue[Copy] = queue.SimpleQueue()
        for number in range(min(jobs, len(mutations))):
            free.put(copies.enter_context(Copy(Path(folder, str(number)).resolve())))

        def run(mutation: Mutation) -> Outcome:
            copy = free.get()
            try:
                outcome = copy.run(mutation)
            finally:
                free.put(copy)
            print(f"{outcome.status:14} {outcome.seconds:6.1f} s  {outcome.name}", file=sys.stderr)
            return outcome

        with ThreadPoolExecutor(jobs) as pool:
            return list(pool.map(run, mutations))


def _table(outcomes: list[Outcome]) -> str:
    lines = []
    for outcome in outcomes:
        lines.append(f"{outcome.status:14} {outcome.seconds:6.1f} s  {outcome.name}")
        lines.append(f"{'':25}{outcome.promise}")
        lines += [f"{'':25}tests/{test}" for test in outcome.tests]
        lines += [f"{'':25}! {line}" for line in outcome.detail.splitlines()]
    killed = sum(outcome.status == "killed" for outcome in outcomes)
    return "\n".join([*lines, f"{killed} of {len(outcomes)} mutations killed"])


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("name", nargs="*", help="a part of the names of those to run")
    parser.add_argument("-j", "--jobs", type=int, default=1, help="how many at a time (1)")
    parser.add_argument("--json", action="store_true", help="print the outcomes as JSON")
    given = parser.parse_args(arguments)
    chosen = [
        mutation
        for mutation in MUTATIONS
        if not given.name or any(part in mutation.name for part in given.name)
    ]
    if not chosen:
        parser.error(f"no mutation has {' or '.join(map(repr, given.name))} in its name")
    outcomes = run_all(chosen, max(1, given.jobs))
    if given.json:
        print(json.dumps([asdict(outcome) for outcome in outcomes], indent=2))
    else:
        print(_table(outcomes))
    return int(any(outcome.status != "killed" for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
