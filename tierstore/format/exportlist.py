"""The list in an exported directory: which version it holds, and what tierstore wrote there."""

import msgspec

from tierstore.errors import Damaged, InvalidName, UnsupportedFormat
from tierstore.format.paths import check_path, is_own
from tierstore.prepared import prepared

_FORM = 1


class ExportList(msgspec.Struct, frozen=True, kw_only=True):
    """What tierstore wrote into a directory.

    Attributes:
        export: Form of this list.
        version: The version, as ``model@number``.
        digest: Digest of the version.
        whole: Whether the directory holds the version. While the files are exchanged it does not:
            then those of ``files`` that are there are of this version, or all of the one before.
        files: Paths of the files, those of the version before included while it is not whole.
    """

    export: int = _FORM
    version: str
    digest: str
    whole: bool
    files: list[str]


def encode_list(value: ExportList) -> bytes:
    """Return a list as JSON that people can read."""
    return msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n"


def parse_list(data: bytes, name: str) -> ExportList:
    """Read a list.

    Raises:
        UnsupportedFormat: It was written by a newer version.
        Damaged: It is no list of an export, or names a path that leaves its directory.
    """
    try:
        found = msgspec.json.decode(data, type=prepared(ExportList))
        for path in found.files:
            check_path(path)
    except (msgspec.MsgspecError, UnicodeDecodeError, InvalidName) as error:
        raise Damaged(f"{name} is no list of an export: {error}") from None
    if found.export != _FORM:
        raise UnsupportedFormat(f"{name} was written by a newer tierstore; upgrade this one")
    if any(is_own(part) for path in found.files for part in path.split("/")):
        raise Damaged(f"{name} is no list of an export: it names itself")
    return found
