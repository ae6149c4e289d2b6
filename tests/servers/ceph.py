"""A real Ceph on loopback: one monitor, one OSD in memory, radosgw, which speaks S3, and CephFS.

Storage classes are names here: radosgw keeps what is put into GLACIER as ready as all else, so
whatever needs archives that must be restored runs on moto.
"""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.servers.process import (
    free_port,
    listening,
    make_certificate,
    pause_process,
    program,
    running,
)
from tests.servers.s3 import S3Server

ACCESS_KEY = "AKIACEPHCEPHCEPHCEPH"
SECRET_KEY = "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"
CLASSES = ("STANDARD_IA", "GLACIER_IR", "GLACIER")
"""Storage classes beside STANDARD."""

_START_S = 240.0  # a slow machine with other things to do
_buckets = itertools.count()

_CONF = """\
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{mon}]
mon initial members = a
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind ipv6 = false
ms bind port min = {low}
ms bind port max = {high}

# nobody else is here, and without authentication there can be no encryption
auth cluster required = none
auth service required = none
auth client required = none
auth allow insecure global id reclaim = false
ms mon client mode = crc
ms mon cluster mode = crc
ms mon service mode = crc

run dir = {folder}
admin socket =
pid file = {folder}/$name.pid
log file = {folder}/$name.log
mon cluster log file = {folder}/cluster.log
crash dir = {folder}/crash
keyring = {folder}/keyring
mon data = {folder}/mon
osd data = {folder}/osd
mds data = {folder}/mds
rgw data = {folder}/rgw

osd objectstore = memstore
memstore device bytes = {memory}
osd crush chooseleaf type = 0
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
osd class load list = *
osd class default list = *

# no other monitor is waited for: making the pools takes one second instead of ten
paxos propose interval = 0.05
paxos min wait = 0.01
mon allow pool size one = true
mon max pg per osd = 2000
mon data avail crit = 1
mon data avail warn = 1

[client]
rgw frontends = beast endpoint={address}:{s3} tcp_nodelay=1 {tls}
rgw enable usage log = false
rgw enable ops log = false
rgw init timeout = 240
"""


@dataclass
class Ceph(S3Server):
    """A running cluster: where it is, what a client needs, and radosgw to be paused or killed.

    Attributes:
        folder: of its configuration (``ceph.conf``), logs and sockets.
        address: where radosgw listens.
        port: of radosgw.
        tls_port: of radosgw, too.
    """

    access_key = ACCESS_KEY
    secret_key = SECRET_KEY

    folder: Path
    address: str = "127.0.0.1"
    port: int = field(default_factory=free_port)
    tls_port: int = field(default_factory=free_port)

    def __post_init__(self) -> None:
        self._stack = ExitStack()
        self._gateway: subprocess.Popen[bytes] | None = None

    @property
    def conf(self) -> Path:
        """The configuration file, for ``ceph-fuse`` and the like."""
        return self.folder / "ceph.conf"

    @property
    def endpoint(self) -> str:
        """The address of radosgw."""
        return f"http://{self.address}:{self.port}"

    @property
    def tls_endpoint(self) -> str:
        """The address of radosgw for TLS, with a certificate that only ``ca`` vouches for."""
        return f"https://{self.address}:{self.tls_port}"

    @property
    def ca(self) -> Path:
        """The certificate to trust."""
        return self.folder / "ca.pem"

    def bucket(self) -> str:
        """The name of a new bucket."""
        name = f"b{next(_buckets)}-{uuid.uuid4().hex[:12]}"
        self.client().create_bucket(Bucket=name)
        return name

    def start_gateway(self) -> None:
        """Start radosgw, on the port that it had before."""
        command = [program("radosgw", "radosgw"), "-f", "-n", "client.rgw.a", "-c", self.conf]
        self._gateway = self._stack.enter_context(
            running(
                [str(part) for part in command],
                lambda: listening(self.port, self.address),
                log=self.folder / "radosgw.out",
                seconds=_START_S,
            )
        )

    def stop_gateway(self) -> None:
        """Kill radosgw in the middle of whatever it does; what it stored stays."""
        if self._gateway is not None:
            self._gateway.kill()
            self._gateway.wait()
        self._stack.close()

    def pause_gateway(self) -> None:
        """Let it hang: connections are taken, but never answered."""
        assert self._gateway is not None
        pause_process(self._gateway.pid)

    def resume_gateway(self) -> None:
        """Let it go on."""
        assert self._gateway is not None
        self._gateway.send_signal(signal.SIGCONT)

    def run(self, name: str, *arguments: str, package: str = "ceph-common", text: str = "") -> str:
        """Run one of Ceph's tools to its end; what it printed."""
        command = [program(name, package), "-c", str(self.conf), *arguments]
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=_START_S, check=False,
            cwd=self.folder,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}:\n{(done.stdout + done.stderr)[-3000:]}"
        return done.stdout


@contextmanager
def ceph_cluster(folder: Path, *, address: str = "127.0.0.1", gigabytes: int = 4) -> Iterator[Ceph]:
    """A cluster of its own, with radosgw.

    Args:
        folder: an empty directory.
        address: where radosgw listens.
        gigabytes: the most that it holds, in memory.
    """
    ceph = Ceph(folder, address)
    _configure(ceph, gigabytes)
    with ExitStack() as stack:
        _start_monitor(ceph, stack)
        _start_osd(ceph, stack)
        _make_user(ceph)
        stack.callback(ceph.stop_gateway)
        ceph.start_gateway()
        yield ceph


