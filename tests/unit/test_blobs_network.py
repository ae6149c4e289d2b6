"""Which directories are on another machine's file system: read from the mount table."""

from __future__ import annotations

from pathlib import Path

import pytest

from tierstore.blobs.local.store import LocalStore
from tierstore.folders import is_network

TABLE = r"""
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:40 / /mnt/models rw - nfs4 server:/models rw
31 22 0:41 / /mnt/a\040b rw shared:2 master:3 - ceph mon:/ rw
32 30 0:42 / /mnt/models/fast rw - xfs /dev/nvme0n1 rw
33 22 0:43 / /mnt/fuse rw - fuse.sshfs host:/ rw
34 22 0:44 / /mnt/fuse rw - tmpfs tmpfs rw
"""


@pytest.mark.parametrize(
    ("path", "network"),
    [
        ("/srv/store", False),
        ("/mnt/models/store", True),
        ("/mnt/models", True),
        ("/mnt/models2/store", False),
        ("/mnt/a b/store", True),
        ("/mnt/models/fast/store", False),
        ("/mnt/fuse/x", False),  # mounted over
    ],
)
def test_the_mount_a_path_lies_on_decides(tmp_path: Path, path: str, network: bool) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(TABLE.lstrip("\n"))
    assert is_network(path, str(table)) is network


def test_a_system_without_a_mount_table_is_taken_for_local(tmp_path: Path) -> None:
    assert is_network(str(tmp_path), str(tmp_path / "none")) is False


def test_this_directory_is_local_as_the_kernel_says(tmp_path: Path) -> None:
    assert Path("/proc/self/mountinfo").exists()
    assert LocalStore(str(tmp_path)).local
