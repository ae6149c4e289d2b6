"""The keys under which a store keeps its objects (SPEC.md sections 9 and 10)."""

from __future__ import annotations

import re
from urllib.parse import quote, unquote

from tierstore.errors import InvalidName
from tierstore.ids import Digest

CONFIG = "config.json"
IDENTITY = "identity"
REFS, VERSIONS, LAYOUTS, FOLDS, MOVES, INDEX, PACKS, LEASES, GC = (
    "refs/", "versions/", "layouts/", "folds/", "moves/", "index/", "packs/", "leases/", "gc/",
)  # fmt: skip
PROBES, REPORTS, QUARANTINE, CONDEMNED = "probes/", "reports/", "quarantine/", "condemned/"
NOTICE = f"{GC}notice-"
RETENTION, SWEEPS, SCRUBS = "retention/", "sweeps/", "scrubs/"
COLLECTED, GROWTH = "collected", "growth/"
PURGES, PURGED, ACKS, NODES = "purges/", "purged/", "acks/", "nodes/"
PURGE_PARTS = "purgeparts/"
RESERVE = "reserve/collector"
VERSION_LOG, REMOVED_LOG = "versions", "removed"
ALIASES = "alias/"
VARIANTS = "variant/"
HEAD = "HEAD"
_MAX_SEGMENT = 240
_PACK = re.compile(r"[0-9a-f]{64}\Z")
_PURGE_PART = re.compile(r"purgeparts/([0-9a-f]{32})/([0-9a-f]{32})\Z")
_MOVE = re.compile(r"moves/([0-9a-f]{64})(-[1-9][0-9]*)?\Z")


def pack_key(pack: bytes) -> str:
    """Return the key of a pack by its id."""
    text = pack.hex()
    return f"{PACKS}{text[:2]}/{text}"


def pack_of(key: str) -> bytes | None:
    """Return the id of the pack that lies under a key; ``None`` if it is no pack's name."""
    name = key.rpartition("/")[2]
    return bytes.fromhex(name) if _PACK.match(name) else None


def version_key(digest: Digest) -> str:
    """Return the key of a manifest."""
    return VERSIONS + digest.hex


def layout_key(digest: Digest) -> str:
    """Return the key of the layout of a manifest."""
    return LAYOUTS + digest.hex


def fold_key(digest: Digest) -> str:
    """Return the key of the fold of a patch version."""
    return FOLDS + digest.hex


def move_key(pack: bytes, number: int = 1) -> str:
    """Return the key of a note that says where frames of a pack are, too; numbers count from 1."""
    return MOVES + pack.hex() + (f"-{number}" if number > 1 else "")


def moved_pack(key: str) -> bytes | None:
    """Return the id of the pack from which the move under a key leads; ``None`` if it is none."""
    match = _MOVE.match(key)
    return bytes.fromhex(match[1]) if match else None


def quarantine_key(pack: bytes) -> str:
    """Return the key of the mark that says that a pack is damaged."""
    return QUARANTINE + pack.hex()


def purge_part_key(order: str, name: str) -> str:
    """Return the key of a part of what runs found for a purge, by the ids of both."""
    return f"{PURGE_PARTS}{order}/{name}"


def purge_part_of(key: str) -> tuple[str, str] | None:
    """Return the ids of the order and of the part that lies under a key; ``None`` if none does."""
    match = _PURGE_PART.match(key)
    return (match[1], match[2]) if match else None


def list_key(seq: int) -> str:
    """Return the key of a condemned list by its number."""
    return f"{GC}{seq:09d}"


def retention_key(model: str | None) -> str:
    """Return the key of a model's retention, or with ``None`` of the store's."""
    return RETENTION + ("store" if model is None else f"models/{segment(model)}")


def segment(name: str) -> str:
    """Return the name of a model, alias, variant or node as one segment of a key.

    Raises ``InvalidName`` for a name that is empty, too long, or cannot be written as UTF-8.
    """
    try:
        text = quote(name, safe="-._")
    except UnicodeEncodeError:
        raise InvalidName(f"name {name[:80]!r} holds a lone surrogate") from None
    if not text:
        raise InvalidName("a name has at least one character")
    text = text.replace("~", "%7E")
    if text.startswith("."):
        text = "%2E" + text[1:]
    if len(text) > _MAX_SEGMENT:
        raise InvalidName(
            f"name {name[:80]!r} is too long: percent-encoded it has {len(text)} characters, "
            f"{_MAX_SEGMENT} are allowed"
        )
    return text


def unsegment(text: str) -> str:
    """Return the name that ``segment`` turned into ``text``."""
    return unquote(text, errors="strict")


def model_prefix(model: str) -> str:
    """Return the prefix of all ref logs of a model."""
    return f"{REFS}{segment(model)}/"


def ref_prefix(model: str, name: str) -> str:
    """Return the prefix of a ref log.

    It is ``versions``, ``removed``, ``alias/<alias>`` or ``variant/<variant>``.
    """
    for folder in (ALIASES, VARIANTS):
        if name.startswith(folder):
            name = folder + segment(name.removeprefix(folder))
    return f"{model_prefix(model)}{name}/"


def entry_key(prefix: str, seq: int) -> str:
    """Return the key of one entry of a ref log."""
    return f"{prefix}{seq // 1000:06d}/{seq:09d}"


def seq_of(key: str, prefix: str) -> int | None:
    """Return the number of the entry of a ref log that has a key; ``None`` for anything else."""
    name = key.rpartition("/")[2]
    if not (name.isascii() and name.isdigit()):
        return None
    seq = int(name)
    return seq if seq and key == entry_key(prefix, seq) else None
