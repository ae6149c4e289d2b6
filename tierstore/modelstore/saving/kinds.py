"""What a file or folder that is to be saved is, by its name and its first bytes.

What would be of no use in a store is told from content here: what the system or an editor left
beside a model, pointers of git-lfs, folders of a download cache. A safetensors file is known by its
header, whatever it is called.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from tierstore.errors import SourceError, UnsafeSource
from tierstore.format.safetensors import MAX_HEADER_BYTES
from tierstore.modelstore.saving.pickles import LOOKED_AT_BYTES, is_pickle
from tierstore.unfinished import nameless_file

BEGIN_BYTES = LOOKED_AT_BYTES
"""Bytes of a file's begin that tell what it is."""

INDEX_SUFFIX = ".safetensors.index.json"
_LENGTH_BYTES = 8
_POINTER = re.compile(rb"version https://(git-lfs\.github|hawser\.github)\.com/spec/v\d+\r?\n")
_POINTER_BYTES = 1024
_BESIDE = re.compile(r"\._.*|\.DS_Store|\.env|\.env\..*|Thumbs\.db|desktop\.ini", re.DOTALL)
_PAGE = re.compile(rb"\s*<(!doctype|html|\?xml)", re.IGNORECASE)


def is_beside(name: str) -> bool:
    """Return whether a file of this name belongs to a system or holds secrets, not to a model."""
    return _BESIDE.fullmatch(name) is not None


def refuse_pointer(where: str, begin: bytes, size: int) -> None:
    """Raise ``UnsafeSource`` for a pointer of git-lfs, which stands for a file that is not there.

    Args:
        where: The file, for the message.
        begin: Its first bytes.
        size: Its size in bytes.
    """
    if size <= _POINTER_BYTES and _POINTER.match(begin):
        raise UnsafeSource(
            f"{where} is a pointer of git-lfs, not the file itself: run 'git lfs pull' in its "
            "repository, or leave it out with exclude (--exclude)"
        )


def may_be_safetensors(begin: bytes, size: int) -> bool:
    """Return whether a file may begin with a header of safetensors, as far as 9 bytes tell."""
    length = int.from_bytes(begin[:_LENGTH_BYTES], "little")
    return (
        begin[_LENGTH_BYTES : _LENGTH_BYTES + 1] == b"{"
        and length <= MAX_HEADER_BYTES
        and _LENGTH_BYTES + length <= size
    )


def looks_like(begin: bytes) -> str:
    """Return what a file that is no safetensors file looks like, or an empty text."""
    if _PAGE.match(begin):
        return "; it looks like a web page, such as one that asks to sign in: download it again"
    if begin[:2] == b"PK" or is_pickle("", begin):
        return "; it looks like a pickle: convert it with safetensors.torch.save_file"
    if begin[:4] == b"GGUF":
        return "; it is a GGUF file: name it .gguf"
    return ""


def library_opens(raw: bytes, size: int) -> bool:
    """Return whether the safetensors library opens a file with this header.

    It gets a file of the same size that is empty but for the header.

    Args:
        raw: The 8-byte length and the header.
        size: Size of the file in bytes.
    """
    from safetensors import SafetensorError, safe_open

    with nameless_file() as (fd, path):
        os.ftruncate(fd, size)
        os.pwrite(fd, raw, 0)
        try:
            with safe_open(path, "np") as opened:
                opened.keys()
        except (SafetensorError, OSError):
            return False
    return True


def refuse_cache(where: Path) -> None:
    """Raise ``SourceError`` for a folder of the Hugging Face cache: which snapshot is meant?"""
    models = [where] if (where / "snapshots").is_dir() else sorted(where.glob("models--*"))
    snapshots = [one for model in models for one in sorted((model / "snapshots").glob("*/"))]
    kept = any(
        os.path.isdir(model / name)  # noqa: PTH112 - True or False, whatever the rights
        for model in models
        for name in ("blobs", "refs")
    )
    if not snapshots or not kept:
        return
    named = _main_of(snapshots[0].parent.parent) or snapshots[0]
    raise SourceError(
        f"{where} is a cache of Hugging Face with {len(snapshots)} "
        f"snapshot{'s' if len(snapshots) > 1 else ''}, not a model: save one, such as {named}"
    )


def _main_of(model: Path) -> Path | None:
    """Return the snapshot that the branch ``main`` of a cached model is at, if it is there."""
    try:
        snapshot = model / "snapshots" / (model / "refs/main").read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return snapshot if snapshot.is_dir() else None


def shards_of(data: bytes) -> dict[str, str] | None:
    """Return the file of each tensor that an index of shards lists; ``None`` if it is none."""
    try:
        found = json.loads(data)["weight_map"]
        pairs = found.items()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if not all(isinstance(file, str) for _, file in pairs):
        return None
    return dict(pairs)


def check_index(where: str, path: str, data: bytes, paths: Iterable[str]) -> None:
    """Raise ``SourceError`` if an index of shards names files that are not there.

    Args:
        where: The index, for the message.
        path: Its path in the version.
        data: Its content.
        paths: Paths of all files of the version.
    """
    shards = shards_of(data)
    if shards is None:
        raise SourceError(
            f"{where} is no index of shards: it is not JSON with a 'weight_map'; download it "
            "again, or leave it out with exclude (--exclude)"
        )
    folder, there = PurePosixPath(path).parent, set(paths)
    missing = sorted({one for one in shards.values() if (folder / one).as_posix() not in there})
    if missing:
        raise SourceError(
            f"{where} names {missing[0][:200]}, which is missing"
            + (f", and {len(missing) - 1} more" if len(missing) > 1 else "")
            + ": complete the download, or leave the index out with exclude (--exclude)"
        )
