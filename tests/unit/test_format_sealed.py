"""Sealed objects: SPEC.md section 5 byte by byte, every limit, and what msgpack may claim."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tracemalloc
from typing import Any

import msgspec
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.format_by_hand import msgpack, read_msgpack, read_sealed, sealed
from tierstore.errors import Damaged, UnsupportedFormat, UsageError
from tierstore.format.sealed import (
    HEADER_BYTES,
    Body,
    Kind,
    decode_body,
    max_plain_bytes,
    mended,
    seal,
    unseal,
    unseal_body,
)
from tierstore.testing.strategies import noise

MIB = 1 << 20
PLAIN = b"plain bytes of a body " * 40
KINDS = {
    "MANIFEST": 1, "LAYOUT": 2, "SEGMENT": 3, "FOLD": 4, "MOVE": 5, "REF": 6, "LEASE": 7,
    "HINT": 8, "CONDEMNED": 9, "TIERS": 10, "PIN": 11, "HEAT": 12, "MOVER": 13, "REPORT": 14,
    "QUARANTINE": 15, "CONDEMNED_LIST": 16, "CONDEMNED_SEGMENT": 17,
    "RETENTION": 18, "COLLECTED": 19, "GROWTH": 20,
    "PURGE": 21, "PURGED": 22, "ACKNOWLEDGEMENT": 23, "NODE": 24, "PURGE_PART": 25,
}  # fmt: skip


def packed(plain: bytes, **options: Any) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(plain)


def streamed(plain: bytes) -> bytes:
    """A zstd frame that does not declare its content's size."""
    compressor = zstandard.ZstdCompressor().compressobj()
    return compressor.compress(plain) + compressor.flush()


DAMAGED = {
    "empty": (b"", "too few"),
    "header cut": (sealed(6, PLAIN)[:55], "too few"),
    "magic": (sealed(6, PLAIN, magic=b"TSOC"), "does not begin"),
    "header checksum": (sealed(6, PLAIN, head_sum=3), "checksum of its header"),
    "another kind": (sealed(5, PLAIN), "kind 5 instead of 6"),
    "nonce": (sealed(6, PLAIN, nonce=b"\1" * 12), "out of range"),
    "plain_bytes above the limit": (sealed(6, PLAIN, plain_bytes=MIB + 1), "out of range"),
    "body_bytes above plain_bytes": (
        sealed(6, b"", body=bytes((64 << 10) + 1)), "out of range",
    ),
    "body cut": (sealed(6, PLAIN)[:-1], "of body instead of"),
    "bytes behind": (sealed(6, PLAIN) + b"\0", "of body instead of"),
    "body checksum": (sealed(6, PLAIN, body_sum=3), "checksum of its body"),
    "plain body of another length": (
        sealed(6, PLAIN, plain_bytes=len(PLAIN) + 1), "plain bytes instead of",
    ),
    "no zstd": (sealed(6, PLAIN, encoding=1, body=PLAIN), "zstd says"),
    "zstd of another length": (
        sealed(6, PLAIN, encoding=1, plain_bytes=len(PLAIN) + 1), "the size it says",
    ),
    "zstd of undeclared length": (
        sealed(6, PLAIN, encoding=1, body=streamed(PLAIN)), "the size it says",
    ),
    "zstd cut": (sealed(6, PLAIN, encoding=1, body=packed(PLAIN)[:-3]), "zstd says"),
    "zstd with bytes behind": (
        sealed(6, PLAIN, encoding=1, body=packed(PLAIN) + b"\0"), "zstd says",
    ),
    "two zstd frames": (
        sealed(6, PLAIN, encoding=1, body=packed(PLAIN) + packed(b"more")), "zstd says",
    ),
}  # fmt: skip

