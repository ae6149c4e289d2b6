"""Runs scenarios in this process and writes down what they print, without what is never the same.

A placeholder such as ``<time>`` stands for what differs between two runs, two machines or two
releases of a library; all else is exact.
"""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from tests.golden.scenarios import SCENARIOS, WITH_EXTRAS, Scenario
from tierstore.cli.kit import app
from tierstore.modelstore.home.refs import whoami

RECORDED = Path(__file__).parent / "commands"
"""One file for each scenario."""
command_tree = app.command_tree
_ROOT = Path(__file__).parents[2]

_BY_KEY = {
    "bytes_per_second": "<rate>",
    "cache_bytes": "<bytes>",
    "clock_skew_seconds": "<seconds>",
    "disk": "<disk>",
    "heat_bytes": "<bytes>",
    "kernels": "<kernels>",
    "leaves_in_s": "<seconds>",
    "memory_limit_bytes": "<bytes>",
    "platform": "<platform>",
    "python": "<version>",
    "removed_by": "<who>",
    "seconds": "<seconds>",
    "store_id": "<id>",
    "threads": "<count>",
    "tierstore": "<version>",
    "tool": "<tool>",
    "uncollected_seconds": "<seconds>",
    "who": "<who>",
}
"""What differs between runs or machines, by the field that holds it; null stays."""
_EACH_OF = {"libraries": "<version>", "optional_libraries": "<version>", "native_parts": "<built>"}
"""The same for every value of an object, where ``null`` or ``false`` differ, too."""
_WITH_METADATA = {"save", "patch", "fold", "derive", "rebase"}
"""Their ``stored_bytes`` count metadata, which zstd compresses: releases of it differ."""
_TEXTS = (
    (re.compile(rf"\b{re.escape(whoami())}(?![\w.])"), "<who>"),
    (re.compile(r"\b20\d\d-\d\d-\d\d[T ]\d\d:\d\d:\d\d([.,]\d+)?Z?"), "<time>"),  # of this century
    (re.compile(r"\b\d+(\.\d+)? ms and \d+(\.\d+)? ms"), "<time> and <time>"),
    (re.compile(r"\b\d+ MiB/s"), "<rate>"),
    (re.compile(r"\b\d+\.\d+ s(?= after|,)"), "<time>"),
    (re.compile(r"\bin [\d.]+ (seconds|minutes|hours|days)\b"), "in <time>"),
    (re.compile(r"\bdue at \d\d:\d\d\b"), "due at <time>"),
    (re.compile(r"\bheat of [\d.e-]+"), "heat of <heat>"),
    (re.compile(r"(?<=://127\.0\.0\.1:)\d+"), "<port>"),
    (re.compile(r"\bpacks/[0-9a-f]{2}/"), "packs/"),
    (re.compile(r"\b[0-9a-f]{32}\b"), "<id>"),
)
_PACK = re.compile(r"(?<!b3:)\b([0-9a-f]{64}|[0-9a-f]{12})\b")
_DECIMALS = {"saving_month", "cost_once"}
"""Numbers as text; how many zeros they end with depends on heat, which depends on the time."""
_LISTS_OF_PACKS = {"packs", "moves", "bases", "needed_by", "findings"}
"""These follow the ids of packs, which are random."""


