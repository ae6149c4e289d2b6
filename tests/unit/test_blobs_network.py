"""Which directories are on another machine's file system: read from the mount table."""

from __future__ import annotations

from pathlib import Path

import pytest

from tierstore.blobs.local import files
from tierstore.blobs.local.store import LocalStore
from tierstore.errors import NotFound
from tierstore.folders import is_network, sees_late

TABLE = r"""
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:40 / /mnt/models rw - nfs4 server:/models rw
31 22 0:41 / /mnt/a\040b rw shared:2 master:3 - ceph mon:/ rw
32 30 0:42 / /mnt/models/fast rw - xfs /dev/nvme0n1 rw
33 22 0:43 / /mnt/fuse rw - fuse.sshfs host:/ rw
34 22 0:44 / /mnt/fuse rw - tmpfs tmpfs rw
35 22 0:45 / /mnt/late rw - nfs4 server:/late rw,vers=4.2,nocto,hard
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


@pytest.mark.parametrize(("path", "late"), [("/mnt/late/x", True), ("/mnt/models/x", False)])
def test_what_others_write_is_seen_late_where_open_asks_nobody(
    tmp_path: Path, path: str, late: bool
) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(TABLE.lstrip("\n"))
    assert sees_late(path, str(table)) is late
    assert not sees_late(path, str(tmp_path / "none"))


def test_each_look_opens_the_folder_of_a_blob(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client of NFS asks its server then whether a name is there by now that was not."""
    store, opened = LocalStore(tmp_path), list[str]()
    open_dir = files.open_dir
    store.put("refs/m/1", b"x")

    def noted(name: str, parent: int, *, create: bool) -> int:
        opened.append(name)
        return open_dir(name, parent, create=create)

    def get() -> None:
        with pytest.raises(NotFound):
            store.get("refs/m/2")

    def info() -> None:
        with pytest.raises(NotFound):
            store.info("refs/m/2")

    monkeypatch.setattr(files, "open_dir", noted)
    for look in (
        get,
        info,
        lambda: store.get_many(["refs/m/2"]),
        lambda: store.present(["refs/m/2"]),
        lambda: list(store.list("refs/m/")),
        lambda: store.put_if_absent("refs/m/1", b"y"),
    ):
        opened.clear()
        look()
        assert opened == ["refs", "m"], look


def test_a_system_without_a_mount_table_is_taken_for_local(tmp_path: Path) -> None:
    assert is_network(str(tmp_path), str(tmp_path / "none")) is False


def test_this_directory_is_local_as_the_kernel_says(tmp_path: Path) -> None:
    assert Path("/proc/self/mountinfo").exists()
    assert LocalStore(str(tmp_path)).local
