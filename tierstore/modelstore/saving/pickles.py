"""Telling pickles from other files, by their first bytes: loading one can run any code.

Pickles of protocol 2 and up, and torch's archives, are known whatever the file is called; any other
zip archive by a suffix that torch uses. A pickle of protocol 0 or 1 is text or looks like it, and
is not told from a text file.
"""

from __future__ import annotations

LOOKED_AT_BYTES = 256
"""Bytes of a file's begin that are enough."""

_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib")
_ZIP = b"PK\x03\x04"
_ZIP_HEAD_BYTES = 30
_FIRST_OPCODES = frozenset(b"\x85\x86\x87\x88\x89\x8a\x8b\x8c\x8d\x8e\x8f\x95BCGIJKLMNTUVX])}(c")
"""What pickle begins with behind the protocol: a frame, a constant, or something empty."""


def is_pickle(path: str, begin: bytes) -> bool:
    """Return whether a file is a pickle, or an archive that holds one.

    Args:
        path: Path or name of the file.
        begin: Its first 256 bytes, or all of them if it is shorter.
    """
    if begin[:1] == b"\x80" and begin[1:2] in {b"\x02", b"\x03", b"\x04", b"\x05"}:
        if path.lower().endswith(_SUFFIXES) or len(begin) < 3:
            return True
        return begin[2] in _FIRST_OPCODES
    if begin[:4] == _ZIP:
        length = int.from_bytes(begin[26:28], "little")
        first = begin[_ZIP_HEAD_BYTES : _ZIP_HEAD_BYTES + length]
        return path.lower().endswith(_SUFFIXES) or first.endswith(b"data.pkl")
    return path.lower().endswith(_SUFFIXES) and begin[:2] == b"PK"
