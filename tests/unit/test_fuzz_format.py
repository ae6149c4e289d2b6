"""Every parser of stored bytes on damaged and hostile input.

Each case mutates a valid object; in about two of three the checksums are made to fit again, so that
what lies behind them is reached. Only the errors of the format may come out, within a limit on the
process's memory, and what is accepted must be usable and, where the tests have a reader of their
own, be accepted by that too. A failure prints how to run its case alone.

``FUZZ_SEED`` chooses other mutations, ``FUZZ_FACTOR`` how many times as many cases are run.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
import resource
import struct
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit import format_by_hand as hand
from tierstore import codecs
from tierstore.errors import Damaged, InvalidSafetensors, UnsupportedFormat
from tierstore.format.condemned import EarlyCondemned
from tierstore.format.frame import FrameHead, build_head, frame_payload, parse_frame_head
from tierstore.format.heat import heat_entries, parse_heat
from tierstore.format.layout import (
    Fold,
    Move,
    parse_layout,
    parse_mark,
)
from tierstore.format.manifest import parse_manifest, pieces
from tierstore.format.pack import PackBuilder, Trailer, check_header, parse_index, parse_trailer
from tierstore.format.reflog import Hint, Lease, parse_entry
from tierstore.format.safetensors import parse_header
from tierstore.format.sealed import Body, Kind, unseal, unseal_body
from tierstore.format.segments import parse_any_segment
from tierstore.format.storeconfig import parse_config
from tierstore.format.table import ChunkTable
from tierstore.format.tiers import MoverLease, Pin, parse_tiers
from tierstore.ids import Digest

SEED = int(os.environ.get("FUZZ_SEED", "1"))
FACTOR = float(os.environ.get("FUZZ_FACTOR", "1"))
MIB = 1 << 20
ADDRESS_SPACE = 512 * MIB
"""What one parser may ask for, all told: no case claims more than this within the limits."""

TRACED = 64
"""Every 64th case is run under tracemalloc, with the bound of its target."""

FORMAT_ERRORS = (Damaged, UnsupportedFormat)
Parse = Callable[[bytes], object]


@dataclass(frozen=True)
class Target:
    """One parser.

    Attributes:
        parse: what is tried.
        seeds: valid inputs, or nearly.
        fix: makes the checksums and lengths of a mutated input fit again.
        cases: how many are run.
        tokens: what the form that is parsed is made of.
        tree: a valid value and how it is written; its parts are replaced in every other case.
        errors: what may come out.
        peak: bytes that one call may allocate, and per byte of input.
    """

    parse: Parse
    seeds: list[bytes]
    cases: int
    fix: Callable[[bytearray], None] | None = None
    tokens: tuple[bytes, ...] = ()
    tree: tuple[Any, Callable[[Any], bytes]] | None = None
    errors: tuple[type[Exception], ...] = FORMAT_ERRORS
    peak: tuple[int, int] = (MIB, 200)


NUMBERS = [
    0, 1, 2, 3, 31, 32, 63, 64, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**16, 2**20, 2**24,
    2**24 + 1, 2**29, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1,
]  # fmt: skip
JSON_TOKENS = (
    b'"', b"{", b"}", b"[", b"]", b":", b",", b"null", b"true", b"-1", b"-0", b"1e9", b"0.5",
    b"1" * 25, b"1" * 5000, b"\\", b"\\u0000", b"\\ud800", b"\xff", b"[" * 2000, b'{"a":' * 2000,
    b" " * 50, b'"requires":["x"]', b'"F4"', b'"C64"', b'"shape":[]', b'"seq":1', b"[0,0]",
    b'"__metadata__":',
)  # fmt: skip
MSGPACK_TOKENS = (
    b"\xc0", b"\xc1", b"\xc4", b"\xca", b"\xcb", b"\xcf", b"\xd3", b"\xd9", b"\x80", b"\x90",
    b"\xc6\xff\xff\xff\xff", b"\xc9\xff\xff\xff\xff\x01", b"\xdb\xff\xff\xff\xff",
    b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdd\x00\x10\x00\x01", b"\x91" * 2000,
    b"\x81\xa1a" * 1000, b"\xff", b"\x7f", b"\xa8requires\x91\xa1x", b"\xa4cut\x01",
)  # fmt: skip


def mutate(rng: random.Random, target: Target) -> tuple[bytes, list[str]]:
    """A mutated seed, and what was done to it."""
    if target.tree and rng.random() < 0.5:
        return _mutate_tree(rng, *target.tree)
    data = bytearray(rng.choice(target.seeds))
    done = []
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 6))):
        done.append(_mutate_once(rng, data, target))
    if target.fix and rng.random() < 0.66:
        target.fix(data)
        done.append("fixed")
    return bytes(data), done


def _mutate_once(rng: random.Random, data: bytearray, target: Target) -> str:
    at = rng.randrange(len(data) + 1)
    if rng.random() < 0.5:  # heads are short and decide most
        at = min(at, rng.randrange(128))
    kind = rng.randrange(9)
    if kind == 0 and at < len(data):
        data[at] ^= 1 << rng.randrange(8)
        return f"flip bit at {at}"
    if kind == 1 and at < len(data):
        data[at] = rng.randrange(256)
        return f"set byte {at}"
    if kind == 2:
        del data[at:]
        return f"cut at {at}"
    if kind == 3:
        more = rng.randbytes(rng.choice((1, 2, 4, 8, 56, 300)))
        data[at:at] = more
        return f"insert {len(more)} at {at}"
    if kind == 4:
        stop = at + rng.choice((1, 2, 4, 8, 12, 32, 40))
        del data[at:stop]
        return f"delete {at}:{stop}"
    if kind in (5, 6):  # a length, a count or an offset
        size, order = rng.choice((1, 2, 4, 8)), rng.choice(("little", "big"))
        at -= at % rng.choice((1, size))
        number = (rng.choice(NUMBERS) + rng.choice((-1, 0, 0, 1))) % (1 << 8 * size)
        data[at : at + size] = number.to_bytes(size, order)  # type: ignore[arg-type]
        return f"{number} in {size} bytes at {at}"
    if kind == 7 and target.tokens:
        token = rng.choice(target.tokens)
        stop = at + rng.choice((0, 1, len(token)))
        data[at:stop] = token
        return f"{token[:30]!r} at {at}:{stop}"
    other = rng.choice(target.seeds)
    start = rng.randrange(len(other) + 1)
    part = other[start : start + rng.choice((1, 8, 32, 64, 1000))]
    data[at : at + rng.choice((0, len(part)))] = part
    return f"splice {len(part)} bytes to {at}"


def _mutate_tree(
    rng: random.Random, value: Any, dump: Callable[[Any], bytes]
) -> tuple[bytes, list[str]]:
    """Replace, repeat or remove one or two parts of a tree of dicts, lists and values."""
    value = copy.deepcopy(value)
    done = []
    for _ in range(rng.choice((1, 1, 2))):
        parent, key = rng.choice(list(_parts(value)))
        old = parent[key]
        choice = rng.randrange(8)
        if choice == 0:
            del parent[key]
        elif choice == 1 and isinstance(parent, list):
            parent.insert(key, copy.deepcopy(old))
        else:
            parent[key] = _other(rng, old, choice)
        done.append(f"{choice} of {key!r} below {str(parent)[:100]}")
    return dump(value), done


def _parts(value: Any) -> Iterator[tuple[Any, Any]]:
    for key in value if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _parts(value[key])


def _other(rng: random.Random, old: object, choice: int) -> object:
    """Something like ``old``, or nothing like it."""
    if isinstance(old, int) and choice < 7:
        number: int = rng.choice([*NUMBERS, old + 1, old - 1, -old - 1])
        return max(-(2**63), min(number, 2**64 - 1))  # what msgpack can write
    if isinstance(old, bytes) and old and choice < 7:
        data = bytearray(old)
        at = rng.randrange(len(data))
        if choice < 3:
            at -= at % 4
            data[at : at + 4] = rng.choice(NUMBERS).to_bytes(8, "little")[: len(data) - at][:4]
        elif choice < 5:
            data[at] = rng.randrange(256)
        else:
            data[at : at + rng.choice((1, 4, 8, 32))] = rng.randbytes(rng.choice((0, 4, 8, 32)))
        return bytes(data)
    if isinstance(old, str) and choice < 7:
        at = rng.randrange(len(old) + 1)
        odd = [
            "",
            "/",
            "..",
            "\0",
            "é",
            "e\u0301",
            "F4",
            "U8",
            "a" * 300,
            "\n",
            "C:",
            "full",
            "set",
        ]
        return old[:at] + rng.choice(odd) + old[at + rng.randrange(3) :]
    return copy.deepcopy(rng.choice([None, 0, -1, "", "x", [], {}, [0], ["x"], {"a": []}, old]))


@contextlib.contextmanager
def limited_memory() -> Iterator[None]:
    """An allocation far above any limit fails instead of succeeding unnoticed."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(statm.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ADDRESS_SPACE, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def run_case(name: str, target: Target, number: int) -> bool:
    """Run one case; whether it was accepted."""
    data, done = mutate(random.Random(f"{SEED}/{name}/{number}"), target)
    traced = number % TRACED == 0
    if traced:
        tracemalloc.start()
    try:
        target.parse(data)
        accepted = True
    except target.errors:
        accepted = False
    except BaseException as error:
        pytest.fail(
            f"{type(error).__name__}: {error}\nby the case run_case({name!r}, TARGETS[{name!r}], "
            f"{number}) with FUZZ_SEED={SEED}: {'; '.join(done)}\n"
            f"input ({len(data)} bytes): {data[:2000].hex()}"
        )
    finally:
        peak = tracemalloc.get_traced_memory()[1] if traced else 0
        tracemalloc.stop()
    allowed = target.peak[0] + target.peak[1] * len(data)
    assert peak <= allowed, (
        f"{peak} bytes allocated for {len(data)} (allowed: {allowed}) by case {number} of {name} "
        f"with FUZZ_SEED={SEED}: {'; '.join(done)}"
    )
    return accepted


