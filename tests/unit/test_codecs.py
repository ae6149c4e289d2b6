"""Every chunk comes back as it was, whichever kernels wrote and read it."""

from __future__ import annotations

import threading
from importlib import import_module

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.codec_data import BLOCK, DTYPES, FLOATS, back, kernels, stored, tuned, weights
from tierstore.codecs import DELTA, PLANES, RAW, ZSTD, decode, decode_block, encode, native_info
from tierstore.codecs.base import WORD_TYPES
from tierstore.errors import Damaged, UsageError

BOTH = pytest.mark.parametrize("native", [True, False], ids=["native", "numpy"])
CHUNKS = st.one_of(
    st.binary(max_size=300),
    st.builds(
        lambda b, n: (b * n)[:20000], st.binary(min_size=1, max_size=9), st.integers(0, 4000)
    ),
    st.builds(
        lambda n, seed, spread, cut: (
            np.random.default_rng(seed).normal(128, spread, (n,)).astype(np.uint8).tobytes()[cut:]
        ),
        st.integers(0, 20000),
        st.integers(0, 2**32),
        st.floats(0.1, 80),
        st.integers(0, 7),
    ),
)


@settings(max_examples=150, deadline=None)
@given(CHUNKS, st.sampled_from(DTYPES), st.sampled_from([64, 1024, 1 << 18]), st.booleans())
def test_any_bytes_come_back(plain: bytes, dtype: str, block_size: int, native: bool) -> None:
    with kernels(native):
        encoded = stored(plain, dtype, block_size=block_size)
    for reader in (True, False):
        with kernels(reader):
            assert back(encoded, dtype, len(plain), block_size=block_size) == plain


@settings(max_examples=100, deadline=None)
@given(CHUNKS, CHUNKS, st.sampled_from(sorted(WORD_TYPES)), st.booleans())
def test_any_bytes_come_back_from_any_base(
    plain: bytes, other: bytes, dtype: str, native: bool
) -> None:
    base = (other + bytes(len(plain)))[: len(plain)]
    with kernels(native):
        encoded = stored(plain, dtype, base)
    for reader in (True, False):
        with kernels(reader):
            assert back(encoded, dtype, len(plain), base) == plain


@BOTH
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_short_length(dtype: str, native: bool) -> None:
    with kernels(native):
        for length in range(18):
            for plain in (bytes(length), bytes(range(length)), b"\xff" * length):
                assert back(stored(plain, dtype), dtype, length) == plain


@pytest.mark.parametrize("dtype", sorted(WORD_TYPES))
def test_weights_get_smaller_and_readers_agree(dtype: str) -> None:
    word = WORD_TYPES[dtype].word_bytes
    plain = weights(dtype, 70_000) + bytes(range(word - 1))
    for writer in (True, False):
        with kernels(writer):
            encoded = stored(plain, dtype)
        assert encoded.codec == PLANES
        for reader in (True, False):
            with kernels(reader):
                assert back(encoded, dtype, len(plain)) == plain


@BOTH
@pytest.mark.parametrize("dtype", sorted(FLOATS))
def test_a_delta_is_chosen_when_it_is_smaller(dtype: str, native: bool) -> None:
    base = weights(dtype, 40_000)
    plain = tuned(base, dtype)
    with kernels(native):
        standalone, delta = stored(plain, dtype), stored(plain, dtype, base)
        assert delta.codec == DELTA
        assert len(delta.payload) < len(standalone.payload)
        unrelated = stored(plain, dtype, np.random.default_rng(5).bytes(len(plain)))
        assert unrelated.codec != DELTA
    for reader in (True, False):
        with kernels(reader):
            assert back(delta, dtype, len(plain), base) == plain


@BOTH
@pytest.mark.parametrize("dtype", ["BF16", "F32", "F64", "I8", "I16", ""])
@pytest.mark.parametrize("with_base", [False, True])
def test_each_block_decodes_alone(dtype: str, native: bool, with_base: bool) -> None:
    plain = weights(dtype, 9_000) + b"\x01"
    base = tuned(plain, dtype) if with_base and dtype in WORD_TYPES else None
    with kernels(native):
        encoded = stored(plain, dtype, base)
        start = 0
        for index, end in enumerate(encoded.ends):
            part = slice(index * BLOCK, (index + 1) * BLOCK)
            out = bytearray(len(plain[part]))
            decode_block(
                encoded.codec,
                encoded.head,
                memoryview(encoded.payload)[start:end],
                memoryview(out),
                dtype,
                index=index,
                block_size=BLOCK,
                base=None if base is None else base[part],
            )
            assert bytes(out) == plain[part], f"block {index}"
            start = end


@BOTH
def test_what_does_not_shrink_is_raw_and_not_copied(native: bool) -> None:
    plain = np.random.default_rng(0).bytes(100_000)
    with kernels(native):
        for dtype in DTYPES:
            encoded = stored(plain, dtype)
            assert encoded.codec == RAW
            assert memoryview(encoded.payload).obj is plain


