"""restic and borg as programs that a case drives: one small repository, one source, told outcomes.

Sources are files of random bytes, so nothing is compressed and a part of a repository is a part of
a source. Every command runs in a process group of its own, so that it can be killed or stopped
with all that it started.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
FILE_BYTES = 8 * MIB
WAIT_S = 120
_POLL_S = 0.002
_WIDTH = 400
_CONTROL = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_OF_THIS_RUN = re.compile(r"[0-9a-f]{16,}(-tmp-[0-9]+)?|(?<=PID )[0-9]+")
"""Ids and numbers of processes, which are others the next time."""


@dataclass(frozen=True)
class Done:
    """How a command ended.

    Attributes:
        code: Its exit code.
        said: The line of what it printed that says most: its error, else the last one; at most 400
            characters, without the folder that the case worked in.
        out: Its standard output.
    """

    code: int
    said: str
    out: str


class Peer(ABC):
    """A program, and one repository of it below a folder of its own."""

    name: str

    def __init__(self, place: Path) -> None:
        self.place = place
        self.repo = place / "repo"
        self.source = place / "source"
        self.source.mkdir(parents=True)
        self.env = os.environ | self.variables()

    @abstractmethod
    def variables(self) -> dict[str, str]:
        """What the environment says: passwords, folders."""

    @abstractmethod
    def at(self, command: str, *arguments: str) -> list[str]:
        """The command line of a command on the repository."""

    @abstractmethod
    def init(self) -> Done:
        """Make the repository."""

    @abstractmethod
    def saving(self, tag: str) -> list[str]:
        """The command line that saves the source under a name."""

    @abstractmethod
    def removing(self, tag: str) -> list[str]:
        """The command line that removes what was saved under a name, and deletes no bytes."""

    @abstractmethod
    def restoring(self, tag: str) -> list[str]:
        """The command line that writes what was saved into the current directory."""

    @abstractmethod
    def data(self) -> list[Path]:
        """The files of the repository that hold content, the largest first."""

    @abstractmethod
    def tags(self) -> list[str]:
        """The names under which something is saved, as the program lists them."""

    collecting: tuple[str, ...]
    checking: tuple[str, ...] = ("check",)
    reading: tuple[str, ...]
    """Commands that give back space, compare metadata, and read all data."""
    errors: tuple[str, ...]
    """How lines begin that say what went wrong."""

    def run(
        self, argv: Sequence[str], *, wrap: Sequence[str] = (), cwd: Path | None = None
    ) -> Done:
        """Run a command to its end, or for at most two minutes."""
        try:
            ran = subprocess.run(
                [*wrap, *argv], env=self.env, cwd=cwd or self.place, capture_output=True, text=True,
                check=False, timeout=WAIT_S, stdin=subprocess.DEVNULL, errors="replace",
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return Done(124, f"ended after {WAIT_S} s: it tried again and again", "")
        return Done(ran.returncode, self._said(ran.stderr or ran.stdout), ran.stdout)

    def _said(self, text: str) -> str:
        lines = [line.strip() for line in _CONTROL.sub("", text).splitlines() if line.strip()]
        telling = [line for line in lines if line.startswith(self.errors)] or lines[-1:]
        said = telling[0].replace(f"{self.place}/", "")[:_WIDTH] if telling else ""
        return _OF_THIS_RUN.sub("...", said)

    def start(self, argv: Sequence[str], *, wrap: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        """Start a command in a process group of its own; what it prints goes into a file."""
        with (self.place / "printed").open("wb") as printed:
            return subprocess.Popen(
                [*wrap, *argv], env=self.env, cwd=self.place, stdin=subprocess.DEVNULL,
                stdout=printed, stderr=printed, start_new_session=True,
            )  # fmt: skip

    def ended(self, child: subprocess.Popen[bytes]) -> Done:
        """Wait for a command that was started."""
        code = child.wait(WAIT_S)
        text = (self.place / "printed").read_text(errors="replace")
        return Done(code, self._said(text), text)

    def save(self, tag: str) -> Done:
        return self.run(self.saving(tag))

    def remove(self, tag: str) -> Done:
        return self.run(self.removing(tag))

    def collect(self) -> Done:
        return self.run(self.at(*self.collecting))

    def check(self) -> Done:
        return self.run(self.at(*self.checking))

    def read(self) -> Done:
        return self.run(self.at(*self.reading))

    def fill(self, count: int, name: str = "f") -> None:
        """Make the source ``count`` new files of 8 MiB of random bytes; what was there is gone."""
        shutil.rmtree(self.source)
        self.source.mkdir()
        for number in range(count):
            (self.source / f"{name}{number}").write_bytes(os.urandom(FILE_BYTES))

    def restored(self, tag: str) -> str:
        """Restore, and compare with the source: ``exit code, files right, wrong, missing``."""
        with self.emptied("out") as out:
            done = self.run(self.restoring(tag), cwd=out)
            found = {path.name: path for path in out.rglob("*") if path.is_file()}
            right = wrong = missing = 0
            for path in self.source.iterdir():
                copy = found.get(path.name)
                if copy is None:
                    missing += 1
                elif copy.read_bytes() == path.read_bytes():
                    right += 1
                else:
                    wrong += 1
        return f"exit {done.code}: {right} files right, {wrong} wrong, {missing} missing"

    @contextmanager
    def emptied(self, name: str) -> Iterator[Path]:
        """An empty folder, which is removed afterwards."""
        folder = self.place / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        yield folder
        shutil.rmtree(folder)

    def stored_bytes(self) -> int:
        """Bytes of all files of the repository."""
        return sum(_size(path) for path in self.repo.rglob("*"))

    def until(self, child: subprocess.Popen[bytes], what: Callable[[], bool]) -> bool:
        """Wait until ``what`` is true or the command has ended; return whether it still runs."""
        end = time.monotonic() + WAIT_S
        while child.poll() is None:
            if what():
                return True
            if time.monotonic() > end:
                raise TimeoutError(f"{self.name} did not get so far")
            time.sleep(_POLL_S)
        return False

    def kill(self, child: subprocess.Popen[bytes], number: int = signal.SIGKILL) -> Done:
        """Send a signal to a command and all that it started, and wait for its end."""
        os.killpg(child.pid, number)
        return self.ended(child)

    @contextmanager
    def stopped(self, child: subprocess.Popen[bytes]) -> Iterator[None]:
        """Let a command stand still meanwhile."""
        os.killpg(child.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(child.pid, signal.SIGCONT)


class Restic(Peer):
    name = "restic"
    collecting = ("prune", "--max-unused", "0")
    reading = ("check", "--read-data")
    errors = ("Fatal:", "unable to create lock in backend:", "write ", "sync ")

    def variables(self) -> dict[str, str]:
        return {
            "RESTIC_PASSWORD": "promises",
            "RESTIC_CACHE_DIR": str(self.place / "cache"),
            "RESTIC_REPOSITORY": str(self.repo),
        }

    def at(self, command: str, *arguments: str) -> list[str]:
        return ["restic", "--quiet", command, *arguments]

    def init(self) -> Done:
        return self.run(self.at("init"))

    def saving(self, tag: str) -> list[str]:
        return self.at("backup", "--tag", tag, "source")

    def removing(self, tag: str) -> list[str]:
        return self.at("forget", self._ids()[tag])

    def restoring(self, tag: str) -> list[str]:
        return self.at("restore", self._ids().get(tag, "latest"), "--target", ".")

    def _ids(self) -> dict[str, str]:
        listed = self.run(self.at("snapshots", "--json", "--no-lock"))
        if listed.code:
            return {}
        snapshots = json.loads(listed.out) or []
        return {snapshot["tags"][0]: snapshot["id"] for snapshot in snapshots}

    def tags(self) -> list[str]:
        return sorted(self._ids())

    def data(self) -> list[Path]:
        return _by_size(self.repo / "data")


class Borg(Peer):
    name = "borg"
    collecting = ("compact", "--threshold", "0")
    reading = ("check", "--verify-data")
    errors = ("Failed", "Repository", "OSError", "[Errno", "borg.")

    def variables(self) -> dict[str, str]:
        return {
            "BORG_PASSPHRASE": "promises",
            "BORG_BASE_DIR": str(self.place / "base"),
            "BORG_REPO": str(self.repo),
            "BORG_CHECK_I_KNOW_WHAT_I_AM_DOING": "YES",
        }

    def at(self, command: str, *arguments: str) -> list[str]:
        return ["borg", command, *arguments]

    def init(self) -> Done:
        return self.run(["borg", "init", "--encryption", "repokey-blake2"])

    def saving(self, tag: str) -> list[str]:
        return self.at("create", f"::{tag}", "source")

    def removing(self, tag: str) -> list[str]:
        return self.at("delete", f"::{tag}")

    def restoring(self, tag: str) -> list[str]:
        return self.at("extract", f"::{tag}")

    def tags(self) -> list[str]:
        listed = self.run(self.at("list", "--short", "--bypass-lock"))
        return sorted(listed.out.split()) if not listed.code else []

    def data(self) -> list[Path]:
        return _by_size(self.repo / "data")


PEERS: tuple[type[Peer], ...] = (Restic, Borg)


def flip(path: Path, at: float = 0.5) -> None:
    """Turn a bit of a file over, at a share of its length."""
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)


def versions() -> dict[str, str]:
    """What the programs call themselves."""
    asked = {"restic": ["restic", "version"], "borg": ["borg", "--version"]}
    return {
        name: subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()
        for name, argv in asked.items()
    }


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:  # the command that is at work has just renamed it
        return 0


def _by_size(folder: Path) -> list[Path]:
    return sorted((path for path in folder.rglob("*") if path.is_file()), key=_size, reverse=True)
