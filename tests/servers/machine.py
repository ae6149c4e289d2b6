"""What only some machines can do: the one place that decides what becomes of a test that needs it.

Programs are not such a thing: ``tests/run.sh`` installs them, and a test whose server is missing
fails. A machine that cannot mount is left alone on a developer's desk, where the test is skipped
and says what it needs; with ``CI`` set it fails.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

_FUSE = Path("/dev/fuse")


def need_fuse(what: str) -> None:
    """Mounting a file system of a program: root, and ``/dev/fuse``."""
    if os.getuid() != 0 or not os.access(_FUSE, os.R_OK | os.W_OK):
        _missing(f"{what} needs a Linux machine with /dev/fuse, and root (or CAP_SYS_ADMIN) there")


def need_network_namespace(what: str) -> None:
    """A network of one's own with a cap on its bandwidth: root, ``unshare`` and ``tc``."""
    made = subprocess.run(
        ["unshare", "--net", "sh", "-c", "PATH=$PATH:/sbin:/usr/sbin; tc qdisc show"],
        capture_output=True, check=False, timeout=60,
    )  # fmt: skip
    if made.returncode != 0:
        _missing(f"{what} needs Linux with network namespaces, root and iproute2's tc")


def _missing(why: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(f"{why}; this machine cannot, and with CI set nothing is skipped")
    pytest.skip(why)