UNSUPPORTED = {
    "version": sealed(6, PLAIN, version=2),
    "encrypted": sealed(6, PLAIN, flags=1),
    "another flag": sealed(6, PLAIN, flags=64),
    "a key": sealed(6, PLAIN, key_id=9),
    "another encoding": sealed(6, PLAIN, encoding=2),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_refused(case: str) -> None:
    data, why = DAMAGED[case]
    with pytest.raises(Damaged, match=why) as caught:
        unseal(Kind.REF, data, "object X")
    assert str(caught.value).startswith("object X is damaged")


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_what_is_newer_is_refused(case: str) -> None:
    with pytest.raises(UnsupportedFormat, match="newer tierstore"):
        unseal(Kind.REF, UNSUPPORTED[case], "object X")


MENDABLE = (Kind.LAYOUT, b"x" * 40), (Kind.LAYOUT, b"x" * 4000), (Kind.REF, b"{}")


@pytest.mark.parametrize(("kind", "plain"), MENDABLE)
def test_any_byte_of_an_envelope_can_be_mended(kind: Kind, plain: bytes) -> None:
    whole = seal(kind, plain)
    for at in range(HEADER_BYTES):
        bad = bytearray(whole)
        bad[at] ^= 0x41
        assert mended(kind, bad) == whole, at
    assert mended(kind, whole + b"more") == whole


@pytest.mark.parametrize(("kind", "plain"), MENDABLE)
def test_a_damaged_body_is_not_mended(kind: Kind, plain: bytes) -> None:
    whole = seal(kind, plain)
    for at in range(HEADER_BYTES, len(whole)):
        bad = bytearray(whole)
        bad[at] ^= 0x41
        assert mended(kind, bad) is None, at
        bad[3] ^= 1
        assert mended(kind, bad) is None, "of both no part is proven"
    for length in range(len(whole)):
        assert mended(kind, whole[:length]) is None, length


def test_kinds_and_their_limits() -> None:
    assert {kind.name: kind.value for kind in Kind} == KINDS
    limits = {kind.value: max_plain_bytes(kind) for kind in Kind}
    small = {4, 5, 6, 7, 8, 10, 11, 13, 14, 18, 20, 23, 24}
    large = dict.fromkeys((9, 12, 15, 16, 17, 19, 21), 64 * MIB)
    assert limits == dict.fromkeys((1, 2, 3, 22, 25), 512 * MIB) | dict.fromkeys(small, MIB) | large


@pytest.mark.parametrize("kind", list(Kind))
def test_the_limit_holds_for_reader_and_writer(kind: Kind) -> None:
    limit = max_plain_bytes(kind)
    header = sealed(kind, b"", plain_bytes=limit + 1)
    with pytest.raises(Damaged, match="out of range"):
        unseal(kind, header, "x")
    with pytest.raises(Damaged, match="plain bytes instead of"):  # the limit itself passes
        unseal(kind, sealed(kind, b"", plain_bytes=limit), "x")
    if limit <= 64 * MIB:
        assert len(unseal(kind, seal(kind, bytes(limit)), "x")) == limit
        with pytest.raises(UsageError, match="limit"):
            seal(kind, bytes(limit + 1))


def test_a_body_may_be_longer_than_its_plain_bytes_by_the_slack() -> None:
    skippable = b"\x50\x2a\x4d\x18" + ((64 << 10) - 8).to_bytes(4, "little")
    body = skippable + bytes((64 << 10) - 8)
    with pytest.raises(Damaged, match="zstd"):  # read, and refused for what it is
        unseal(Kind.REF, sealed(6, b"", encoding=1, body=body), "x")


def test_a_claim_allocates_nothing() -> None:
    bomb = packed(bytes(2 * MIB))
    tracemalloc.start()
    for encoding in (0, 1):
        for claimed in (2**64 - 1, 2 * MIB, len(PLAIN)):
            data = sealed(6, PLAIN, encoding=encoding, body=bomb, plain_bytes=claimed)
            with pytest.raises(Damaged):
                unseal(Kind.REF, data, "x")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MIB, f"{peak} bytes were allocated"


@given(st.sampled_from(list(Kind)), st.one_of(st.binary(), st.integers(0, 5000).flatmap(noise)))
def test_any_body_round_trips_and_an_independent_reader_agrees(kind: Kind, plain: bytes) -> None:
    data = seal(kind, plain)
    assert read_sealed(data) == (kind.value, plain)
    assert unseal(kind, data, "x") == plain
    for encoding in (0, 1):
        assert unseal(kind, sealed(kind, plain, encoding=encoding), "x") == plain


def test_only_msgpack_bodies_are_compressed_and_only_where_it_helps() -> None:
    assert seal(Kind.MANIFEST, PLAIN)[6] == 1
    assert seal(Kind.MANIFEST, PLAIN[:100])[6] == 0
    assert seal(Kind.REF, PLAIN)[6] == 0


class Thing(Body, frozen=True, kw_only=True):
    a: int


BODIES = {
    1: msgpack({"requires": [], "new": {"x": [1, b"", None]}, "a": 5}),
    6: json.dumps({"requires": [], "new": {"x": [1.5, None]}, "a": 5}).encode(),
}


@pytest.mark.parametrize("kind", [Kind.MANIFEST, Kind.REF])
def test_unknown_fields_are_ignored_and_unknown_features_refused(kind: Kind) -> None:
    pack = msgpack if kind is Kind.MANIFEST else lambda value: json.dumps(value).encode()
    assert unseal_body(kind, sealed(kind, BODIES[kind]), Thing, "x").a == 5
    for fields in ({"requires": ["tensors-of-tomorrow"]}, {"requires": ["b", "a"], "a": "text"}):
        with pytest.raises(UnsupportedFormat, match=r"feature '(tensors-of-tomorrow|a', 'b)'"):
            decode_body(kind, pack(fields), Thing, "x")


@pytest.mark.parametrize("kind", [Kind.MANIFEST, Kind.REF])
def test_what_is_no_body_is_damage(kind: Kind) -> None:
    pack = msgpack if kind is Kind.MANIFEST else lambda value: json.dumps(value).encode()
    whole = pack({"requires": [], "a": 5})
    bad = [
        b"", b"\xc1", b"[", whole[:-1], whole + whole, pack([]), pack(5), pack(None), pack({}),
        pack({"a": 5}), pack({"requires": None, "a": 5}), pack({"requires": [5], "a": 5}),
        pack({"requires": []}), pack({"requires": [], "a": "5"}), pack({"requires": [], "a": None}),
    ]  # fmt: skip
    for plain in bad:
        with pytest.raises(Damaged, match="is damaged"):
            decode_body(kind, plain, Thing, "x")


def test_hostile_json_is_damage() -> None:
    for text in (b"[" * 10**6, b'{"requires":' + b"[" * 10**5, b'{"a":1' + b"0" * 10**5 + b"}",
                 b'{"requires":["\xff"],"a":5}', b'{"requires":[],"a":5.0}',
                 b'{"requires":[],"a":1e400}', b'{"requires":[],"a":NaN}'):  # fmt: skip
        with pytest.raises(Damaged, match="is damaged"):
            decode_body(Kind.REF, text, Thing, "x")


_CLAIMS = """
import resource, sys
from tierstore.format.layout import LayoutBody
from tierstore.format.manifest import Manifest
from tierstore.format.sealed import Kind, decode_body
from tierstore.errors import Damaged
from tierstore.format.table import TableBody
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))  # a claim believed is 4 GiB and more
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
huge = b"\\xff\\xff\\xff\\xff"
def text(word): return bytes([0xa0 + len(word)]) + word.encode()
def one(*steps): return b"".join(b"\\x81" + text(key) + rest for key, rest in steps)
places = [b"", b"\\x81" + text("requires"), b"\\x82" + text("requires") + b"\\x90" + text("files"),
    b"\\x82" + text("requires") + b"\\x90" + text("unknown"),
    b"\\x82" + text("requires") + b"\\x90" + text("digests"),
    b"\\x82" + text("requires") + b"\\x90" + one(("files", b"\\x91"), ("tensors", b"\\x91"),
                                               ("shape", b""))[1:]]
for prefix in places:
    for tag in (b"\\xc6", b"\\xc9", b"\\xdb", b"\\xdd", b"\\xdf"):
        for tail in (b"", b"\\x01" * 64, b"\\x91" * 64, b"\\x80" * 64):
            for model in (Manifest, TableBody, LayoutBody):
                try:
                    decode_body(Kind.MANIFEST, prefix + tag + huge + tail, model, "x")
                except Damaged:
                    continue
                raise SystemExit(f"accepted {prefix + tag + huge + tail!r}")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_msgpack_headers_that_claim_four_giga_elements() -> None:
    """array32, map32, str32, bin32 and ext32 of 2^32-1: refused without room being made for them.

    The process may have 2 GiB in all; one list of that length would take 32.
    """
    done = subprocess.run(
        [sys.executable, "-c", _CLAIMS], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout
    grown = int(done.stdout) * (1 if sys.platform == "darwin" else 1024)
    assert grown < 16 * MIB, f"resident memory grew by {grown} bytes"
    assert resource.getrlimit(resource.RLIMIT_AS)[0] != 2 << 30


@given(
    st.recursive(
        st.none() | st.integers(-(2**63), 2**64 - 1) | st.binary() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_the_msgpack_by_hand_is_msgpack(value: object) -> None:
    """Holds the tests' own msgpack to the library, so that it can speak for the format."""
    assert msgspec.msgpack.decode(msgpack(value)) == value
    assert read_msgpack(msgspec.msgpack.encode(value)) == value
