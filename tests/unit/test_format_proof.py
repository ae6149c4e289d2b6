"""Proofs: chaining values against the ``blake3`` package, and everything that must be refused."""

from __future__ import annotations

import blake3
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tierstore.codecs import RAW
from tierstore.errors import Damaged, UnsupportedFormat
from tierstore.format import proof
from tierstore.format.frame import BLOCK_LOG2, FrameHead, build_head, parse_frame_head

KIB, BLOCK = 1 << 10, 1 << BLOCK_LOG2
SIZES = [
    0, 1, 1023, 1024, 1025, BLOCK - 1, BLOCK, BLOCK + 1, BLOCK + 1023, BLOCK + 1024, BLOCK + 1025,
    2 * BLOCK - 1, 2 * BLOCK, 2 * BLOCK + 1, 3 * BLOCK, 3 * BLOCK + 77, 5 * BLOCK, 7 * BLOCK + KIB,
    (4 << 20) - 1, 4 << 20, (4 << 20) + 1, (16 << 20) - 3, 16 << 20,
]  # fmt: skip
NOISE = np.random.default_rng(3).bytes(16 << 20)

PARENT, ROOT, CHUNK_START, CHUNK_END = 4, 8, 1, 2
IV = (
    0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19,
)  # fmt: skip
ORDER = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
QUARTERS = (
    (0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15),
    (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14),
)  # fmt: skip


def compress(cv: tuple[int, ...], block: bytes, counter: int, flags: int) -> tuple[int, ...]:
    """BLAKE3's compression function as its paper writes it, the first eight words of its output."""
    padded = block.ljust(64, b"\0")
    words = [int.from_bytes(padded[i : i + 4], "little") for i in range(0, 64, 4)]
    state = [*cv, *IV[:4], counter & 0xFFFFFFFF, counter >> 32, len(block), flags]

    def turn(value: int, bits: int) -> int:
        return (value >> bits | value << (32 - bits)) & 0xFFFFFFFF

    for _ in range(7):
        for number, (a, b, c, d) in enumerate(QUARTERS):
            for word, first, second in ((0, 16, 12), (1, 8, 7)):
                state[a] = (state[a] + state[b] + words[2 * number + word]) & 0xFFFFFFFF
                state[d] = turn(state[d] ^ state[a], first)
                state[c] = (state[c] + state[d]) & 0xFFFFFFFF
                state[b] = turn(state[b] ^ state[c], second)
        words = [words[at] for at in ORDER]
    return tuple(low ^ high for low, high in zip(state[:8], state[8:], strict=True))


def raw(cv: tuple[int, ...]) -> bytes:
    return b"".join(word.to_bytes(4, "little") for word in cv)


def leaf(data: bytes, counter: int) -> tuple[int, ...]:
    cv: tuple[int, ...] = IV
    for at in range(0, len(data), 64):
        flags = CHUNK_START * (at == 0) | CHUNK_END * (at + 64 >= len(data))
        cv = compress(cv, data[at : at + 64], counter, flags)
    return cv


