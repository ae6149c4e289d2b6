"""Heat objects: what one node has read, where nodes share no Redis (SPEC.md section 13)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tierstore.deferred import np
from tierstore.format.checks import Broken
from tierstore.format.sealed import Body, Kind, seal_body, unseal_body
from tierstore.format.tiers import HEAT
from tierstore.ids import Buffer

if TYPE_CHECKING:
    import numpy.typing as npt

CHUNK, PACK = 0, 1
"""Kinds of entries: of a chunk, whose key is a digest, and of a pack, whose key is its id."""

SCALE = 1 << 16
"""Scores are stored in units of 1/65536."""


class HeatBody(Body, frozen=True, kw_only=True):
    """The heat that one node has counted since its object was first written.

    Attributes:
        node: The node's name.
        half_life_s: Seconds after which a read weighs half.
        landmark_us: The time at which a read weighs one, microseconds since the epoch.
        offset_us: This node's clock minus home's, as it was last measured.
        kinds: One byte for each entry, ``CHUNK`` or ``PACK``.
        keys: 32 bytes for each entry; no key comes twice in a kind.
        scores: 4 bytes for each entry, signed: ``SCALE`` times log2 of the sum of the weights.
    """

    node: str
    half_life_s: int
    landmark_us: int
    offset_us: int = 0
    kinds: bytes
    keys: bytes
    scores: bytes

    def check(self) -> None:
        """Raise ``Broken`` unless its columns fit each other and its times are in range."""
        count = len(self.kinds)
        if len(self.keys) != 32 * count or len(self.scores) != 4 * count:
            raise Broken("its columns differ in length")
        if self.half_life_s < 1 or not 0 <= self.landmark_us < 1 << 57:
            raise Broken("its half-life or landmark is out of range")
        if not -(1 << 57) < self.offset_us < 1 << 57:
            raise Broken("its clock is out of range")
        if not set(self.kinds) <= {CHUNK, PACK}:
            raise Broken("it holds an entry of an unknown kind")
        if len(heat_entries(self)) != count:
            raise Broken("a key appears twice")


def heat_key(node: str) -> str:
    """Return the key of a node's heat; ``node`` must be a valid segment of a key."""
    return HEAT + node


def heat_columns(entries: dict[tuple[int, bytes], float]) -> tuple[bytes, bytes, bytes]:
    """Return the stored columns (kinds, keys, scores) of log2 scores by kind and key."""
    scaled = np.rint(np.array(list(entries.values()), np.float64) * SCALE)
    limits = np.iinfo(np.int32)
    scores = np.clip(scaled, limits.min, limits.max).astype("<i4")
    return (
        bytes(kind for kind, _ in entries),
        b"".join(key for _, key in entries),
        scores.tobytes(),
    )


def heat_entries(body: HeatBody) -> dict[tuple[int, bytes], float]:
    """Return the log2 scores of a heat object by kind and key."""
    scores: npt.NDArray[np.float64] = np.frombuffer(body.scores, "<i4") / SCALE
    keys = (body.keys[at : at + 32] for at in range(0, len(body.keys), 32))
    return dict(zip(zip(body.kinds, keys, strict=True), scores.tolist(), strict=True))


def seal_heat(body: HeatBody) -> bytes:
    """Return the stored form of a node's heat."""
    return seal_body(Kind.HEAT, body)


def parse_heat(data: Buffer, name: str) -> HeatBody:
    """Unseal and check a node's heat."""
    return unseal_body(Kind.HEAT, data, HeatBody, name)
