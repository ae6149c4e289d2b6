"""Where the store lies whose processes are killed or paused: on a disk, or on a real server."""

from __future__ import annotations

import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import msgspec
import requests

from tests.servers.ceph import Ceph, ceph_cluster
from tests.servers.hdfs import Hdfs, hdfs_running
from tests.servers.sftp import Sftp, sftp_running
from tests.waiting import wait_until
from tierstore.blobs.base import BlobStore
from tierstore.blobs.fsspec.store import FsspecStore
from tierstore.blobs.local.store import LocalStore
from tierstore.blobs.objects.store import ObjectStore
from tierstore.format.keys import LEASES, SWEEPS
from tierstore.format.sealed import Kind, seal_body, unseal_body
from tierstore.format.tiers import MOVERS, MoverLease
from tierstore.modelstore.home.leases import TTL_S
from tierstore.wiring import open_blobs

_TIERS = ("home", "warm")
_PAST_S = 3 * TTL_S
_ESTABLISHED, _CLOSE_WAIT = "01", "08"


class Place(ABC):
    """Where a store lies: a home and a warm tier.

    No process that is forked from this one may use what was opened here, so whoever forks opens
    blob stores in the children alone.

    Attributes:
        notes: A folder of this machine for caches, and for what a process leaves about itself.
    """

    notes: Path

    @abstractmethod
    def blobs(self, tier: str) -> BlobStore:
        """Open ``home`` or ``warm``."""

    @abstractmethod
    def end_leases(self) -> None:
        """Let so much time pass that every lease ends."""

    @abstractmethod
    def begin(self) -> None:
        """Be empty; called by the process that forks the others."""

    @abstractmethod
    def fill(self, made: Disk) -> None:
        """Hold what another place does."""

    @abstractmethod
    def clear(self) -> None:
        """Remove everything; called by the process that forks the others."""

    @abstractmethod
    def wait_for_sent(self) -> None:
        """Wait until all is done that processes have asked for which are gone."""


class Disk(Place):
    """A folder of this machine."""

    def __init__(self, root: Path) -> None:
        self.root = self.notes = root

    def blobs(self, tier: str) -> BlobStore:
        return LocalStore(self.root / tier, create=True)

    def end_leases(self) -> None:
        _set_back(self.root / "home")

    def begin(self) -> None:
        self.root.mkdir()

    def fill(self, made: Disk) -> None:
        shutil.copytree(made.root, self.root, dirs_exist_ok=True)

    def clear(self) -> None:
        shutil.rmtree(self.root)

    def wait_for_sent(self) -> None:
        pass  # a call of the system is done, or it is not


class _OnServer(Place):
    """A place on a server: a new name each time that it is filled.

    Args:
        folder: Of this machine, for notes.
        ports: Where the server listens.
    """

    def __init__(self, folder: Path, *ports: int) -> None:
        self.notes, self._ports, self._number = folder / "notes", frozenset(ports), 0

    @property
    def name(self) -> str:
        """What the store is called on the server."""
        return f"store-{self._number}"

    def begin(self) -> None:
        self._number += 1
        self.notes.mkdir()

    def fill(self, made: Disk) -> None:
        for tier in _TIERS:
            with made.blobs(tier) as old, self.blobs(tier) as new:
                new.put_many({one.key: old.get(one.key) for one in old.list()})

    def clear(self) -> None:
        shutil.rmtree(self.notes)

    def wait_for_sent(self) -> None:
        # the system has sent what a killed process wrote, and the server goes on with it
        wait_until(lambda: not self._ports & _connected(), "the server has nothing left to do")


