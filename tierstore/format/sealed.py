"""Sealed objects: the envelope of every stored object that is no pack (SPEC.md section 5)."""

import struct
from enum import IntEnum
from typing import Annotated, TypeVar

import msgspec
import zstandard

from tierstore.errors import UsageError
from tierstore.format.checks import Broken, Newer, check_requires, damaged, unsupported, xxh3
from tierstore.format.readback import read_back
from tierstore.ids import Buffer
from tierstore.prepared import prepared

HEADER_BYTES = 56

_MAGIC = b"TSOB"
_HEADER = struct.Struct("<4s4BI12s4Q")
_NO_NONCE = bytes(12)
_PLAIN, _ZSTD = 0, 1
_SLACK_BYTES = 64 << 10
_ZSTD_FROM_BYTES = 512  # compressing a smaller body is not worth it


class Kind(IntEnum):
    """The kinds of sealed objects, by the number that is stored."""

    MANIFEST = 1
    LAYOUT = 2
    SEGMENT = 3
    FOLD = 4
    MOVE = 5
    REF = 6
    LEASE = 7
    HINT = 8
    CONDEMNED = 9
    TIERS = 10
    PIN = 11
    HEAT = 12
    MOVER = 13
    REPORT = 14
    QUARANTINE = 15
    CONDEMNED_LIST = 16
    CONDEMNED_SEGMENT = 17
    RETENTION = 18
    COLLECTED = 19
    GROWTH = 20
    PURGE = 21
    PURGED = 22
    ACKNOWLEDGEMENT = 23
    NODE = 24
    PURGE_PART = 25

    @property
    def title(self) -> str:
        """What messages call an object of this kind."""
        return _TITLES.get(self, self.name.lower())


_TITLES = {
    Kind.SEGMENT: "segment of the index",
    Kind.REF: "entry of a ref log",
    Kind.CONDEMNED: "early list of condemned packs",
    Kind.TIERS: "list of tiers",
    Kind.MOVER: "mover's lease",
    Kind.QUARANTINE: "quarantine mark",
    Kind.CONDEMNED_LIST: "list of condemned packs",
    Kind.CONDEMNED_SEGMENT: "segment of a list of condemned packs",
    Kind.COLLECTED: "note of the last collection",
    Kind.PURGE: "purge order",
    Kind.PURGED: "purged content",
    Kind.ACKNOWLEDGEMENT: "acknowledgement of a purge",
    Kind.NODE: "note of a node",
    Kind.PURGE_PART: "part of what a purge found",
}
_LIMITS = {
    Kind.MANIFEST: 512 << 20, Kind.LAYOUT: 512 << 20, Kind.SEGMENT: 512 << 20,
    Kind.CONDEMNED: 64 << 20, Kind.HEAT: 64 << 20, Kind.QUARANTINE: 64 << 20,
    Kind.CONDEMNED_LIST: 64 << 20, Kind.CONDEMNED_SEGMENT: 64 << 20,
    Kind.COLLECTED: 64 << 20, Kind.PURGE: 64 << 20, Kind.PURGED: 512 << 20,
    Kind.PURGE_PART: 512 << 20,
}  # fmt: skip
_OTHER_LIMIT = 1 << 20
_MSGPACK = frozenset(_LIMITS) - {Kind.CONDEMNED, Kind.PURGE}


def max_plain_bytes(kind: Kind) -> int:
    """Return the limit on the plain bytes of an object of this kind."""
    return _LIMITS.get(kind, _OTHER_LIMIT)


def seal(kind: Kind, plain: bytes) -> bytes:
    """Put a plain body into its envelope, compressed where that is smaller.

    Raises ``UsageError`` for a body above the limit of its kind.
    """
    if len(plain) > max_plain_bytes(kind):
        hint = "split the model into several" if kind in _MSGPACK else "shorten its texts and lists"
        raise UsageError(
            f"a {kind.title} of {len(plain)} bytes is above the format's limit of "
            f"{max_plain_bytes(kind)}; {hint}"
        )
    encoding, body = _PLAIN, plain
    if kind in _MSGPACK and len(plain) >= _ZSTD_FROM_BYTES:
        packed = zstandard.ZstdCompressor(level=3).compress(plain)
        if len(packed) < len(plain):
            encoding, body = _ZSTD, packed
    fields = (_MAGIC, kind, 1, encoding, 0, 0, _NO_NONCE, len(plain), len(body), xxh3(body))
    start = _HEADER.pack(*fields, 0)[:-8]
    return start + struct.pack("<Q", xxh3(start)) + body