class Replay:
    """Runs command lines in one directory.

    Args:
        folder: the working directory.
        compressed: as in ``Scenario``.
    """

    def __init__(self, folder: Path, compressed: Collection[str]) -> None:
        self._folder, self._compressed = folder, frozenset(compressed)
        self._hidden = self._compressed
        self._packs: dict[str, str] = {}
        self._variants: dict[str, str] = {}

    def run(self, line: str) -> dict[str, Any]:
        """What a command line prints with ``--json``, and its exit code."""
        words = [*map(self._real, shlex.split(line)), "--json"]
        code, out, err = _serve(words) if words[:2] == ["serve", "hub"] else _in_process(words)
        self._name_packs()
        done: dict[str, Any] = {"run": line, "exit": code}
        metadata = {"stored_bytes"} if words[0] in _WITH_METADATA else set()
        self._hidden = self._compressed | metadata
        for name, text in (("stdout", out), ("stderr", err)):
            if text:
                done[name] = self._plain(_parsed(text))
        return done

    def _real(self, word: str) -> str:
        for pack, name in self._packs.items():
            word = word.replace(name, pack)
        return word

    def _name_packs(self) -> None:
        """Number the packs in the order in which commands made them."""
        for folder in self._folder.rglob("packs"):
            for path in folder.rglob("*"):
                if path.is_file() and path.name not in self._packs:
                    self._packs[path.name] = f"<pack {len(self._packs) + 1}>"

    def _plain(self, value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return self._object(value, key)
        if isinstance(value, list):
            found = [self._plain(each, key) for each in value]
            return sorted(found, key=_pack_of) if key in _LISTS_OF_PACKS else found
        if isinstance(value, float):
            return round(value, 1) if "heat" in key else float(f"{value:.6g}")
        if isinstance(value, str):
            lines = [self._text(line) for line in value.split("\n")]
            return lines if len(lines) > 1 else lines[0]
        return value

    def _object(self, value: dict[str, Any], key: str) -> dict[str, Any]:
        # the digest of a variant depends on the release that made it
        if {"tool", "ref"} <= value.keys():
            self._variants[value["digest"]] = f"<digest of {value['ref']}>"
        if key in _EACH_OF:
            return dict.fromkeys(value, _EACH_OF[key])
        found = {name: self._field(each, name) for name, each in value.items()}
        if value.get("path") == "tierstore-variant.json":
            found["sha256"] = "<sha256>"
        if self._compressed and "pack" in value:
            found["bytes"] = "<bytes>"
        return found

    def _field(self, value: Any, name: str) -> Any:
        if value is not None and name in _BY_KEY:
            return _BY_KEY[name]
        if name in _DECIMALS:
            return f"{float(value):.6g}"
        if value and name in self._hidden:
            return "<compressed>"
        return self._plain(value, name)

    def _text(self, text: str) -> str:
        text = text.replace(str(self._folder), "<dir>")
        for digest, name in self._variants.items():
            text = text.replace(digest, name)
        for pattern, placeholder in _TEXTS:
            text = pattern.sub(placeholder, text)
        return _PACK.sub(self._pack, text)

    def _pack(self, match: re.Match[str]) -> str:
        named = (name for pack, name in self._packs.items() if pack.startswith(match[0]))
        return next(named, match[0])


def _pack_of(value: Any) -> str:
    if isinstance(value, dict):
        return str(value.get("pack") or value["key"])
    return str(value)


def _parsed(text: str) -> Any:
    """JSON as it is, else a list of lines; threads of an agent print theirs in any order."""
    try:
        return json.loads(text)
    except ValueError:
        return sorted(text.splitlines(), key=lambda line: line.split()[2:])


class _Stderr(io.StringIO):
    """Ends an agent, as a user would, when it has moved packs and follows its reference."""

    def write(self, text: str) -> int:
        before = self._done()
        count = super().write(text)
        if self._done() and not before:
            # to the thread that waits for it, whichever thread writes this
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        return count

    def _done(self) -> bool:
        return all(words in self.getvalue() for words in (" moves done\n", " serves "))


def _in_process(words: list[str]) -> tuple[int, str, str]:
    out, err = io.StringIO(), _Stderr()
    with redirect_stdout(out), redirect_stderr(err):
        code = app.run(words)
    return code, out.getvalue(), err.getvalue()


def _serve(words: list[str]) -> tuple[int, str, str]:
    """Run a server in a process of its own, and end it when it has printed a line."""
    path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    with subprocess.Popen(
        [sys.executable, "-m", "tierstore", *words], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        first = process.stdout.readline()
        process.terminate()
        out, err = process.communicate(timeout=60)
    return process.returncode, first + out, err


@contextmanager
def environment(folder: Path) -> Iterator[None]:
    """``folder`` as the working directory, and settings that follow from nothing else."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("TIERSTORE_")]:
            if name != "TIERSTORE_NATIVE":
                patch.delenv(name)
        patch.setenv("TIERSTORE_CACHE_DIR", str(folder / "cache"))
        patch.setenv("TIERSTORE_STORE", "store")
        patch.setenv("TIERSTORE_CONFIG", "")
        patch.setenv("TIERSTORE_NODE", "a-node")
        patch.chdir(folder)
        yield


def play(name: str, folder: Path) -> str:
    """What each command line of a scenario prints, as the text of its file.

    Args:
        name: of the scenario.
        folder: empty; the directory that it runs in.
    """
    scenario: Scenario = (SCENARIOS | WITH_EXTRAS)[name]
    folder = folder.resolve()
    for path, data in scenario.files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    replay = Replay(folder, scenario.compressed)
    done = []
    with environment(folder):
        for step in scenario.steps:
            if isinstance(step, str):
                done.append(replay.run(step))
            else:
                step(folder)
    return laid_out(done) + "\n"


def laid_out(value: Any, indent: int = 0, used: int = 0) -> str:
    """JSON with a line of its own for each part that is too long to share one."""
    line = json.dumps(value, ensure_ascii=False)
    if not value or not isinstance(value, dict | list) or indent + used + len(line) < 100:
        return line
    if isinstance(value, dict):
        names = [f"{json.dumps(name)}: " for name in value]
        parts = [
            name + laid_out(each, indent + 1, len(name))
            for name, each in zip(names, value.values(), strict=True)
        ]
    else:
        parts = [laid_out(each, indent + 1) for each in value]
    between = "\n" + " " * (indent + 1)
    first, last = ("{", "}") if isinstance(value, dict) else ("[", "]")
    return first + between + f",{between}".join(parts) + "\n" + " " * indent + last


def recorded(name: str) -> str:
    """The text of a scenario's file."""
    return (RECORDED / f"{name}.json").read_text("utf-8")
