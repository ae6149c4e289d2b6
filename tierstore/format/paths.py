"""Paths of files in a version (SPEC.md section 7), and names that are never content."""

import re
import unicodedata
from collections.abc import Iterable, Sequence

from tierstore.errors import InvalidName
from tierstore.unfinished import is_temporary

EXPORT_LIST = ".tierstore-export.json"
"""The file of an exported directory that says what tierstore wrote there."""
EXPORT_STAGING = ".tierstore-export.tmp"
"""The folder in which an export prepares its files."""

MAX_PATH_BYTES, MAX_PART_BYTES = 4096, 255
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


def is_own(name: str) -> bool:
    """Return whether tierstore gives this name to files of its own, which are never content."""
    return name in {EXPORT_LIST, EXPORT_STAGING} or is_temporary(name)


def check_path(path: str) -> str:
    """Return ``path`` if it is a relative path that stays inside its directory.

    Raises ``InvalidName`` for an absolute path, an empty, ``.`` or ``..`` part, a NUL, a backslash,
    a drive letter, or one that is not in NFC or cannot be written as UTF-8.
    """
    why = None
    try:
        size = len(path.encode())
    except UnicodeEncodeError:
        raise InvalidName(f"file path {path!r} is not valid Unicode; rename the file") from None
    if any(part in {"", ".", ".."} for part in path.split("/")):
        why = "it must be relative and hold no empty, '.' or '..' part"
    elif "\0" in path or "\\" in path:
        why = "it holds a NUL or a backslash"
    elif len(path) > 1 and path[1] == ":":
        why = "it begins with a drive letter"
    elif unicodedata.normalize("NFC", path) != path:
        why = "it is not in Unicode's normal form C"
    elif size > MAX_PATH_BYTES:
        why = f"it is longer than {MAX_PATH_BYTES} bytes"
    return _allowed(path, why)


def check_new_path(path: str) -> str:
    """Return ``path`` if a new version, or an export, may hold a file there.

    Raises ``InvalidName`` for what ``check_path`` refuses, for control characters, for a part above
    255 bytes, which no file system takes, and for names of tierstore's own files. Versions that
    have such a path already stay readable.
    """
    check_path(path)
    parts = path.split("/")
    why = None
    if _CONTROL.search(path):
        why = "it holds a control character"
    elif any(len(part.encode()) > MAX_PART_BYTES for part in parts):
        why = f"a part of it is longer than {MAX_PART_BYTES} bytes"
    elif any(map(is_own, parts)):
        why = "tierstore gives this name to files of its own"
    return _allowed(path, why)


def _allowed(path: str, why: str | None) -> str:
    if why:
        raise InvalidName(f"file path {path[:200]!r} is not allowed: {why}")
    return path


def folders_of(path: str) -> list[str]:
    """Return the folders on the way to a file, the outermost first."""
    return [path[:at] for at, char in enumerate(path) if char == "/"]


def check_tree(paths: Sequence[str]) -> None:
    """Raise ``InvalidName`` if a path is there twice, or is a folder of another one."""
    folders = {folder: path for path in paths for folder in folders_of(path)}
    seen = set[str]()
    for path in paths:
        if path in seen:
            raise InvalidName(f"two files have the path {path[:200]!r}: rename one")
        if path in folders:
            raise InvalidName(
                f"{path[:200]!r} is a file, and a folder of {folders[path][:200]!r}: no directory "
                "holds both; rename one"
            )
        seen.add(path)


def alike(paths: Iterable[str]) -> tuple[str, str] | None:
    """Return two names, of files or folders, that differ only by case; ``None`` if none do.

    Many file systems take such names for one. Letters are compared as in Unicode's canonical
    caseless matching.
    """
    first: dict[str, str] = {}
    for path in paths:
        for name in [*folders_of(path), path]:
            key = unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())
            if first.setdefault(key, name) != name:
                return first[key], name
    return None