def test_bytes_that_are_no_tensor_use_zstd() -> None:
    plain = b"All work and no play makes Jack a dull boy. " * 500
    encoded = stored(plain, "")
    assert encoded.codec == ZSTD
    assert back(encoded, "", len(plain)) == plain


@BOTH
def test_encoding_is_deterministic_and_fills_the_given_buffer(native: bool) -> None:
    plain = weights("BF16", 50_000)
    base = tuned(plain, "BF16")
    with kernels(native):
        for reference in (None, base):
            buffer = bytearray(len(plain))
            first = encode(plain, "BF16", base=reference)
            second = encode(plain, "BF16", base=reference, out=memoryview(buffer))
            assert (first.head, first.ends) == (second.head, second.ends)
            assert bytes(first.payload) == bytes(second.payload)
            assert memoryview(second.payload).obj is buffer
            assert buffer[: len(second.payload)] == second.payload


def test_the_head_stays_within_its_limit() -> None:
    """64 blocks of 8 planes, each with another code: more tables than a head takes."""
    rng = np.random.default_rng(0)
    words = np.concatenate(
        [rng.normal(128, 10 + 2 * block, (1 << 13, 8)).astype(np.uint8) for block in range(40)]
    )
    plain = words.tobytes()
    encoded = stored(plain, "U64", block_size=1 << 13)
    assert len(encoded.head) > 255 * 3
    assert back(encoded, "U64", len(plain), block_size=1 << 13) == plain


@pytest.mark.parametrize("isa", ["avx512", "avx2", "generic"])
def test_instruction_sets_read_and_write_the_same(isa: str) -> None:
    """Sets that this processor lacks fall back to the next narrower one."""
    _native = import_module("tierstore.codecs._native")
    plains = [(d, weights(d, 80_000)) for d in ("F8_E4M3", "BF16", "F16", "F32", "F64")]
    samples: list[tuple[str, bytes, bytes | None]] = [(d, p, None) for d, p in plains]
    samples += [(d, tuned(p, d), p) for d, p in plains]
    expected = [encode(plain, dtype, base=base) for dtype, plain, base in samples]
    _native.limit_isa(isa)
    try:
        for (dtype, plain, base), e in zip(samples, expected, strict=True):
            other = encode(plain, dtype, base=base)
            assert (other.codec, other.head, other.ends) == (e.codec, e.head, e.ends)
            assert bytes(other.payload) == bytes(e.payload)
            assert back(e, dtype, len(plain), base, block_size=1 << 18) == plain
    finally:
        _native.limit_isa(None)


def test_native_kernels_are_built() -> None:
    info = native_info()
    assert info.built, "tierstore.codecs._native is missing: reinstall with a C compiler"
    assert info.instructions in ("avx512", "avx2", "generic")
    with kernels(False):
        assert not native_info().in_use


@BOTH
def test_threads_share_nothing(native: bool) -> None:
    dtypes = ["BF16", "F32", "I64", "", "BOOL"]
    wrong: list[str] = []

    def work(seed: int) -> None:
        for dtype in dtypes:
            plain = weights(dtype, 20_000, seed, scale=0.001 if dtype == "BOOL" else 0.04)
            if back(encode(plain, dtype, block_size=BLOCK), dtype, len(plain)) != plain:
                wrong.append(f"{dtype} in thread {seed}")

    with kernels(native):
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


@BOTH
def test_ends_may_be_numpy_integers(native: bool) -> None:
    plain = weights("BF16", 9_000)
    with kernels(native):
        encoded = stored(plain, "BF16")
        out, ends = bytearray(len(plain)), np.array(encoded.ends, "<u4")
        decode(
            encoded.codec,
            encoded.head,
            ends,  # type: ignore[arg-type]  # a column of a frame's block table
            encoded.payload,
            memoryview(out),
            "BF16",
            block_size=BLOCK,
        )
    assert bytes(out) == plain


def test_wrong_calls_are_refused() -> None:
    plain = weights("BF16", 4_000)
    with pytest.raises(UsageError, match="at most"):
        encode(bytes((1 << 24) + 1), "BF16")
    with pytest.raises(UsageError, match="power of two"):
        encode(plain, "BF16", block_size=1000)
    with pytest.raises(UsageError, match="base has"):
        encode(plain, "BF16", base=plain[1:])
    with pytest.raises(UsageError, match="out has"):
        encode(plain, "BF16", out=memoryview(bytearray(10)))
    with pytest.raises(UsageError, match="contiguous"):
        encode(memoryview(plain)[::2], "BF16")
    delta = stored(tuned(plain, "BF16"), "BF16", plain)
    with pytest.raises(UsageError, match="base="):
        back(delta, "BF16", len(plain))
    with pytest.raises(Damaged, match="no codec"):
        decode(9, b"", (8,), bytes(8), memoryview(bytearray(8)), "BF16", block_size=BLOCK)
    with pytest.raises(Damaged, match="no codec"):
        decode(PLANES, b"", (8,), bytes(8), memoryview(bytearray(8)), "F4", block_size=BLOCK)