# Frames: the head alone, and whole ones through the codecs.


def _fix_frame(data: bytearray) -> None:
    if len(data) < 88:
        return
    plain_bytes, n_base, codec_head_bytes = (
        struct.unpack_from(form, data, at)[0] for form, at in (("<I", 8), ("<H", 42), ("<H", 44))
    )
    block = 1 << min(data[40], 24)
    head = 88 + 12 * -(-plain_bytes // block) + 40 * n_base + codec_head_bytes
    if head > len(data):
        return
    payload = bytes(data[head:])
    struct.pack_into("<IQ", data, 12, min(len(payload), 2**32 - 1), hand.xxh3(payload))
    if plain_bytes:
        struct.pack_into("<I", data, 80 + 12 * (-(-plain_bytes // block) - 1), len(payload))
    struct.pack_into("<Q", data, head - 8, hand.xxh3(bytes(data[: head - 8])))


def _parse_frame(data: bytes) -> FrameHead:
    head = parse_frame_head(data, "x")
    ends = [head.block_payload(i).stop for i in range(len(head.ends))]
    assert all(0 <= end <= head.frame_bytes for end in ends)
    assert sum(len(head.block_plain(i)) for i in range(len(head.ends))) == head.plain_bytes
    frame_payload(head, data, "x")
    hand.read_frame(data)
    return head


BASE = np.random.default_rng(3).standard_normal(100_000, np.float32).tobytes()


def _decode_frame(data: bytes) -> None:
    head = parse_frame_head(data, "x")
    payload = frame_payload(head, data, "x")
    out = memoryview(bytearray(head.plain_bytes))
    base = None
    if head.bases:
        base = (BASE * (head.plain_bytes // len(BASE) + 1))[: head.plain_bytes]
    codecs.decode(
        head.codec, head.codec_head, head.ends, payload, out, head.dtype,
        block_size=head.block_size, base=base,
    )  # fmt: skip
    if head.ends:
        last = len(head.ends) - 1
        own, span = head.block_payload(last), head.block_plain(last)
        block = memoryview(bytearray(len(span)))
        codecs.decode_block(
            head.codec, head.codec_head, data[own.start : own.stop], block, head.dtype, index=last,
            block_size=head.block_size, base=None if base is None else base[span.start : span.stop],
        )  # fmt: skip
        assert block == out[span.start : span.stop]


def _plains() -> Iterator[tuple[str, bytes]]:
    rng = np.random.default_rng(5)
    normal = rng.standard_normal(35_000, np.float32)
    yield "BF16", (normal.view(np.uint32) >> 16).astype("<u2").tobytes()[:70_000]
    yield "F32", normal[:700].tobytes() + b"tail"[:3]
    yield "F64", normal[:300].astype(np.float64).tobytes()
    yield "F16", normal[:5_000].astype(np.float16).tobytes()
    yield "I8", (normal[:3_000] * 20).astype(np.int8).tobytes()
    yield "I32", np.arange(3_000, dtype="<i4").tobytes()
    yield "BOOL", (normal[:4_000] > 1.5).tobytes()
    yield "", b"some text, and again some text. " * 40
    yield "F4", bytes(3_000) + rng.bytes(100)
    yield "U8", rng.bytes(500)


def _encoded_frames() -> list[bytes]:
    found = []
    for dtype, plain in _plains():
        for base in (None, BASE[: len(plain)], plain[:-1] + b"\1"):
            one = codecs.encode(plain, dtype, block_size=1 << 16, base=base)
            delta = one.codec == codecs.DELTA
            found.append(
                hand.frame(
                    plain, dtype={"": 0, "F4": 50, "BF16": 17, "F32": 18, "F64": 19, "F16": 16,
                                  "I8": 3, "I32": 6, "BOOL": 1, "U8": 2}[dtype],
                    payload=bytes(one.payload), block_log2=16,
                    bases=[(bytes(32), 0, len(plain))] if delta else [],
                    codec_head=one.head, ends=list(one.ends), codec=one.codec,
                )
            )  # fmt: skip
    return found


# Sealed objects and their bodies.


def _fix_sealed(data: bytearray) -> None:
    if len(data) < 56:
        return
    body = bytes(data[56:])
    struct.pack_into("<QQ", data, 32, len(body), hand.xxh3(body))
    if data[6] == 0:
        struct.pack_into("<Q", data, 24, len(body))
    struct.pack_into("<Q", data, 48, hand.xxh3(bytes(data[:48])))


def _unseal(data: bytes) -> None:
    kind = Kind(data[4]) if len(data) > 4 and data[4] in {*Kind} else Kind.REF
    plain = unseal(kind, data, "x")
    assert hand.read_sealed(data) == (kind, plain)


def _body(kind: Kind, model: type[Body]) -> Parse:
    return lambda plain: unseal_body(kind, hand.sealed(kind, plain), model, "x")


ROWS = 3
TABLE = {
    "requires": [], "pack_ids": bytes(64), "pack_sizes": hand.u64(9000, 9000),
    "digests": bytes(range(96)), "packs": hand.u32(0, 1, 1), "offsets": hand.u32(64, 64, 900),
    "lengths": hand.u32(400, 436, 200), "heads": hand.u32(100, 100, 140),
    "plains": hand.u32(300, 336, 70), "codecs": b"\0\2\3", "base_starts": hand.u32(0, 0, 0, 2),
    "bases": bytes(range(64)),
}  # fmt: skip
PACK_TABLE = {key: value for key, value in TABLE.items() if not key.startswith("pack")} | {
    "offsets": hand.u32(64, 464, 900)
}
MANIFEST = Digest(bytes(32))
HEADER_FIELDS = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]},
    "é": {"dtype": "F4", "shape": [4], "data_offsets": [12, 14]},
    "none": {"dtype": "F32", "shape": [0, 7], "data_offsets": [14, 14]},
}  # fmt: skip


def _framed(fields: object) -> bytes:
    text = json.dumps(fields).encode()
    return len(text).to_bytes(8, "little") + text


HEADER = _framed(HEADER_FIELDS)
TENSORS = [
    {"name": "a", "dtype": "BF16", "shape": [2, 3], "begin": 0, "cut": 0, "chunks": bytes(32)},
    {"name": "é", "dtype": "F4", "shape": [4], "begin": 12, "cut": 0, "chunks": bytes(32)},
    {"name": "none", "dtype": "F32", "shape": [0, 7], "begin": 14, "cut": 0, "chunks": b""},
]
MANIFEST_FIELDS = {
    "requires": [], "kind": "full", "chunk_size": MIB, "hash": "blake3",
    "files": [
        {"path": "a/c.json", "size": MIB + 1, "sha256": bytes(32), "header": b"", "tensors": [],
         "chunks": bytes(64)},
        {"path": "model.safetensors", "size": len(HEADER) + 14, "sha256": bytes(32),
         "header": HEADER, "tensors": TENSORS, "chunks": b""},
    ],
    "lineage": [{"relation": "cast", "digest": bytes(32)}],
}  # fmt: skip
MANIFEST_PLAIN = hand.msgpack(MANIFEST_FIELDS)


def _use_table(table: ChunkTable) -> None:
    for place in table:
        found = table.find(place.digest)
        assert found is not None
        assert len(place.digest) == 32
        assert (
            64 <= place.offset < place.offset + place.head_bytes <= place.offset + place.frame_bytes
        )
        assert place.frame_bytes - place.head_bytes <= place.plain_bytes <= 16 * MIB
        assert len(place.pack) == 32
        assert all(len(base) == 32 for base in place.bases)
        assert bool(place.bases) == (place.codec == 3)


def _parse_index(index: bytes) -> None:
    header = hand.pack_header()
    trailer = Trailer(1100, len(index), ROWS, hand.b3(header + index))
    for place in parse_index(header, index, trailer, "x"):
        assert place.offset + place.frame_bytes <= 1100


def _parse_manifest(plain: bytes) -> None:
    manifest = parse_manifest(hand.sealed(1, plain), Digest(hand.b3(plain)), "x")
    for file in manifest.files:
        if not file.header:
            spans = [p.plain_bytes for p in pieces(file.chunks, file.size, manifest.chunk_size)]
            assert sum(spans) == file.size
        assert all(len(one.chunks) % 32 == 0 for one in file.tensors)


def _parse_entry(plain: bytes) -> None:
    entry = parse_entry(hand.sealed(6, plain), 7, "x")
    assert datetime.fromtimestamp(entry.time_us / 1e6, UTC)


def _parse_tiers(plain: bytes) -> None:
    body = parse_tiers(hand.sealed(10, plain), 7, "x")
    assert datetime.fromtimestamp(body.time_us / 1e6, UTC)
    for spec in body.tiers:
        assert 0 < spec.low <= spec.high <= 100
        assert spec.timeout_ms > 0
        assert spec.name != "home"


def _parse_heat(plain: bytes) -> None:
    body = parse_heat(hand.sealed(12, plain), "x")
    for (kind, key), score in heat_entries(body).items():
        assert kind in (0, 1)
        assert len(key) == 32
        assert abs(score) <= 1 << 15


def _parse_config(data: bytes) -> None:
    """With the checksum made to fit where the text is JSON at all."""
    with contextlib.suppress(ValueError, RecursionError):
        fields = json.loads(data)
        if isinstance(fields, dict) and fields.pop("check", None) is not None:
            compact = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
            data = json.dumps(fields | {"check": f"{hand.xxh3(compact):016x}"}).encode()
    parse_config(data, "x")


CONFIG = {
    "format": 1, "store_id": "00112233445566778899aabbccddeeff", "chunk_size": MIB,
    "hash": "blake3", "features": {"read": [], "write": [], "gc": []}, "tiers": [], "check": "0",
}  # fmt: skip
ENTRY = {
    "requires": [], "seq": 7, "write_id": "ab" * 16, "action": "rollback", "version": 3,
    "manifest": "cd" * 32, "previous": 6, "time_us": 1, "who": "w", "message": "", "tool": "t",
}  # fmt: skip
LEASE = {
    "requires": [], "id": "ab" * 16, "role": "reader", "who": "w", "host": "h", "pid": 1,
    "ttl_s": 60, "versions": ["cd" * 32],
}  # fmt: skip


TIERS = {
    "requires": [], "seq": 7, "write_id": "ab" * 16, "time_us": 1, "who": "w", "message": "",
    "tiers": [{
        "name": "warm", "role": "warm", "url": "file:///w", "size": 5, "high": 95, "low": 85,
        "timeout_ms": 9, "state": "draining", "options": {"a": "b"}, "prices": {"c": "1.5"},
    }],
}  # fmt: skip
PIN = {
    "requires": [], "version": "ab" * 32, "ref": "m@1", "roles": ["hot", "warm"], "until_us": 5,
    "who": "w",
}  # fmt: skip
MOVER = {
    "requires": [], "seq": 1, "id": "ab" * 16, "who": "w", "host": "h", "pid": 1, "ttl_s": 60,
    "done": False,
}  # fmt: skip
HEAT = {
    "requires": [], "node": "n", "half_life_s": 9, "landmark_us": 5, "offset_us": -5,
    "kinds": b"\0\1\1", "keys": bytes(64) + b"k" * 32, "scores": struct.pack("<3i", -1, 0, 1),
}  # fmt: skip


def _fix_sum(size: int) -> Callable[[bytearray], None]:
    def fix(data: bytearray) -> None:
        if len(data) >= size:
            struct.pack_into("<Q", data, size - 8, hand.xxh3(bytes(data[: size - 8])))

    return fix


def _fix_length(data: bytearray) -> None:
    if len(data) >= 8:
        data[:8] = (len(data) - 8).to_bytes(8, "little")


def _our_pack() -> bytes:
    builder = PackBuilder()
    head = build_head(
        digest=bytes(32), codec=0, dtype="", plain=b"abc", codec_head=b"", ends=[3], payload=b"abc"
    )
    builder.add(bytes(32), head + b"abc", len(head), 3, 0)
    return b"".join(builder.close()[1])


def _parse_pack(data: bytes) -> None:
    trailer = parse_trailer(data[-64:], len(data), "x")
    stop = trailer.index_offset + trailer.index_bytes
    parse_index(data[:64], data[trailer.index_offset : stop], trailer, "x")


def _as_json(value: object) -> bytes:
    return json.dumps(value).encode()


def _of_json(parse: Parse, cases: int, **fields: object) -> Target:
    return Target(parse, [_as_json(fields)], cases, tokens=JSON_TOKENS, tree=(fields, _as_json))


def _of_msgpack(parse: Parse, cases: int, **fields: object) -> Target:
    return Target(
        parse, [hand.msgpack(fields)], cases, tokens=MSGPACK_TOKENS, tree=(fields, hand.msgpack)
    )


SEALED_SEEDS = [
    hand.sealed(kind, body, encoding=encoding)
    for kind in range(1, 18)
    for encoding, body in ((0, MANIFEST_PLAIN[:200]), (1, MANIFEST_PLAIN), (0, b""))
]
ODD_FRAMES = [
    hand.frame(b""), hand.frame(),
    hand.frame(bytes(70_000), block_log2=16, codec=1, payload=b"ab", ends=[1, 2]),
    hand.frame(codec=3, dtype=17, bases=[(bytes(32), 0, 9), (bytes(32), 5, 7)], codec_head=b"t"),
]  # fmt: skip
DECODED = (80 * MIB, 200)
"""A chunk of 16 MiB, its base, and what a decoder stages."""

TARGETS = {
    "frame head": Target(_parse_frame, ODD_FRAMES, 60_000, _fix_frame),
    "frame decoded": Target(_decode_frame, _encoded_frames(), 120_000, _fix_frame, peak=DECODED),
    "pack": Target(_parse_pack, [_our_pack()], 10_000),
    "pack header": Target(
        lambda data: check_header(data, "x"), [hand.pack_header()], 10_000, _fix_sum(64)
    ),
    "pack trailer": Target(
        lambda data: parse_trailer(data, 264, "x"), [hand.pack_trailer(100, 100, 3, bytes(32))],
        20_000, _fix_sum(64),
    ),
    "pack index": _of_msgpack(_parse_index, 40_000, **PACK_TABLE),
    "envelope": Target(_unseal, SEALED_SEEDS, 60_000, _fix_sealed),
    "manifest": _of_msgpack(_parse_manifest, 60_000, **MANIFEST_FIELDS),
    "layout": _of_msgpack(
        lambda plain: _use_table(parse_layout(hand.sealed(2, plain), MANIFEST, "x")), 30_000,
        manifest=MANIFEST.raw, **TABLE,
    ),
    "segment": _of_msgpack(
        lambda plain: _use_table(parse_any_segment(hand.sealed(3, plain), "x").table), 30_000,
        replaces=bytes(range(32)), **TABLE,
    ),
    "entry": _of_json(_parse_entry, 30_000, **ENTRY),
    "fold": _of_json(_body(Kind.FOLD, Fold), 5_000, requires=[], patch="ab" * 32, full="cd" * 32),
    "move": _of_json(_body(Kind.MOVE, Move), 5_000, requires=[], pack="ab" * 32, into=["cd" * 32]),
    "hint": _of_json(_body(Kind.HINT, Hint), 5_000, requires=[], seq=3),
    "lease": _of_json(_body(Kind.LEASE, Lease), 10_000, **LEASE),
    "condemned": _of_json(
        _body(Kind.CONDEMNED, EarlyCondemned), 5_000, requires=[], run="r", packs=["ab" * 32]
    ),
    "tiers": _of_json(_parse_tiers, 15_000, **TIERS),
    "pin": _of_json(_body(Kind.PIN, Pin), 5_000, **PIN),
    "mover": _of_json(_body(Kind.MOVER, MoverLease), 5_000, **MOVER),
    "heat": _of_msgpack(_parse_heat, 15_000, **HEAT),
    "mark": _of_msgpack(
        lambda plain: parse_mark(hand.sealed(15, plain), b"p" * 32, "x"), 5_000,
        requires=[], pack=b"p" * 32, chunks=bytes(64), tiers=["home"], why="x", who="y", time_us=1,
    ),
    "config": _of_json(_parse_config, 20_000, **CONFIG),
    "safetensors header": Target(
        lambda data: parse_header(data, None), [HEADER], 60_000, _fix_length, JSON_TOKENS,
        (HEADER_FIELDS, _framed), (InvalidSafetensors,),
    ),
}  # fmt: skip


def test_the_run_is_large_enough() -> None:
    assert sum(target.cases for target in TARGETS.values()) >= 100_000


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_accepted(name: str) -> None:
    """A fuzzer whose seeds are refused at the door looks at nothing behind it."""
    for seed in TARGETS[name].seeds:
        TARGETS[name].parse(seed)


@pytest.mark.parametrize("name", TARGETS)
def test_mutations(name: str) -> None:
    target = TARGETS[name]
    cases = int(target.cases * FACTOR)
    with limited_memory():
        accepted = sum(run_case(name, target, number) for number in range(cases))
    print(f"{name}: {accepted} of {cases} accepted", file=sys.stderr)
    assert accepted < cases


def test_mutations_decoded_by_numpy_alone() -> None:
    """Slower by far, and the same answer as the native kernels: accepted or not, and the bytes."""
    target = TARGETS["frame decoded"]
    native = codecs.native_info().in_use
    with limited_memory():
        for number in range(int(3_000 * FACTOR)):
            codecs.use_native(False)
            try:
                accepted = run_case("frame decoded", target, number)
            finally:
                codecs.use_native(native)
            if native:
                assert run_case("frame decoded", target, number) == accepted, (
                    f"numpy {'accepted' if accepted else 'refused'} case {number} of 'frame "
                    f"decoded' with FUZZ_SEED={SEED}, the native kernels did not agree"
                )
