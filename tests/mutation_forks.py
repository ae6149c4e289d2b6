"""Runs tests in children of one process that has loaded them, each with another text of one module.

A new process for each mutation would spend most of its time on imports. One that has imported
package and tests forks a child in no time, and the child exchanges the code of the functions that
differ::

    python -m tests.mutation_forks    requests from stdin, one JSON object a line
        load the modules of tests that are new -> fork -> exchange code -> pytest -> its exit code

What else than functions differs was executed when the module was imported: then no test is run.
"""

from __future__ import annotations

import ast
import gc
import inspect
import json
import os
import select
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest

NOT_RUN = -1
"""The answer where pytest was not run, or did not end in time."""


class CannotExchange(Exception):
    """A module that is loaded cannot become what another text of it says."""


@dataclass(frozen=True)
class Exchange:
    """A module, by its name and path, and two texts of it: that of now, and another one."""

    name: str
    path: str
    old: str
    new: str

    def make(self) -> None:
        """Give the functions of the module the code that they have in the other text.

        Nothing is done to a module that is not loaded: it will be imported from its file.

        Raises:
            CannotExchange: More differs than functions, or one of them is not to be found.
        """
        if self.name not in sys.modules:
            return
        old, new = (_compiled(text, self.path) for text in (self.old, self.new))
        live = _functions(self.path)
        for before, after in _differing(old, new):
            functions = live[before.co_qualname, before.co_firstlineno]
            if not functions:
                raise CannotExchange(f"nothing has the code of {before.co_qualname}")
            for function in functions:
                try:
                    function.__code__ = after
                except ValueError as error:  # it has other variables of the function around it
                    raise CannotExchange(str(error)) from error


def _compiled(text: str, path: str) -> CodeType:
    """Return the code of a text, in which no class knows at which line it stands."""
    tree = ast.parse(text, path)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):  # from Python 3.13 on its body has its first line
            node.lineno = 1
            for decorator in node.decorator_list:
                decorator.lineno = 1
    code: CodeType = compile(tree, path, "exec", dont_inherit=True)
    return code


def _functions(path: str) -> Mapping[tuple[str, int], list[FunctionType]]:
    """Return the functions that were made from a file, by their names and first lines."""
    found: dict[tuple[str, int], list[FunctionType]] = defaultdict(list)
    for one in gc.get_objects():
        if type(one) is FunctionType and one.__code__.co_filename == path:
            found[one.__code__.co_qualname, one.__code__.co_firstlineno].append(one)
    return found


def _differing(old: CodeType, new: CodeType) -> Iterator[tuple[CodeType, CodeType]]:
    """Yield the code of functions in a module or class, before and after, where it differs."""
    if _without_lines(old, inner=False) != _without_lines(new, inner=False):
        raise CannotExchange(f"{old.co_qualname} itself differs, and not only functions in it")
    for before, after in zip(_inner(old), _inner(new), strict=True):
        if not before.co_flags & inspect.CO_OPTIMIZED:  # a class
            yield from _differing(before, after)
        elif _without_lines(before) != _without_lines(after):
            yield before, after


def _inner(code: CodeType) -> list[CodeType]:
    return [one for one in code.co_consts if isinstance(one, CodeType)]


def _without_lines(code: CodeType, *, inner: bool = True) -> CodeType:
    """Return code as it is wherever it stands in its file; if asked, with none of what is in it."""
    constants = (
        (_without_lines(one) if inner else "code") if isinstance(one, CodeType) else one
        for one in code.co_consts
    )
    return code.replace(co_consts=tuple(constants), co_firstlineno=1, co_linetable=b"")


class Forks:
    """A process that has tests loaded, and runs them in children.

    Args:
        root: The folder of package and tests.
        environment: Its environment, which makes it import those.
        timeout_s: After so many seconds a child is killed, with all that it has started.
    """

    def __init__(self, root: Path, environment: Mapping[str, str], timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__], cwd=root, env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(
        self, options: Sequence[str], tests: Sequence[str], exchange: Exchange | None = None
    ) -> int:
        """Return the exit code of pytest in a child, or ``NOT_RUN``.

        Args:
            options: Those of pytest.
            tests: The ids of the tests. Their modules are loaded before, if they are new.
            exchange: What to exchange in the child.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {
            "options": options,
            "tests": tests,
            "exchange": None if exchange is None else asdict(exchange),
            "timeout_s": self._timeout_s,
        }
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:  # it has ended, and says nothing any more
            return NOT_RUN
        answer = self._process.stdout.readline()
        return int(answer) if answer else NOT_RUN

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def _serve() -> None:
    """Answer requests until there are no more; what tests print is for nobody."""
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(nowhere, number)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # a child is not left running
    loaded: set[str] = set()
    for line in requests:
        asked = json.loads(line)
        new = {test.partition("::")[0] for test in asked["tests"]} - loaded
        if new:
            pytest.main([*asked["options"], "--collect-only", *sorted(new)])
            loaded |= new
        answers.write(f"{_answer(asked)}\n")
        answers.flush()


def _answer(asked: Mapping[str, Any]) -> int:
    """Return what pytest ends with in a child."""
    child = os.fork()
    if child == 0:
        code = 1 << 7  # none of pytest's
        try:
            os.setpgid(0, 0)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            if asked["exchange"] is not None:
                gc.unfreeze()  # frozen functions are found by nobody
                Exchange(**asked["exchange"]).make()
                gc.freeze()
            code = int(pytest.main([*asked["options"], *asked["tests"]]))
        finally:
            os._exit(code)
    ended = os.pidfd_open(child)
    try:
        select.select([ended], [], [], asked["timeout_s"])
    finally:
        os.close(ended)
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code if code in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) else NOT_RUN


if __name__ == "__main__":
    _serve()
