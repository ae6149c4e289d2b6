"""Removes one guard after the other from a copy of the package: a named test must fail each time.

::

    python -m tests.mutations [NAME...] [-j JOBS] [--json]

NAME is a part of a mutation's name; without any, all are run. Prints what became of each, and ends
with 1 unless every one was killed. The checkout itself is not touched.

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
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

from tests.mutation_list import MUTATIONS, Mutation

ROOT = Path(__file__).parents[1]
_COPIED = ("tierstore", "tests", "pyproject.toml")
_TEST_TIMEOUT_S = 300
_RUN_TIMEOUT_S = 1800
_BROKEN = ("SyntaxError", "ImportError", "ModuleNotFoundError", "NameError", "IndentationError")
"""Errors that say that the mutated code does not run at all, and nothing of a guard."""

Status = Literal["killed", "SURVIVED", "did not apply", "broken"]


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
    """A copy of package and tests in a directory of its own, in which tests are run."""

    def __init__(self, root: Path) -> None:
        self.root = root
        ignored = shutil.ignore_patterns("__pycache__", ".mypy_cache")
        for name in _COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, root / name, ignore=ignored)
            else:
                shutil.copy(source, root / name)
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
        }
        asked = [sys.executable, "-c", "import tierstore; print(tierstore.__file__)"]
        found = self._run(asked).stdout.strip()
        if Path(found).parent != root / "tierstore":
            raise RuntimeError(f"tests in {root} would import {found}, and not the copy there")

    def _run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=self.root, env=self._environment, capture_output=True, text=True,
            check=False, timeout=_RUN_TIMEOUT_S,
        )  # fmt: skip

    def tested(self, tests: Iterable[str]) -> tuple[dict[str, Ran], str]:
        """Run tests; what became of each, by its id without parameters, and what pytest printed."""
        report = self.root / "report.xml"
        report.unlink(missing_ok=True)
        done = self._run([
            sys.executable, "-m", "pytest", "-q", "--no-header", "--tb=short",
            "-o", "addopts=", "-p", "no:cacheprovider", "-p", "no:rerunfailures",
            "-p", "no:schemathesis", "-p", "no:anyio",
            f"--timeout={_TEST_TIMEOUT_S}", f"--junitxml={report}",
            *(f"tests/{test}" for test in tests),
        ])  # fmt: skip
        found: dict[str, Ran] = {}
        if done.returncode in (0, 1):  # else there were no tests to run, or it was ended
            for case in ElementTree.parse(report).iter("testcase"):
                path = case.get("classname", "").removeprefix("tests.").replace(".", "/")
                name = _without_parameters(case.get("name", ""))
                ran = found.setdefault(f"{path}.py::{name}", Ran())
                ran.failures += [one.get("message", "") for one in case.iter("failure")]
                ran.errors += [one.get("message", "") for one in case.iter("error")]
        return found, done.stdout + done.stderr

    def run(self, mutation: Mutation) -> Outcome:
        """Apply one mutation, run its tests, and take it back."""
        began = time.monotonic()
        status: Status
        try:
            text = mutated(mutation)
        except (DoesNotApply, SyntaxError) as error:
            status, detail = "did not apply", str(error)
        else:
            path = self.root / "tierstore" / mutation.file
            before = path.read_text()
            path.write_text(text)
            try:
                status, detail = self._verdict(mutation)
            finally:
                path.write_text(before)
        seconds = round(time.monotonic() - began, 1)
        return Outcome(mutation.name, mutation.promise, mutation.tests, status, detail, seconds)

    def _verdict(self, mutation: Mutation) -> tuple[Status, str]:
        found, output = self.tested(mutation.tests)
        for test in mutation.tests:
            ran = found.get(_without_parameters(test))
            if ran is None or ran.errors:
                return "broken", f"{test} did not get to its call:\n{output[-2000:]}"
            if not ran.failures:
                return "SURVIVED", f"{test} passed"
            if all(message.startswith(_BROKEN) for message in ran.failures):
                return "broken", f"{test}: {ran.failures[0]}"
        return "killed", ""


def _without_parameters(test: str) -> str:
    return test.partition("[")[0]


def run_all(mutations: list[Mutation], jobs: int) -> list[Outcome]:
    """Run ``mutations``, ``jobs`` of them at a time; their outcomes in the same order.

    All their tests are run without any mutation first: of one that does not pass then, no failure
    says anything.
    """
    with tempfile.TemporaryDirectory(prefix="tierstore-mutations-") as folder:
        free: queue.SimpleQueue[Copy] = queue.SimpleQueue()
        for number in range(min(jobs, len(mutations))):
            free.put(Copy(Path(folder, str(number)).resolve()))
        first = free.get()
        tests = dict.fromkeys(test for mutation in mutations for test in mutation.tests)
        found, output = first.tested(tests)
        passed = {test for test, ran in found.items() if not ran.failures and not ran.errors}
        free.put(first)

        def run(mutation: Mutation) -> Outcome:
            bad = [test for test in mutation.tests if _without_parameters(test) not in passed]
            if bad:
                why = f"without the mutation {bad[0]} does not pass:\n{output[-2000:]}"
                return Outcome(mutation.name, mutation.promise, mutation.tests, "broken", why, 0.0)
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
