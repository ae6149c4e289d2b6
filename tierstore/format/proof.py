"""Proofs: the chaining values that bind each block of a chunk to its digest (SPEC.md section 3.2).

A block is a subtree of the chunk's BLAKE3 tree. The ``blake3`` package gives out no chaining
values; the native part that does may be missing: then no proofs are made, and whoever wants a part
of a chunk that has one reads the whole chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from tierstore.codecs import RAW
from tierstore.format.checks import damaged, digest_of
from tierstore.format.frame import (
    BLOCK_LOG2,
    FrameHead,
    build_head,
    frame_payload,
    parse_frame_head,
)
from tierstore.ids import Buffer

VALUE_BYTES = 32

_native: Any
try:
    _native = import_module("tierstore.format._tree")
except ImportError:  # not built: no compiler when tierstore was installed
    _native = None


@dataclass(frozen=True, slots=True)
class HashedPlain:
    """What one pass over a chunk's plain bytes gives.

    Attributes:
        digest: The digest of the chunk (32 bytes).
        proof: The chaining values of its blocks, end to end; empty where the chunk has one block at
            most, or the native part is missing.
    """

    digest: bytes
    proof: bytes


def can_prove() -> bool:
    """Return whether chaining values can be computed here: whether the native part was built."""
    return _native is not None


def hash_plain(plain: Buffer) -> HashedPlain:
    """Hash a chunk that is to be stored, in blocks of the usual size."""
    if _native is None:
        return HashedPlain(digest_of(plain).raw, b"")
    return HashedPlain(*_native.hash(plain, 1 << BLOCK_LOG2))


def proof_frame(proof: bytes) -> bytes:
    """Return the frame in which a proof is stored, right before the frame of its chunk."""
    head = build_head(
        digest=digest_of(proof).raw,
        codec=RAW,
        dtype="",
        plain=proof,
        codec_head=b"",
        ends=[len(proof)],
        payload=proof,
    )
    return head + proof


def parse_proof(frame: Buffer, head: FrameHead, name: str) -> bytes:
    """Return the chaining values of a chunk's blocks, which give the chunk's digest.

    Args:
        frame: The whole frame of the proof.
        head: The head of the chunk's frame; it has two blocks at least.
        name: How messages call the chunk's frame.

    Raises:
        Damaged: The frame is bad, or holds no proof of this chunk.
    """
    own = parse_frame_head(frame, f"the proof of {name}")
    if own.codec != RAW or own.plain_bytes != VALUE_BYTES * len(head.ends):
        damaged(name, f"its proof is not that of {len(head.ends)} blocks")
    proof = bytes(frame_payload(own, frame, f"the proof of {name}"))
    if _native.root(proof) != head.digest:
        damaged(name, "its proof does not give its digest")
    return proof


def check_block(proof: bytes, head: FrameHead, index: int, plain: memoryview, name: str) -> None:
    """Compare a block's plain bytes with its chaining value in a proof that was checked.

    Args:
        proof: What ``parse_proof`` returned.
        head: The head of the chunk's frame.
        index: The number of the block.
        plain: The block's plain bytes.
        name: How messages call the chunk's frame.

    Raises:
        Damaged: The bytes are not those of the chunk.
    """
    value = _native.value(plain, head.block_plain(index).start)
    if value != proof[VALUE_BYTES * index :][:VALUE_BYTES]:
        damaged(name, f"its block {index} is not of the chunk with its digest")