def node(data: bytes, offset: int) -> tuple[int, ...]:
    """The chaining value of a subtree, straight from the paper."""
    if len(data) <= KIB:
        return leaf(data, offset // KIB)
    left = KIB << ((len(data) - 1) // KIB).bit_length() - 1
    children = node(data[:left], offset), node(data[left:], offset + left)
    return compress(IV, raw(children[0]) + raw(children[1]), 0, PARENT)


def head_of(plain: bytes, digest: bytes | None = None) -> FrameHead:
    ends = [min(at + BLOCK, len(plain)) for at in range(0, len(plain), BLOCK)]
    head = build_head(
        digest=digest or blake3.blake3(plain).digest(), codec=RAW, dtype="", plain=plain,
        codec_head=b"", ends=ends, payload=plain,
    )  # fmt: skip
    return parse_frame_head(head, "a frame")


def check_all(plain: bytes) -> None:
    hashed = proof.hash_plain(plain)
    assert hashed.digest == blake3.blake3(plain).digest()
    blocks = -(-len(plain) // BLOCK)
    assert len(hashed.proof) == (32 * blocks if blocks > 1 else 0)
    if blocks > 1:
        head = head_of(plain)
        assert proof.parse_proof(proof.proof_frame(hashed.proof), head, "a frame") == hashed.proof
        for index in range(blocks):
            block = memoryview(plain)[index * BLOCK : (index + 1) * BLOCK]
            proof.check_block(hashed.proof, head, index, block, "a frame")


def test_the_native_part_is_built() -> None:
    assert proof.can_prove(), "tierstore.format._tree is missing: reinstall with a C compiler"


@pytest.mark.parametrize("size", SIZES)
def test_the_values_of_every_boundary_give_the_digest(size: int) -> None:
    check_all(NOISE[:size])


@given(st.integers(0, 6 << 20), st.integers(0, 1 << 20))
@example(0, 0)
def test_the_values_of_any_chunk_give_its_digest(size: int, start: int) -> None:
    check_all(NOISE[start : start + size])


@pytest.mark.parametrize("size", [1, 63, 64, 65, 1023, 1024, 1025, 3 * KIB, 4 * KIB + 1, 9 * KIB])
@pytest.mark.parametrize("offset", [0, BLOCK, 63 * BLOCK])
def test_a_value_is_that_of_the_papers_tree(size: int, offset: int) -> None:
    assert proof._native.value(NOISE[:size], offset) == raw(node(NOISE[:size], offset))


def test_values_of_small_blocks_are_those_of_the_papers_tree() -> None:
    data = NOISE[: 11 * KIB + 5]
    digest, values = proof._native.hash(data, 2 * KIB)
    parts = [raw(node(data[at : at + 2 * KIB], at)) for at in range(0, len(data), 2 * KIB)]
    assert values == b"".join(parts)
    assert proof._native.root(values) == digest == blake3.blake3(data).digest()


@pytest.mark.parametrize("count", range(2, 18))
def test_the_root_is_that_of_blake3_for_any_count_of_blocks(count: int) -> None:
    data = NOISE[: count * KIB]
    values = b"".join(
        proof._native.value(data[at : at + KIB], at) for at in range(0, len(data), KIB)
    )
    assert proof._native.root(values) == blake3.blake3(data).digest()


@pytest.mark.parametrize("size", [0, 31, 32, 33, 95])
def test_fewer_than_two_values_have_no_root(size: int) -> None:
    with pytest.raises(ValueError, match="no two chaining values"):
        proof._native.root(bytes(size))


@pytest.mark.parametrize("block", [0, 512, 1025, 3 * KIB])
def test_blocks_that_are_no_subtrees_are_refused(block: int) -> None:
    with pytest.raises(ValueError, match="no subtrees"):
        proof._native.hash(b"x" * 5000, block)


@pytest.mark.parametrize(("data", "offset"), [(b"", 0), (b"x", 5), (b"x", 1025)])
def test_what_is_no_subtree_has_no_value(data: bytes, offset: int) -> None:
    with pytest.raises(ValueError, match="no subtree"):
        proof._native.value(data, offset)


def test_a_block_of_another_place_or_with_one_bit_changed_is_refused() -> None:
    plain = NOISE[: 3 * BLOCK + 1]
    values, head = proof.hash_plain(plain).proof, head_of(plain)
    first, second = (memoryview(plain)[at : at + BLOCK] for at in (0, BLOCK))
    with pytest.raises(Damaged, match="block 0 is not of the chunk"):
        proof.check_block(values, head, 0, second, "a frame")
    with pytest.raises(Damaged, match="block 1 is not of the chunk"):
        proof.check_block(values, head, 1, first, "a frame")
    changed = bytearray(first)
    changed[77] ^= 16
    with pytest.raises(Damaged, match="block 0 is not of the chunk"):
        proof.check_block(values, head, 0, memoryview(changed), "a frame")
    with pytest.raises(Damaged, match="block 3 is not of the chunk"):
        proof.check_block(values, head, 3, memoryview(bytes([plain[-1] ^ 1])), "a frame")


def test_equal_blocks_in_two_places_have_two_values() -> None:
    values = proof.hash_plain(bytes(2 * BLOCK)).proof
    assert values[:32] != values[32:]


@pytest.mark.parametrize(
    "forge",
    [
        lambda values: values[32:64] + values[:32] + values[64:],
        lambda values: bytes([values[0] ^ 1]) + values[1:],
        lambda values: values[:-1] + bytes([values[-1] ^ 128]),
    ],
    ids=["two swapped", "first bit", "last bit"],
)
def test_values_that_do_not_give_the_digest_are_refused(forge: object) -> None:
    plain = NOISE[: 4 * BLOCK]
    forged = forge(proof.hash_plain(plain).proof)  # type: ignore[operator]
    with pytest.raises(Damaged, match="its proof does not give its digest"):
        proof.parse_proof(proof.proof_frame(forged), head_of(plain), "a frame")


def test_the_top_values_are_no_proof_of_more_blocks() -> None:
    """The parents of four blocks give the same digest, as two values of larger blocks."""
    plain = NOISE[: 4 * BLOCK]
    halves = proof._native.hash(plain, 2 * BLOCK)[1]
    assert proof._native.root(halves) == blake3.blake3(plain).digest()
    with pytest.raises(Damaged, match="not that of 4 blocks"):
        proof.parse_proof(proof.proof_frame(halves), head_of(plain), "a frame")


def test_a_proof_that_is_cut_short_or_damaged_is_refused() -> None:
    plain = NOISE[: 2 * BLOCK]
    head, whole = head_of(plain), proof.proof_frame(proof.hash_plain(plain).proof)
    for frame in (whole[:-1], whole[:50], whole + b"\0", b""):
        with pytest.raises(Damaged, match="the proof of a frame is damaged"):
            proof.parse_proof(frame, head, "a frame")
    for at in range(len(whole)):
        spoiled = bytearray(whole)
        spoiled[at] ^= 1
        with pytest.raises((Damaged, UnsupportedFormat)):
            proof.parse_proof(spoiled, head, "a frame")


def test_without_the_native_part_a_chunk_has_its_digest_and_no_proof(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(proof, "_native", None)
    plain = NOISE[: 2 * BLOCK]
    assert not proof.can_prove()
    assert proof.hash_plain(plain) == proof.HashedPlain(blake3.blake3(plain).digest(), b"")
