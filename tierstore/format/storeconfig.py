"""The store's ``config.json``, which never changes but for its features (SPEC.md section 10)."""

import json
import re

import msgspec

from tierstore.errors import Damaged
from tierstore.format.checks import KNOWN_FEATURES, damaged, unsupported, xxh3
from tierstore.format.chunking import DEFAULT_CHUNK, HASH, is_chunk_size
from tierstore.format.tiers import FEATURE as TIERS_FEATURE
from tierstore.ids import Buffer
from tierstore.prepared import prepared

FORMAT = 1
RECLAIM_FEATURE = "reclaim"
"""The feature of a store in which versions may be removed; in ``write`` and in ``gc``."""

STORE_FEATURES = KNOWN_FEATURES | {TIERS_FEATURE, RECLAIM_FEATURE}
"""The features that a config may name and that this version knows."""

_MAX_BYTES = 1 << 20
_ID = re.compile(r"[0-9a-f]{32}\Z")


class Features(msgspec.Struct, forbid_unknown_fields=True):
    """Features that a client must know before it reads, writes or deletes."""

    read: list[str] = []
    write: list[str] = []
    gc: list[str] = []


class StoreConfig(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The configuration of a store, fixed when it is made but for ``features``."""

    format: int = FORMAT
    store_id: str
    chunk_size: int = DEFAULT_CHUNK
    hash: str = HASH
    features: Features = msgspec.field(default_factory=Features)
    tiers: list[dict[str, str]] = []


def reclaims(config: StoreConfig) -> bool:
    """Return whether versions of a store may be removed."""
    return RECLAIM_FEATURE in config.features.gc


def will_reclaim(config: StoreConfig) -> bool:
    """Return whether versions of a store may be removed, now or once saves have ended."""
    return RECLAIM_FEATURE in config.features.write


def encode_config(config: StoreConfig) -> bytes:
    """Return the stored form of a config: JSON with a checksum over its content."""
    fields = msgspec.to_builtins(config)
    fields["check"] = _check(fields)
    return json.dumps(fields, indent=2).encode() + b"\n"


def _check(fields: dict[str, object]) -> str:
    compact = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return f"{xxh3(compact.encode()):016x}"


def is_config(data: Buffer) -> bool:
    """Return whether a ``config.json`` is a store's, whole or damaged, and not a model's."""
    try:
        fields = json.loads(bytes(data))
    except (ValueError, RecursionError):
        return True  # a damaged store: nobody else keeps something that is not JSON under this name
    return not isinstance(fields, dict) or "store_id" in fields or "format" in fields


def parse_config(data: Buffer, name: str) -> StoreConfig:
    """Read and check a store's config.

    Raises:
        Damaged: It is no config, or its checksum does not match.
        UnsupportedFormat: The store was made by a newer version.
    """
    if len(data) > _MAX_BYTES:
        damaged(name, f"{len(data)} bytes are too many")
    try:
        fields = msgspec.json.decode(bytes(data), type=dict[str, object])
        # a newer format may have other fields: say "newer" before saying "unknown field"
        if isinstance(fields.get("format"), int) and fields["format"] != FORMAT:
            unsupported(name, f"store format {fields['format']}")
        if fields.pop("check", None) != _check(fields):
            damaged(name, "its checksum does not match; it must not be edited by hand")
        if unknown := sorted(set(fields) - set(StoreConfig.__struct_fields__)):
            unsupported(name, f"the field {', '.join(map(repr, unknown))}")
        config = msgspec.convert(fields, prepared(StoreConfig))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Damaged(f"{name} is damaged: {error}; restore it from a copy") from None
    if msgspec.to_builtins(config) != fields:  # a default may change, a store may not
        damaged(name, "a field is missing")
    if config.hash != HASH:
        unsupported(name, f"the hash {config.hash!r}")
    if config.tiers:
        unsupported(name, "tiers in its config")
    if not _ID.match(config.store_id):
        damaged(name, "it has no proper store id")
    if not is_chunk_size(config.chunk_size):
        damaged(name, f"a chunk size of {config.chunk_size} is out of range")
    return config


def check_features(config: StoreConfig, needed: str, name: str) -> None:
    """Raise ``UnsupportedFormat`` unless all features for ``needed`` are known here.

    Args:
        config: The store's configuration.
        needed: The operation: ``read``, ``write`` or ``gc``.
        name: How messages call the config.
    """
    unknown = sorted(set(getattr(config.features, needed)) - STORE_FEATURES)
    if unknown:
        unsupported(name, f"the feature {', '.join(map(repr, unknown))}")