@dataclass
class CephFs:
    """CephFS, mounted, and the process that does it.

    Attributes:
        path: where it is mounted.
        process: ceph-fuse; while it is stopped every access hangs.
    """

    path: Path
    process: subprocess.Popen[bytes]

    def pause(self) -> None:
        """Let it hang, as a mount does whose servers are gone."""
        pause_process(self.process.pid)

    def resume(self) -> None:
        """Let it go on."""
        self.process.send_signal(signal.SIGCONT)


@contextmanager
def cephfs_mounted(ceph: Ceph) -> Iterator[CephFs]:
    """CephFS of the cluster, mounted by ceph-fuse."""
    mount = ceph.folder / "mnt"
    mount.mkdir()
    with ExitStack() as stack:
        _start_mds(ceph, stack)
        command = [program("ceph-fuse", "ceph-fuse"), "-f", "-c", str(ceph.conf), str(mount)]
        process = stack.enter_context(
            running(command, mount.is_mount, log=ceph.folder / "fuse.out", seconds=_START_S)
        )
        stack.callback(process.kill)
        unmount = [program("umount", "mount"), "-l", str(mount)]
        stack.callback(lambda: subprocess.run(unmount, check=True, timeout=60))
        yield CephFs(mount, process)


def _configure(ceph: Ceph, gigabytes: int) -> None:
    low = free_port(101)
    for name in ("mon", "osd", "mds", "rgw", "crash"):
        (ceph.folder / name).mkdir()
    (ceph.folder / "keyring").touch()
    make_certificate(ceph.folder)
    tls = (
        f"ssl_endpoint={ceph.address}:{ceph.tls_port} "
        f"ssl_certificate={ceph.folder / 'cert.pem'} ssl_private_key={ceph.folder / 'key.pem'}"
    )
    ceph.conf.write_text(
        _CONF.format(
            fsid=uuid.uuid4(), mon=free_port(), low=low, high=low + 100, folder=ceph.folder,
            memory=gigabytes << 30, address=ceph.address, s3=ceph.port, tls=tls,
        )
    )  # fmt: skip


def _daemon(ceph: Ceph, stack: ExitStack, kind: str, name: str, ready: Callable[[], bool]) -> None:
    """Run a daemon; it is killed at the end, because one that ends politely first writes all that
    it has in memory to the disk."""
    process = stack.enter_context(
        running(
            [program(f"ceph-{kind}", f"ceph-{kind}"), "-f", "-i", name, "-c", ceph.conf],
            ready,
            log=ceph.folder / f"{kind}.out",
            seconds=_START_S,
        )
    )
    stack.callback(process.kill)


def _start_monitor(ceph: Ceph, stack: ExitStack) -> None:
    conf = ceph.conf.read_text()
    fsid = conf.partition("fsid = ")[2].partition("\n")[0]
    host = conf.partition("mon host = ")[2].partition("\n")[0]
    port = int(host.rpartition(":")[2].rstrip("]"))
    monmap = str(ceph.folder / "monmap")
    ceph.run("monmaptool", "--create", "--clobber", "--fsid", fsid, "--addv", "a", host, monmap)
    ceph.run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, package="ceph-mon")
    _daemon(ceph, stack, "mon", "a", lambda: listening(port))


def _start_osd(ceph: Ceph, stack: ExitStack) -> None:
    identity = str(uuid.uuid4())
    ceph.run("ceph", "osd", "new", identity)
    ceph.run("ceph-osd", "--mkfs", "-i", "0", "--osd-uuid", identity, package="ceph-osd")
    _daemon(ceph, stack, "osd", "0", lambda: "1 up" in ceph.run("ceph", "osd", "stat"))


def _start_mds(ceph: Ceph, stack: ExitStack) -> None:
    for pool in ("fsmeta", "fsdata"):
        ceph.run("ceph", "osd", "pool", "create", pool, "4")
    ceph.run("ceph", "fs", "new", "cephfs", "fsmeta", "fsdata")
    _daemon(ceph, stack, "mds", "m", lambda: "up:active" in ceph.run("ceph", "mds", "stat"))


def _make_user(ceph: Ceph) -> None:
    def admin(*arguments: str, text: str = "") -> Any:
        return json.loads(ceph.run("radosgw-admin", *arguments, package="radosgw", text=text))

    admin("user", "create", "--uid=t", "--display-name=t",
          f"--access-key={ACCESS_KEY}", f"--secret-key={SECRET_KEY}")  # fmt: skip
    group = admin("zonegroup", "get")
    for target in group["placement_targets"]:
        target["storage_classes"] = ["STANDARD", *CLASSES]
    admin("zonegroup", "set", text=json.dumps(group))
    zone = admin("zone", "get")
    for pool in zone["placement_pools"]:
        classes = pool["val"]["storage_classes"]
        classes.update((name, {"data_pool": "default.rgw.cold.data"}) for name in CLASSES)
    admin("zone", "set", text=json.dumps(zone))