def unseal(kind: Kind, data: Buffer, name: str) -> bytes:
    """Return the plain body of a sealed object.

    Raises:
        Damaged: It is cut short, too long, or breaks a checksum, a limit or the format.
        UnsupportedFormat: It was written by a newer version.
    """
    view = memoryview(data)
    if len(view) < HEADER_BYTES:
        damaged(name, f"{len(view)} bytes are too few")
    fields = _HEADER.unpack_from(view)
    magic, found, version, encoding, flags, key_id, nonce = fields[:7]
    plain_bytes, body_bytes, body_sum, head_sum = fields[7:]
    if magic != _MAGIC:
        damaged(name, "it does not begin with a sealed object")
    if version != 1:
        unsupported(name, f"object version {version}")
    if head_sum != xxh3(view[: HEADER_BYTES - 8]):
        damaged(name, "the checksum of its header does not match")
    if flags or key_id:
        unsupported(name, f"flags {flags:#x} and key {key_id}")
    if found != kind:
        damaged(name, f"it holds kind {found} instead of {kind.value}")
    in_range = plain_bytes <= max_plain_bytes(kind) and body_bytes <= plain_bytes + _SLACK_BYTES
    if nonce != _NO_NONCE or not in_range:
        damaged(name, f"lengths {plain_bytes} and {body_bytes} are out of range")
    body = view[HEADER_BYTES:]
    if len(body) != body_bytes:
        damaged(name, f"it has {len(body)} bytes of body instead of {body_bytes}")
    if xxh3(body) != body_sum:
        damaged(name, "the checksum of its body does not match")
    if encoding == _PLAIN:
        plain = bytes(body)
    elif encoding == _ZSTD:
        plain = _decompress(body, plain_bytes, name)
    else:
        unsupported(name, f"body encoding {encoding}")
    if len(plain) != plain_bytes:
        damaged(name, f"its body has {len(plain)} plain bytes instead of {plain_bytes}")
    return plain


def mended(kind: Kind, data: Buffer) -> bytes | None:
    """Return a damaged object as it was, if its body is whole and alone its envelope is not.

    What an envelope says follows from the body, but for its two checksums: one of both, or the
    header without its own, must be as it was stored. So what is returned is what was written.
    """
    view = memoryview(data)
    if len(view) < HEADER_BYTES:
        return None
    *fields, head_sum = _HEADER.unpack_from(view)
    if head_sum == xxh3(view[: HEADER_BYTES - 8]):  # something may lie behind it
        body = view[HEADER_BYTES : HEADER_BYTES + fields[-2]]
        whole = len(body) == fields[-2] and xxh3(body) == fields[-1]
        return bytes(view[: HEADER_BYTES + len(body)]) if whole else None
    body = view[HEADER_BYTES:]
    for encoding in (_PLAIN, _ZSTD):
        try:
            plain = len(body) if encoding == _PLAIN else zstandard.frame_content_size(body)
        except zstandard.ZstdError:
            continue
        if not 0 <= plain <= max_plain_bytes(kind):
            continue
        values = (_MAGIC, kind, 1, encoding, 0, 0, _NO_NONCE, plain, len(body), xxh3(body), 0)
        start = _HEADER.pack(*values)[:-8]
        if start == view[: HEADER_BYTES - 8] or xxh3(start) == head_sum:
            return start + struct.pack("<Q", xxh3(start)) + bytes(body)
    return None


def _decompress(body: memoryview, plain_bytes: int, name: str) -> bytes:
    try:
        # zstandard allocates what the frame claims: compare that with our header first
        if zstandard.frame_content_size(body) != plain_bytes:
            damaged(name, "its zstd body does not have the size it says")
        decompressor = zstandard.ZstdDecompressor()
        plain: bytes = decompressor.decompress(body, plain_bytes, allow_extra_data=False)
        return plain
    except zstandard.ZstdError as error:
        damaged(name, f"zstd says {error}")


class Body(msgspec.Struct, frozen=True, kw_only=True):
    """The base of every body: the list of features that a reader must know comes first.

    Modules that define bodies and are imported by every process do without postponed annotations:
    msgspec evaluates each one that is a string, which costs 2 ms before anything is loaded.
    """

    requires: list[str] = []

    def check(self) -> None:
        """Raise ``Broken`` where values are not what the format asks for beyond their types.

        Reader and writer both call it: what one refuses, the other does not write.
        """


class _Requires(msgspec.Struct):
    """The features of a body alone: they decide whether this version can read the rest."""

    requires: list[str]


Hex32 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z")]
"""16 bytes as lower-case hex digits."""

Hex64 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
"""A digest or a pack's id as lower-case hex digits."""

_B = TypeVar("_B", bound=Body)
_S = TypeVar("_S", bound=msgspec.Struct)


def _decode(kind: Kind, plain: bytes, model: type[_S]) -> _S:
    if kind in _MSGPACK:
        return msgspec.msgpack.decode(plain, type=prepared(model))
    return msgspec.json.decode(plain, type=prepared(model))


def seal_body(kind: Kind, body: Body) -> bytes:
    """Encode a body and put it into its envelope."""
    return seal(kind, encode_body(kind, body))


def encode_body(kind: Kind, body: Body) -> bytes:
    """Return the plain bytes of a body: msgpack or JSON by its kind.

    Raises ``UsageError`` with the name of the field when a reader would refuse the body, or would
    read something else: what is written once is there for good.
    """
    try:
        plain = read_back(body, packed=kind in _MSGPACK)
        check_requires(body.requires)
        body.check()
        return plain
    except (Broken, Newer) as error:
        raise UsageError(f"such a {kind.title} cannot be stored: {error}") from None


def unseal_body(kind: Kind, data: Buffer, model: type[_B], name: str) -> _B:
    """Unseal and decode a body; refuse one with features that this version does not know."""
    return decode_body(kind, unseal(kind, data, name), model, name)


def decode_body(kind: Kind, plain: bytes, model: type[_B], name: str) -> _B:
    """Decode the plain bytes of a body; refuse features that this version does not know."""
    try:
        check_requires(_decode(kind, plain, _Requires).requires)
        body = _decode(kind, plain, model)
        body.check()
        return body
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, Broken) as error:
        damaged(name, str(error))
    except Newer as error:
        unsupported(name, str(error))
