"""Folders of this node: who may write to those that are believed, and what all have in common.

What caches, spools and hot tiers hold is believed when it is read again. Whoever else can write to
one, or made it first, decides what is read from it. So they are made for their user alone, and one
that others can write to is refused, wherever it lies. A group may share a hot tier; its members
trust each other then.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from tierstore.errors import NotFound

_NETWORK = frozenset({
    "9p", "afs", "beegfs", "ceph", "cifs", "glusterfs", "gpfs", "lustre", "nfs", "nfs4", "smb3",
    "virtiofs",
})  # fmt: skip
_OCTAL = re.compile(r"\\([0-7]{3})")  # how mountinfo writes a blank in a path

_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_SHARED = stat.S_ISGID | stat.S_IRWXG
_MOUNTS = "/proc/self/mountinfo"


@dataclass(frozen=True, slots=True)
class Owners:
    """Who may write to a folder.

    Attributes:
        group: Id of the group that shares it; ``None`` for this user alone.
    """

    group: int | None = None

    def make(self, path: Path, above: int = 0) -> None:
        """Make a folder if it is missing, or look at the one that is there.

        Args:
            path: The folder.
            above: Number of folders above it that are of the same kind.

        Raises:
            PermissionError: It belongs to another user, or others may write to it.
            OSError: It cannot be made.
        """
        for folder in [*reversed(path.parents[:above]), path]:
            self._make(folder)

    def _make(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.mkdir(0o700)
        except FileExistsError:
            if not path.is_dir():
                raise
        else:
            if self.group is not None:
                os.chown(path, -1, self.group)
                path.chmod(_SHARED | stat.S_IRWXU)
        self.check(path)

    def check(self, path: Path) -> None:
        """Raise ``PermissionError`` if others than these may write to a folder."""
        why = self.refusal(path)
        if why is not None:
            raise PermissionError(errno.EPERM, why, str(path))

    def refusal(self, path: Path) -> str | None:
        """Return why a folder is refused; ``None`` if it is not."""
        if not hasattr(os, "geteuid"):  # other systems keep users apart in another way
            return None
        found, link, user = path.stat(), path.lstat(), os.geteuid()
        why = None
        if stat.S_ISLNK(link.st_mode) and link.st_uid not in {user, 0}:
            why = f"the link belongs to user {link.st_uid}: choose another folder"
        elif self.group is None and found.st_uid != user:
            why = f"it belongs to user {found.st_uid}: choose another folder, or one below it"
        elif found.st_mode & stat.S_IWOTH:
            why = "everybody may write to it (chmod o-w)"
        elif self.group is None and found.st_mode & _OTHERS:
            why = "others may write to it (chmod go-w)"
        elif self.group is not None and (
            found.st_gid != self.group or found.st_mode & _SHARED != _SHARED
        ):
            why = f"group {self.group} does not share it (chgrp {self.group}, chmod g+rwxs)"
        return why

    def open(self, path: Path | str) -> int:
        """Open a file of the folder for reading and writing; it is made if it is missing."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.give(fd, 0o660)
        return fd

    def give(self, fd: int, mode: int) -> None:
        """Give a file of this user to the group, if one shares the folder."""
        if self.group is not None and os.fstat(fd).st_uid == os.geteuid():
            os.fchmod(fd, mode)


ALONE = Owners()
"""This user alone."""


def absolute(path: str | os.PathLike[str]) -> Path:
    """Return a path from the root on; ``NotFound`` if it begins in a directory that was removed."""
    try:
        return Path(path).absolute()
    except FileNotFoundError:
        raise NotFound(
            f"{os.fspath(path)!r} begins in the current directory, which does not exist any more: "
            "change to another one, or give an absolute path"
        ) from None


@contextlib.contextmanager
def fresh_folder(folder: Path) -> Iterator[list[Path]]:
    """Remove what was made of a directory in the block, if the block failed.

    Only directories are removed: a file in them stays. It yields those of the directory and the
    ones above it that are missing, the innermost first.
    """
    # os.path says of a name that is too long that nothing is there, and Path raises
    missing = [path for path in (folder, *folder.parents) if not os.path.exists(path)]  # noqa: PTH110
    before = _entries(folder)
    try:
        yield missing
    except BaseException:
        if missing:
            remove_empty(missing[-1])
        for path in _entries(folder) - before:
            remove_empty(path)
        raise


def _entries(folder: Path) -> set[Path]:
    return set(folder.iterdir()) if os.path.isdir(folder) else set()  # noqa: PTH112


def remove_empty(folder: Path) -> None:
    """Remove a directory and those below it, unless they hold files."""
    for top, _, _ in os.walk(folder, topdown=False):
        with contextlib.suppress(OSError):
            Path(top).rmdir()


@dataclass(frozen=True, slots=True)
class Mount:
    """A mounted file system, or a part of one.

    Attributes:
        device: Number of the file system, as ``major:minor``.
        root: Path within the file system of what is mounted.
        point: Where it is mounted.
        kind: Type of the file system, such as ``ext4``.
        options: How it is mounted, such as ``rw``.
    """

    device: str
    root: PurePosixPath
    point: PurePosixPath
    kind: str
    options: frozenset[str] = frozenset()


def mounts(table: str | None = None) -> list[Mount]:
    """Return what is mounted, in the order of mounting; nothing where the system does not say.

    Source: proc_pid_mountinfo(5).
    """
    try:
        text = Path(table or _MOUNTS).read_bytes().decode(errors="surrogateescape")
    except OSError:
        return []
    rows = (line.split(" ", 5) for line in text.split("\n") if line)
    found = list[Mount]()
    for _, _, device, root, point, rest in rows:
        kind, *_, options = rest.partition(" - ")[2].split(" ")
        every = frozenset(options.split(","))
        found.append(Mount(device, _unescaped(root), _unescaped(point), kind, every))
    return found


def _unescaped(path: str) -> PurePosixPath:
    return PurePosixPath(_OCTAL.sub(lambda match: chr(int(match[1], 8)), path))


def mount_of(real: str, table: str | None = None) -> Mount | None:
    """Return the innermost mount of a path without links; ``None`` if that is not known."""
    path = PurePosixPath(real)
    above = [mount for mount in mounts(table) if path.is_relative_to(mount.point)]
    # of several at one point the last one hides the others
    return max(reversed(above), key=lambda mount: len(mount.point.parts)) if above else None


def is_network(path: str, table: str | None = None) -> bool:
    """Return whether ``path`` lies on a network file system; ``False`` if that is not known."""
    kind = kind_of(path, table) or ""
    return kind in _NETWORK or kind.startswith("fuse.")


def kind_of(path: str, table: str | None = None) -> str | None:
    """Return the type of the file system of ``path``, such as ``ext4``; ``None`` if unknown."""
    mount = mount_of(os.path.realpath(path), table)
    return mount.kind if mount is not None else None


def sees_late(path: str, table: str | None = None) -> bool:
    """Return whether what other hosts write below ``path`` may be missed here for a while.

    A client of NFS asks its server for a folder's changes whenever the folder is opened, but not
    where it is mounted with ``nocto``.
    """
    mount = mount_of(os.path.realpath(path), table)
    return mount is not None and "nocto" in mount.options


def sync_entries(fd: int) -> None:
    """Make the entries of an open folder durable, where its file system can do that."""
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:  # fsync(2): this kind of file cannot be synced
            raise


def path_of(url: str) -> str | None:
    """Return the path that a path or a file URL names; ``None`` for any other URL."""
    if "://" not in url:
        return url
    return unquote(urlsplit(url).path) if url.startswith("file://") else None