class OnRadosgw(_OnServer):
    """A prefix of a bucket of Ceph's radosgw."""

    def __init__(self, folder: Path, ceph: Ceph) -> None:
        super().__init__(folder, ceph.port)
        self._ceph, self._bucket = ceph, ceph.bucket()

    def blobs(self, tier: str) -> BlobStore:
        return ObjectStore(
            f"s3://{self._bucket}/{self.name}/{tier}",
            endpoint=self._ceph.endpoint,
            region="us-east-1",
            login=(self._ceph.access_key, self._ceph.secret_key),
        )

    def end_leases(self) -> None:
        """Take leases away, as whoever tidies up does; nothing sets the time of an object back."""
        with self.blobs("home") as home:
            home.delete([one.key for one in home.list(LEASES)])
            for prefix in (MOVERS, SWEEPS):
                for key in [one.key for one in home.list(prefix)]:
                    held = unseal_body(Kind.MOVER, home.get(key), MoverLease, key)
                    home.put(key, seal_body(Kind.MOVER, msgspec.structs.replace(held, done=True)))

    def clear(self) -> None:
        super().clear()
        client, place = self._ceph.client(), {"Bucket": self._bucket}
        pages = client.get_paginator("list_objects_v2").paginate(Prefix=f"{self.name}/", **place)
        for page in pages:
            keys = [{"Key": one["Key"]} for one in page.get("Contents", ())]
            client.delete_objects(Delete={"Objects": keys, "Quiet": True}, **place)


class OnHdfs(_OnServer):
    """A directory of HDFS, by WebHDFS."""

    def __init__(self, folder: Path, hdfs: Hdfs) -> None:
        super().__init__(folder, hdfs.port, hdfs.datanode_port)
        self._hdfs = hdfs

    def blobs(self, tier: str) -> BlobStore:
        return open_blobs(f"{self._hdfs.url}/{self.name}/{tier}")

    def end_leases(self) -> None:
        with self.blobs("home") as home:
            for prefix in (LEASES, MOVERS, SWEEPS):
                for one in home.list(prefix):
                    past_ms = int((one.mtime - _PAST_S) * 1000)
                    self._ask("PUT", f"home/{one.key}", "SETTIMES", modificationtime=past_ms)

    def clear(self) -> None:
        super().clear()
        self._ask("DELETE", "", "DELETE", recursive="true")

    def _ask(self, method: str, path: str, op: str, **given: str | int) -> None:
        url = f"http://127.0.0.1:{self._hdfs.port}/webhdfs/v1/{self.name}/{path}"
        query = {"op": op, "user.name": "root", **given}
        requests.request(method, url, params=query, timeout=30).raise_for_status()


class OnSftp(_OnServer):
    """A directory of OpenSSH's SFTP server."""

    def __init__(self, folder: Path, sftp: Sftp) -> None:
        super().__init__(folder, sftp.port)
        self._sftp = sftp

    def blobs(self, tier: str) -> BlobStore:
        return FsspecStore(f"{self._sftp.url}/{self.name}/{tier}", self._sftp.options)

    def end_leases(self) -> None:
        _set_back(self._sftp.data / self.name / "home")

    def clear(self) -> None:
        super().clear()
        shutil.rmtree(self._sftp.data / self.name)


def _set_back(home: Path) -> None:
    for prefix in (LEASES, MOVERS, SWEEPS):
        for path in (home / prefix).glob("*"):
            past_s = path.stat().st_mtime - _PAST_S
            os.utime(path, (past_s, past_s))


def _connected() -> set[int]:
    """Return the ports of this machine's servers that anybody is connected to."""
    found = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state, *_ = line.split()
        if state in (_ESTABLISHED, _CLOSE_WAIT):
            found.add(int(local.partition(":")[2], 16))
    return found


@contextmanager
def _on_disk(folder: Path) -> Iterator[Place]:
    yield Disk(folder / "store")


@contextmanager
def _on_radosgw(folder: Path) -> Iterator[Place]:
    (folder / "ceph").mkdir()
    with ceph_cluster(folder / "ceph") as ceph:
        yield OnRadosgw(folder, ceph)


@contextmanager
def _on_hdfs(folder: Path) -> Iterator[Place]:
    (folder / "hdfs").mkdir()
    with hdfs_running(folder / "hdfs") as hdfs:
        yield OnHdfs(folder, hdfs)


@contextmanager
def _on_sftp(folder: Path) -> Iterator[Place]:
    (folder / "sftp").mkdir()
    with sftp_running(folder / "sftp") as sftp:
        yield OnSftp(folder, sftp)


PLACES: Mapping[str, Callable[[Path], AbstractContextManager[Place]]] = {
    "disk": _on_disk,
    "radosgw": _on_radosgw,
    "hdfs": _on_hdfs,
    "sftp": _on_sftp,
}
"""Opens a place, with a server of its own, below an empty folder of this machine."""
