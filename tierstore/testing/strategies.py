"""Strategies of Hypothesis for all stored objects, valid by construction (format/SPEC.md)."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, get_args

import blake3
import msgspec
from hypothesis import strategies as st

from tierstore.codecs import CODECS
from tierstore.errors import InvalidName
from tierstore.format.dtypes import DTYPE_CODES, DTYPES
from tierstore.format.frame import BasePiece, build_head
from tierstore.format.manifest import (
    RELEASE_KIND,
    FileEntry,
    LineageEntry,
    Manifest,
    Member,
    TensorEntry,
)
from tierstore.format.paths import check_path
from tierstore.format.reflog import (
    FULL_SHARE,
    MAX_LEASE_S,
    REMOVALS,
    Action,
    Gate,
    Hint,
    Lease,
    RefEntry,
    Rollout,
    Summary,
)
from tierstore.format.safetensors import build_header
from tierstore.format.storeconfig import Features, StoreConfig
from tierstore.format.table import ChunkPlace
from tierstore.ids import check_name

MAX_SEQ = 999_999_999


_STANDALONE = [codec.id for codec in CODECS.values() if not codec.needs_base]
_WITH_BASES = [codec.id for codec in CODECS.values() if codec.needs_base]


@dataclass(frozen=True, slots=True)
class FrameParts:
    """The arguments of one call of ``build_head``."""

    fields: dict[str, Any]

    def build(self) -> tuple[bytes, int]:
        """Return the frame and the length of its head in bytes."""
        head = build_head(**self.fields)
        return head + bytes(self.fields["payload"]), len(head)


def noise(size: int) -> st.SearchStrategy[bytes]:
    """Draw ``size`` bytes, by a seed: large inputs cost Hypothesis nothing."""
    seeds = st.integers(0, 2**32 - 1)
    return seeds.map(lambda seed: random.Random(seed).randbytes(size) if seed else bytes(size))


def digests() -> st.SearchStrategy[bytes]:
    """Draw 32 bytes, sometimes the same ones again."""
    return st.one_of(noise(32), st.integers(0, 3).map(lambda n: bytes([n]) * 32))


def hexes(size: int) -> st.SearchStrategy[str]:
    """Draw ``size`` bytes as lower-case hex digits."""
    return noise(size).map(bytes.hex)


def chunk_sizes() -> st.SearchStrategy[int]:
    """Draw a chunk size that a store may have."""
    return st.integers(20, 24).map(lambda log2: 1 << log2)


@st.composite
def _parts_of(draw: st.DrawFn, total: int, count: int) -> list[int]:
    """Draw ``count`` lengths that add up to ``total``, zeros among them."""
    cuts = sorted(draw(st.lists(st.integers(0, total), min_size=count - 1, max_size=count - 1)))
    return [b - a for a, b in zip([0, *cuts], [*cuts, total], strict=True)]


@st.composite
def frames(draw: st.DrawFn) -> FrameParts:
    """Draw frames of every codec, dtype and shape, with any payload that the format allows."""
    log2 = draw(st.integers(16, 18))
    edges = [0, 1, 7, (1 << log2) - 1, 1 << log2, (1 << log2) + 1]
    size = draw(st.one_of(st.sampled_from(edges), st.integers(0, 3 << log2)))
    plain = draw(noise(size))
    codec = draw(st.sampled_from([*_STANDALONE, *_WITH_BASES] if size else _STANDALONE))
    blocks = -(-size // (1 << log2))
    payload = draw(noise(draw(st.integers(0, size))))
    ends = list(accumulate(draw(_parts_of(len(payload), blocks)))) if blocks else []
    bases: list[BasePiece] = []
    if codec in _WITH_BASES:
        lengths = draw(_parts_of(size, draw(st.integers(1, 5))))
        offsets = st.integers(0, 2**32 - 1)
        bases = [BasePiece(draw(digests()), draw(offsets), length) for length in lengths]
    return FrameParts(
        {
            "digest": blake3.blake3(plain).digest(),
            "codec": codec,
            "dtype": draw(st.sampled_from(sorted(DTYPE_CODES))),
            "plain": plain,
            "codec_head": draw(noise(draw(st.sampled_from([0, 1, 100, 32 << 10])))),
            "ends": ends,
            "payload": payload,
            "block_log2": log2,
            "bases": bases,
        }
    )


@dataclass(frozen=True, slots=True)
class PackFrame:
    """The arguments of one call of ``PackBuilder.add``."""

    digest: bytes
    frame: bytes
    head: int
    plain: int
    codec: int
    bases: tuple[bytes, ...]
    proof: bytes = b""


@st.composite
def pack_frames(draw: st.DrawFn) -> list[PackFrame]:
    """Draw the frames of one pack: one to six, of few bytes and different digests."""
    found: dict[bytes, PackFrame] = {}
    for number in range(draw(st.integers(1, 6))):
        plain = bytes([number]) + draw(noise(draw(st.integers(0, 40))))
        digest = blake3.blake3(plain).digest()
        bases = tuple(draw(st.lists(digests(), max_size=3)))
        codec = draw(st.sampled_from(_WITH_BASES if bases else _STANDALONE))
        pieces = [BasePiece(base, 0, 0) for base in bases]
        if pieces:
            pieces[0] = BasePiece(bases[0], 0, len(plain))
        head = build_head(
            digest=digest,
            codec=codec,
            dtype="U8",
            plain=plain,
            codec_head=b"",
            ends=[len(plain)],
            payload=plain,
            bases=pieces,
        )
        proof = draw(noise(32 * draw(st.sampled_from([0, 2, 16, 256]))))
        frame = (digest, head + plain, len(head), len(plain), codec)
        found[digest] = PackFrame(*frame, bases, proof)
    return list(found.values())


@st.composite
def places(draw: st.DrawFn) -> tuple[list[ChunkPlace], dict[bytes, int]]:
    """Draw the rows of a layout or an index segment, and the sizes of their packs."""
    packs = draw(st.lists(noise(32), max_size=4, unique=True))
    found: dict[bytes, ChunkPlace] = {}
    sizes = dict.fromkeys(packs, 128)
    for _ in range(draw(st.integers(0, 8)) if packs else 0):
        digest, pack = draw(noise(32)), draw(st.sampled_from(packs))
        bases = tuple(draw(st.lists(digests(), max_size=3)))
        plain = draw(st.integers(0, 16 << 20))
        head = draw(st.integers(88, 70000))
        length = head + draw(st.integers(0, plain))
        offset = draw(st.integers(64, 128 << 20))
        codec = draw(st.sampled_from(_WITH_BASES if bases else _STANDALONE))
        proof = draw(st.sampled_from([0, 0, 164, 612])) if offset >= 64 + 612 else 0
        place = (digest, pack, offset, length, head, plain, codec)
        found[digest] = ChunkPlace(*place, bases, proof)
        sizes[pack] = max(sizes[pack], offset + length + draw(st.integers(0, 100)))
    return list(found.values()), sizes


def names() -> st.SearchStrategy[str]:
    """Draw names of models and aliases that ``check_name`` accepts."""
    text = st.text(st.characters(exclude_categories=["Cs", "Cc", "Cn"]), min_size=1, max_size=30)
    odd = st.sampled_from(["org/model", ".hidden", "~", "a b", "é", "模型", "100%", "%2E", "A_-."])
    return st.one_of(odd, text).map(_or_none(lambda name: check_name("model", name))).filter(bool)


def paths() -> st.SearchStrategy[str]:
    """Draw paths of files within a version."""
    part = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
    return (
        st.lists(part, min_size=1, max_size=3).map("/".join).map(_or_none(check_path)).filter(bool)
    )


def _or_none(check: Any) -> Any:
    def checked(text: str) -> str | None:
        try:
            return str(check(text))
        except InvalidName:
            return None

    return checked


@st.composite
def _tensor_file(draw: st.DrawFn, path: str, chunk_size: int) -> FileEntry:
    specs = draw(
        st.dictionaries(
            st.text(max_size=10).filter(lambda name: name != "__metadata__"),
            st.tuples(
                st.sampled_from(list(DTYPES)),
                # a multiple of eight elements, or none, is whole bytes of every dtype
                st.lists(st.integers(0, 4), max_size=3).map(lambda shape: (8, *shape)),
            ),
            max_size=5,
        )
    )
    if draw(st.booleans()):
        specs["large"] = ("U8", (draw(st.integers(1, 3)) * chunk_size + 1,))
    metadata = draw(st.none() | st.dictionaries(st.text(max_size=5), st.text(max_size=5)))
    header = build_header([(name, *spec) for name, spec in specs.items()], metadata)
    tensors = tuple(
        TensorEntry(
            name=info.name,
            dtype=info.dtype,
            shape=info.shape,
            begin=info.begin,
            chunks=draw(noise(32 * -(-(info.end - info.begin) // chunk_size))),
        )
        for info in header.tensors
    )
    size = len(header.raw) + header.data_size
    sha = draw(noise(32))
    return FileEntry(path=path, size=size, sha256=sha, header=header.raw, tensors=tensors)


@st.composite
def _releases(draw: st.DrawFn, chunk_size: int) -> Manifest:
    models = sorted(draw(st.sets(st.text(min_size=1, max_size=8), min_size=1, max_size=4)))
    members = tuple(
        Member(model=model, version=draw(st.integers(1, MAX_SEQ)), manifest=draw(noise(32)))
        for model in models
    )
    return Manifest(kind=RELEASE_KIND, chunk_size=chunk_size, files=(), members=members)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    """Draw manifests of safetensors files and others, with lineage, and of releases."""
    chunk_size = draw(chunk_sizes())
    files = []
    chosen = draw(st.sets(paths(), max_size=4))
    # a file cannot be another one's folder
    chosen = {path for path in chosen if not any(o.startswith(f"{path}/") for o in chosen)}
    for path in sorted(chosen):
        if draw(st.booleans()):
            files.append(draw(_tensor_file(path, chunk_size)))
            continue
        size = draw(st.sampled_from([0, 1, chunk_size, chunk_size + 1, 5 * chunk_size - 1]))
        chunks = draw(noise(32 * -(-size // chunk_size)))
        files.append(FileEntry(path=path, size=size, sha256=draw(noise(32)), chunks=chunks))
    if not files and draw(st.booleans()):
        return draw(_releases(chunk_size))
    lineage = draw(st.lists(st.builds(LineageEntry, relation=st.text(), digest=noise(32))))
    return Manifest(chunk_size=chunk_size, files=tuple(files), lineage=tuple(lineage))


@st.composite
def ref_entries(draw: st.DrawFn) -> RefEntry:
    """Draw entries of a ref log, of every action."""
    action = draw(st.sampled_from(get_args(Action)))
    seq = draw(st.integers(1, MAX_SEQ))
    removed = action in REMOVALS
    gone = removed or action == "remove"
    return RefEntry(
        seq=seq,
        write_id=draw(hexes(16)),
        action=action,
        version=None if gone else draw(st.integers(1, MAX_SEQ)),
        manifest=None if gone else draw(hexes(32)),
        previous=draw(st.none() | st.integers(1, seq - 1)) if seq > 1 else None,
        time_us=draw(st.integers(0, 2**57 - 1)),
        who=draw(st.text()),
        message=draw(st.text()),
        tool=draw(st.text()),
        rollout=None if gone else draw(st.none() | rollouts()),
        versions=sorted(draw(st.sets(st.integers(1, MAX_SEQ), min_size=1))) if removed else [],
        summary=msgspec.UNSET if gone else draw(st.just(msgspec.UNSET) | summaries()),
    )


def summaries() -> st.SearchStrategy[Summary]:
    """Draw summaries of versions of any size."""
    counts = st.integers(0, 2**63 - 1)
    return st.builds(Summary, bytes=counts, files=counts, tensors=counts)


@st.composite
def rollouts(draw: st.DrawFn) -> Rollout:
    """Draw rollouts of any form, in any of their stages."""
    shares = sorted(draw(st.sets(st.integers(1, FULL_SHARE - 1), max_size=6)))
    numbers = st.decimals(-(10**9), 10**9, places=3).map("{:f}".format)
    gate = st.builds(
        Gate,
        metric=st.text(min_size=1, max_size=20),
        op=st.sampled_from(("<=", ">=")),
        limit=numbers,
    )
    return Rollout(
        version=draw(st.integers(1, MAX_SEQ)),
        manifest=draw(hexes(32)),
        salt=draw(hexes(16)),
        stages=[*shares, FULL_SHARE],
        stage=draw(st.integers(0, len(shares))),
        every_s=draw(st.none() | st.integers(1, 10**6)),
        gates=draw(st.lists(gate, max_size=2)),
        labels=draw(st.dictionaries(st.text(), st.text(), max_size=2)),
        windows=draw(st.lists(st.just("22:00-06:30"), max_size=1)),
        paused=draw(st.booleans()),
    )


def hints() -> st.SearchStrategy[Hint]:
    """Draw hints of any sequence number."""
    return st.builds(Hint, seq=st.integers(1, MAX_SEQ))


def leases() -> st.SearchStrategy[Lease]:
    """Draw leases of writers and readers."""
    return st.builds(
        Lease,
        id=hexes(16),
        role=st.sampled_from(["writer", "reader"]),
        who=st.text(),
        host=st.text(),
        pid=st.integers(0, 2**22),
        ttl_s=st.integers(1, MAX_LEASE_S),
        versions=st.lists(hexes(32), max_size=3),
    )


def configs() -> st.SearchStrategy[StoreConfig]:
    """Draw configs that this version reads; features are left to ``check_features``."""
    listed = st.lists(st.text(max_size=8), max_size=2)
    return st.builds(
        StoreConfig,
        store_id=hexes(16),
        chunk_size=chunk_sizes(),
        features=st.builds(Features, read=listed, write=listed, gc=listed),
    )
