"""Heat objects: what one node has read, for nodes without a shared Redis (SPEC.md section 13)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tierstore.deferred import np
from tierstore.format.checks import damaged
from tierstore.format.sealed import Body, Kind, seal_body, unseal_body
from tierstore.format.tiers import HEAT
from tierstore.ids import Buffer

if TYPE_CHECKING:
    import numpy.typing as npt

CHUNK, PACK = 0, 1
"""Kinds of entries: the key is a chunk's digest, or a pack's id."""

SCALE = 1 << 16
"""Scores are stored in units of 1/65536."""


class HeatBody(Body, frozen=True, kw_only=True):
    """The heat that one node has counted since its object was new.

    Attributes:
        node: its name.
        half_life_s: after which a read weighs half.
        landmark_us: the time at which a read weighs one, microseconds since the epoch.
        offset_us: this node's clock minus home's, as it was last measured.
        kinds: one byte an entry, ``CHUNK`` or ``PACK``.
        keys: 32 bytes an entry; no key comes twice in a kind.
        scores: 4 bytes an entry, signed: ``SCALE`` times log2 of the sum of the weights.
    """

    node: str
    half_life_s: int
    landmark_us: int
    offset_us: int = 0
    kinds: bytes
    keys: bytes
    scores: bytes


def heat_key(node: str) -> str:
    """The key of a node's heat; ``node`` is a proper segment of a key."""
    return HEAT + node


def heat_columns(entries: dict[tuple[int, bytes], float]) -> tuple[bytes, bytes, bytes]:
    """The stored columns of log2 scores by kind and key: kinds, keys, scores."""
    scaled = np.rint(np.array(list(entries.values()), np.float64) * SCALE)
    limits = np.iinfo(np.int32)
    scores = np.clip(scaled, limits.min, limits.max).astype("<i4")
    return (
        bytes(kind for kind, _ in entries),
        b"".join(key for _, key in entries),
        scores.tobytes(),
    )


def heat_entries(body: HeatBody) -> dict[tuple[int, bytes], float]:
    """The log2 scores by kind and key."""
    scores: npt.NDArray[np.float64] = np.frombuffer(body.scores, "<i4") / SCALE
    keys = (body.keys[at : at + 32] for at in range(0, len(body.keys), 32))
    return dict(zip(zip(body.kinds, keys, strict=True), scores.tolist(), strict=True))


def seal_heat(body: HeatBody) -> bytes:
    """The stored form of a node's heat."""
    return seal_body(Kind.HEAT, body)


def parse_heat(data: Buffer, name: str) -> HeatBody:
    """Unseal and check a node's heat."""
    body = unseal_body(Kind.HEAT, data, HeatBody, name)
    count = len(body.kinds)
    if len(body.keys) != 32 * count or len(body.scores) != 4 * count:
        damaged(name, "its columns differ in length")
    if body.half_life_s < 1 or not 0 <= body.landmark_us < 1 << 57:
        damaged(name, "its half-life or landmark is out of range")
    if not -(1 << 57) < body.offset_us < 1 << 57:
        damaged(name, "its clock is out of range")
    if not set(body.kinds) <= {CHUNK, PACK}:
        damaged(name, "it holds an entry of an unknown kind")
    if len(heat_entries(body)) != count:
        damaged(name, "a key comes twice")
    return body
