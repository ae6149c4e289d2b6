"""A real SFTP server on loopback: OpenSSH's, as this user, with a key of its own."""

from __future__ import annotations

import getpass
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.servers.process import free_port, listening, program, running

_PACKAGE = "openssh-server"
_CONF = """\
ListenAddress 127.0.0.1:{port}
HostKey {folder}/host
AuthorizedKeysFile {folder}/id.pub
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
PidFile none
Subsystem sftp internal-sftp
ForceCommand internal-sftp
MaxSessions 64
MaxStartups 64
"""


@dataclass
class Sftp:
    """A running server.

    Attributes:
        folder: of its keys and log; what it serves is in ``data``.
        port: where it listens.
    """

    folder: Path
    port: int = field(default_factory=free_port)

    @property
    def data(self) -> Path:
        """The directory for blobs."""
        return self.folder / "data"

    @property
    def url(self) -> str:
        """As a store takes it; a name is to be added."""
        return self.url_at(self.port)

    def url_at(self, port: int) -> str:
        """As ``url``, at another port that leads here."""
        return f"sftp://{getpass.getuser()}@127.0.0.1:{port}{self.data}"

    @property
    def options(self) -> Mapping[str, str]:
        """Of fsspec's file system."""
        return {"key_filename": str(self.folder / "id")}


@contextmanager
def sftp_running(folder: Path) -> Iterator[Sftp]:
    """A server of its own, empty."""
    server = Sftp(folder)
    server.data.mkdir()
    if os.getuid() == 0:  # sshd drops its rights in it
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    for name in ("host", "id"):
        subprocess.run(
            [program("ssh-keygen", "openssh-client"), "-q", "-t", "ed25519", "-N", "",
             "-f", folder / name],
            check=True, timeout=60,
        )  # fmt: skip
    (folder / "conf").write_text(_CONF.format(port=server.port, folder=folder))
    command = [program("sshd", _PACKAGE), "-D", "-e", "-f", str(folder / "conf")]
    with running(command, lambda: listening(server.port), log=folder / "log"):
        yield server
