"""Running the blocks of one page: one Python process, one shell, one directory."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Self

from tests.docs.blocks import Block

_TIMEOUT_S = 240

_PYTHON = """
import json, os, sys, traceback, types

def main():
    commands, answers = os.fdopen(int(sys.argv[1])), os.fdopen(int(sys.argv[2]), "w", 1)
    sys.argv = [""]
    sys.modules["__main__"] = module = types.ModuleType("__main__")
    for line in commands:
        page, first, code, out = json.loads(line)
        for number, file in ((1, out), (2, out + ".err")):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT, 0o644), number)
        error = ""
        try:
            exec(compile("\\n" * (first - 1) + code, page, "exec"), module.__dict__)
        except BaseException:
            error = traceback.format_exc()
        sys.stdout.flush()
        print(json.dumps(error), file=answers)

main()
"""
"""Runs blocks in one namespace; a traceback names the page and its lines."""


class Session:
    """Runs the blocks of a page as a reader would; a context manager that ends what they started.

    Args:
        page: the page.
        folder: an empty directory, where the blocks run.
        root: the checkout whose package is imported.
    """

    def __init__(self, page: Path, folder: Path, root: Path) -> None:
        self._page, self._folder = page, folder
        self._home = folder.with_name(folder.name + "-home")
        self._home.mkdir()
        self._env = _environment(root, self._home)
        self._count = 0
        self._runners: dict[str, Python | Shell] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for runner in self._runners.values():
            runner.end()

    def run(self, block: Block) -> str:
        """Run one block; returns what it printed.

        Raises:
            AssertionError: it failed; what it printed is in the message.
        """
        if block.language not in self._runners:
            kind = Python if block.language == "python" else Shell
            self._runners[block.language] = kind(self._folder, self._env)
        self._count += 1
        out = self._home / f"out-{self._count}"
        problem = self._runners[block.language].run(self._page, block, out)
        printed = out.read_text("utf-8", errors="replace") if out.exists() else ""
        assert not problem, f"{self._page}:{block.line} failed\n{problem}\nit printed\n{printed}"
        return printed


def _environment(root: Path, home: Path) -> dict[str, str]:
    """That of a user whose shell finds this checkout's program, and who has set nothing."""
    own = ("TIERSTORE_", "XDG_", "HF_", "AWS_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    path = os.pathsep.join([str(Path(sys.executable).parent), env["PATH"]])
    return env | {
        "PYTHONPATH": str(root), "HOME": str(home), "PATH": path, "USER": "you", "LOGNAME": "you",
        "COLUMNS": "100", "PYTHONWARNINGS": "ignore", "HF_HUB_DISABLE_TELEMETRY": "1",
    }  # fmt: skip


class _Process:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def end(self) -> None:
        """Kill it and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


class Python(_Process):
    """One interpreter with one namespace, as ``__main__``."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        read, self._commands = os.pipe()
        self._answers, write = os.pipe()
        super().__init__(
            subprocess.Popen(
                [sys.executable, "-c", _PYTHON, str(read), str(write)], cwd=folder, env=env,
                stdin=subprocess.DEVNULL, pass_fds=(read, write), start_new_session=True, text=True,
            )
        )  # fmt: skip
        os.close(read)
        os.close(write)

    def run(self, page: Path, block: Block, out: Path) -> str:
        """Run a block with its output into a file; returns a traceback, or nothing."""
        line = json.dumps([str(page), block.line, block.code, str(out)]) + "\n"
        os.write(self._commands, line.encode())
        with open(self._answers, closefd=False) as answers:
            answer = answers.readline()
        return str(json.loads(answer)) if answer else "the interpreter ended"

    def end(self) -> None:
        """Kill it and all that it started."""
        super().end()
        os.close(self._commands)
        os.close(self._answers)


class Shell(_Process):
    """One bash that stops at the first command that fails."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        super().__init__(
            subprocess.Popen(
                ["bash", "--noprofile", "--norc", "-euo", "pipefail"], cwd=folder, env=env,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, text=True,
            )
        )  # fmt: skip

    def run(self, page: Path, block: Block, out: Path) -> str:
        """Run a block with its output into a file; returns what it said, or nothing."""
        script, errors = out.with_suffix(".sh"), out.with_suffix(".err")
        script.write_text(block.code, "utf-8")
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        source, to, errors_to = (shlex.quote(str(path)) for path in (script, out, errors))
        self._process.stdin.write(f"source {source} >{to} 2>{errors_to} </dev/null\necho done\n")
        self._process.stdin.flush()
        if self._process.stdout.readline() == "done\n":
            return ""
        return f"exit code {self._process.wait(_TIMEOUT_S)}\n{errors.read_text('utf-8')}"
