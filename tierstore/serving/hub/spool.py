"""Uploaded files that wait for the commit that names them, in a folder on the gateway's disk.

A file is there whole, under the SHA-256 that was computed here from the bytes that arrived, or not
at all. Its name is not believed later on: disks fail, and others may write there. A commit hashes
what it stores, and publishes nothing unless that is what the name says. Files of one repository are
never used for another. A file that no commit names is removed after a day; the store itself holds
nothing of it, so an upload that was given up takes no storage.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import re
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from io import BufferedWriter
from pathlib import Path

from starlette.concurrency import run_in_threadpool

from tierstore import locks
from tierstore.errors import ConfigError, TierstoreError
from tierstore.folders import ALONE
from tierstore.serving.hub.answers import HubError
from tierstore.unfinished import create, discard, sweep_path

_SECRET = "secret"
_KEPT_S = 24 * 3600
_SWEEP_EVERY_S = 3600.0
_COPY_BYTES = 4 << 20
_OID = re.compile(r"[0-9a-f]{64}\Z")


def check_oid(oid: object, size: object) -> tuple[str, int]:
    """Return SHA-256 and size from a request, or raise ``HubError`` 422."""
    if not (isinstance(oid, str) and _OID.match(oid)):
        raise HubError(422, "oid must be a SHA-256 of 64 lower-case hex digits")
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size < 1 << 50:
        raise HubError(422, "size must be a count of bytes")
    return oid, size


class UploadSpool:
    """The uploads of one gateway; its processes may share the folder. Thread-safe.

    Args:
        root: Folder for the uploads to one store; it is made if it is missing.

    Raises:
        ConfigError: It cannot be made, belongs to another user, or others may write to it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        try:
            ALONE.make(root)
        except OSError as error:
            raise ConfigError(
                f"uploads cannot wait in {error.filename or root}: {error.strerror}; choose "
                "another folder with --spool"
            ) from None
        self._key = self._secret()
        self._sweep_at = 0.0
        self.sweep_now_and_then()

    def _secret(self) -> bytes:
        path = self.root / _SECRET
        with _fresh(self.root) as (file, fresh):
            file.write(secrets.token_bytes(32))
            file.flush()
            with contextlib.suppress(FileExistsError):  # the gateway's other processes have one
                os.link(fresh, path)
        return path.read_bytes()

    # Permission to upload travels in the URL: clients send no token with the bytes

    def sign(self, repo: str, oid: str, size: int, part: int, expires: int) -> str:
        """Sign a URL to upload one file, or one part of it (0 for the whole file)."""
        text = "\0".join([repo, oid, str(size), str(part), str(expires)])
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()

    def check(self, repo: str, oid: str, size: int, part: int, expires: int, given: str) -> None:
        """Raise ``HubError`` 403 unless the signature is valid and has not expired."""
        right = self.sign(repo, oid, size, part, expires)
        if not hmac.compare_digest(right.encode(), given.encode()) or expires < time.time():
            raise HubError(403, "this upload was not allowed here, or took too long: begin again")

    # Files

    def _folder(self, repo: str) -> Path:
        return self.root / hashlib.sha256(repo.encode()).hexdigest()[:32]

    def find(self, repo: str, oid: str, size: int | None) -> Path | None:
        """Find a file that arrived whole; ``None`` if it is not here."""
        path = self._folder(repo) / oid
        with contextlib.suppress(FileNotFoundError):
            os.utime(path)  # whoever asks is about to use it
            if size is None or path.stat().st_size == size:
                return path
        return None

    async def receive(
        self, repo: str, oid: str, size: int, part: int, parts: AsyncIterator[bytes]
    ) -> str:
        """Write what arrives to a file of its own, and put it in place once it is complete.

        Returns:
            The SHA-256 of what arrived.

        Raises:
            HubError: 400, it does not match ``oid`` and ``size``; nothing is kept.
        """
        sha = hashlib.sha256()
        count = 0

        def write(file: object, data: bytes) -> None:
            nonlocal count
            file.write(data)  # type: ignore[attr-defined]
            sha.update(data)
            count += len(data)

        name = f"{oid}.{part}" if part else oid
        async with self._arriving(self._folder(repo) / name) as file:
            async for data in parts:
                await run_in_threadpool(write, file, data)
            if part == 0 and (count, sha.hexdigest()) != (size, oid):
                raise HubError(400, f"{count} bytes with the SHA-256 {sha.hexdigest()} arrived")
        return sha.hexdigest()

    async def receive_xet(
        self, session: str, name: str | None, parts: AsyncIterator[bytes]
    ) -> Path:
        """Write a xorb, or a shard (``None``), that arrives in a session, and return its path.

        A xorb is not compared with its name. Whoever may send it can only harm its own uploads.
        """
        path = self.xet_path(session, name or f"{secrets.token_hex(16)}.shard")
        async with self._arriving(path) as file:
            async for data in parts:
                await run_in_threadpool(file.write, data)
        return path

    @asynccontextmanager
    async def _arriving(self, path: Path) -> AsyncIterator[BufferedWriter]:
        """Open a file that is put in place at the end of the block, unless it fails."""
        path.parent.mkdir(exist_ok=True, mode=0o700)
        try:
            with _fresh(path.parent) as (file, partial):
                yield file
                file.flush()
                partial.replace(path)
        except TierstoreError:  # of where the parts come from
            raise
        except OSError as error:
            raise HubError(507, f"the gateway cannot keep the upload: {error.strerror}") from None

    def session(self, repo: str, who: str, number: int) -> str:
        """Return the name of a session of the Xet protocol, which nobody can guess.

        Args:
            repo: Name of the model that is uploaded to.
            who: Name of the caller's token.
            number: Number of the half day.
        """
        text = "\0".join(["xet", repo, who, str(number)])
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()[:32]

    def xet_path(self, session: str, name: str) -> Path:
        """Return the path of a xorb in a session; it need not be there."""
        return self.root / f"xet-{session}" / name

    def join(self, repo: str, oid: str, size: int, count: int) -> None:
        """Join the parts 1 to ``count`` into one file.

        Raises:
            HubError: 400, a part is missing, or they do not match ``oid`` and ``size``.
        """
        folder = self._folder(repo)
        sha, total = hashlib.sha256(), 0
        try:
            with _fresh(folder) as (out, partial):
                for number in range(1, count + 1):
                    with (folder / f"{oid}.{number}").open("rb") as file:
                        while data := file.read(_COPY_BYTES):
                            out.write(data)
                            sha.update(data)
                            total += len(data)
                if (total, sha.hexdigest()) != (size, oid):
                    raise HubError(400, f"the parts have {total} bytes and another SHA-256")
                out.flush()
                partial.replace(folder / oid)
        except FileNotFoundError:
            raise HubError(400, "a part of the upload is missing: begin again") from None
        except OSError as error:
            raise HubError(507, f"the gateway cannot keep the upload: {error.strerror}") from None
        for number in range(1, count + 1):
            with contextlib.suppress(FileNotFoundError):
                (folder / f"{oid}.{number}").unlink()

    def keep(self, repo: str, parts: Iterable[bytes]) -> Path:
        """Write a file that was not uploaded on its own, and return its path."""
        folder = self._folder(repo)
        folder.mkdir(exist_ok=True, mode=0o700)
        sha = hashlib.sha256()
        try:
            with _fresh(folder) as (file, partial):
                for part in parts:
                    file.write(part)
                    sha.update(part)
                file.flush()
                path = folder / sha.hexdigest()
                partial.replace(path)
        except TierstoreError:  # of the store that the parts are read from
            raise
        except OSError as error:
            raise HubError(507, f"the gateway cannot keep the file: {error.strerror}") from None
        return path

    def drop_changed(self, repo: str, oids: Iterable[str]) -> list[str]:
        """Remove files that are not what their name says any more, and return their names."""
        changed = []
        for oid in oids:
            path = self._folder(repo) / oid
            with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != oid:
                    changed.append(oid)
        self.drop(repo, changed)
        return changed

    def drop(self, repo: str, oids: list[str]) -> None:
        """Remove files that a commit has stored."""
        for oid in oids:
            with contextlib.suppress(FileNotFoundError):
                (self._folder(repo) / oid).unlink()

    def sweep(self, older_than_s: float = _KEPT_S) -> None:
        """Remove files that were not used for ``older_than_s`` seconds, and what was left."""
        horizon = time.time() - older_than_s
        sweep_path(self.root)
        for folder in self.root.iterdir():
            if not folder.is_dir():
                continue
            with contextlib.suppress(OSError):
                sweep_path(folder)
                for path in folder.iterdir():
                    if path.stat().st_mtime < horizon:
                        path.unlink(missing_ok=True)
                folder.rmdir()  # only when it is empty now

    def sweep_now_and_then(self) -> None:
        """Sweep, at most once an hour."""
        if time.monotonic() >= self._sweep_at:
            self._sweep_at = time.monotonic() + _SWEEP_EVERY_S
            self.sweep()

    def free(self) -> int:
        """Return the bytes that are free on the disk."""
        return shutil.disk_usage(self.root).free


@contextmanager
def _fresh(folder: Path) -> Iterator[tuple[BufferedWriter, Path]]:
    """Yield a new file of a folder, and its path; it is removed unless it gets another name."""
    at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fd, name = create(at, mode=0o600)
        try:
            with open(fd, "wb", closefd=False) as file:
                yield file, folder / name
        finally:
            discard(fd, name, at)
            locks.close(fd)
    finally:
        os.close(at)
