"""Deltas between real fine-tunes and their base: stored bytes and speed, one thread, CPU time.

Input: every tensor of at least 64 KiB that training changed, of the fine-tunes of ``finetune.py``.
Contestants hold one tensor and its base at a time:

* ``ours``: the delta codec on the store's chunks of 4 MiB; the size counts whole frames with their
  base pieces. ``re-save``: the same chunks standalone, as a store without deltas keeps them.
* ``xor``: the published recipe: XOR with the base, exponents in one plane, signs and mantissas in
  byte planes of their own, each through zstd level 3. Reimplemented in numpy from its description,
  on whole tensors.
* ``zipnn``: its own delta (``delta_compressed_type="byte"``), on whole tensors.

Every decode is compared with the input. Run: ``python -m benchmarks.bench_delta [--rounds 5]
[--only bf16] [--runs all-40 ...]``
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from typing import Any, Protocol

import numpy as np
import zstandard

from benchmarks.bench_codec import BLOCK, CHUNK, LARGEST, Part, Totals, ZipNN, cpu_of, read
from benchmarks.common import paired_ratio, show, target, write_results
from benchmarks.data import dataset
from benchmarks.finetune import RUNS, tuned
from tierstore.codecs import DELTA, decode, encode
from tierstore.format.frame import BasePiece, build_head
from tierstore.format.safetensors import header_length, parse_header

LEAST = 64 << 10
WORDS: dict[str, np.dtype[Any]] = {"BF16": np.dtype("<u2"), "F32": np.dtype("<u4")}
BYTES = {"bf16": 0.85, "f32": 0.97}
ENCODE, DECODE = 1.9, 1.0

Array = np.ndarray[Any, Any]


class Contestant(Protocol):
    """Encodes one tensor against its base."""

    def load(self, part: Part, base: Part) -> None: ...

    def encode(self) -> tuple[float, int]:
        """CPU seconds, stored bytes."""
        ...

    def decode(self) -> float:
        """CPU seconds."""
        ...


class Ours:
    """The store's codec, chunk by chunk, with or without a base."""

    def __init__(self, *, delta: bool) -> None:
        self.delta = delta

    def load(self, part: Part, base: Part) -> None:
        self.plain, self.dtype = read(part), part[3]
        plain, below = memoryview(self.plain), memoryview(read(base))
        starts = range(0, len(plain), CHUNK)
        self.chunks = [plain[at : at + CHUNK] for at in starts]
        self.bases = [below[at : at + CHUNK] if self.delta else None for at in starts]

    def encode(self) -> tuple[float, int]:
        pairs = list(zip(self.chunks, self.bases, strict=True))
        seconds, self.stored = cpu_of(
            lambda: [encode(c, self.dtype, block_size=BLOCK, base=base) for c, base in pairs]
        )
        size = 0
        for chunk, e in zip(self.chunks, self.stored, strict=True):
            head = build_head(
                digest=bytes(32), codec=e.codec, dtype=self.dtype, plain=chunk,
                codec_head=e.head, ends=e.ends, payload=e.payload,
                bases=[BasePiece(bytes(32), 0, len(chunk))] if e.codec == DELTA else (),
            )  # fmt: skip
            size += len(head) + len(e.payload)
        return seconds, size

    def decode(self) -> float:
        out = np.empty(len(self.plain), np.uint8)

        def every() -> None:
            at = 0
            for chunk, base, e in zip(self.chunks, self.bases, self.stored, strict=True):
                into = out.data[at : at + len(chunk)]
                form = (e.codec, e.head, e.ends, e.payload, into, self.dtype)
                decode(*form, block_size=BLOCK, base=base)
                at += len(chunk)

        seconds, _ = cpu_of(every)
        assert out.tobytes() == self.plain
        return seconds


class Xor:
    """XOR, planes, zstd 3."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=3)
        self.decompressor = zstandard.ZstdDecompressor()

    def load(self, part: Part, base: Part) -> None:
        self.plain, self.word = read(part), WORDS[part[3]]
        self.new = np.frombuffer(self.plain, self.word)
        self.old = np.frombuffer(read(base), self.word)

    def encode(self) -> tuple[float, int]:
        seconds, self.stored = cpu_of(self._encode)
        return seconds, sum(map(len, self.stored))

    def _encode(self) -> list[bytes]:
        bits = self.new ^ self.old
        top = self.word.type(8 * self.word.itemsize - 1)
        turned = bits << self.word.type(1) | bits >> top  # the exponent fills the top byte
        planes = turned.view(np.uint8).reshape(-1, self.word.itemsize)
        every = range(self.word.itemsize)
        return [self.compressor.compress(np.ascontiguousarray(planes[:, p]).data) for p in every]

    def decode(self) -> float:
        seconds, plain = cpu_of(self._decode)
        assert plain.tobytes() == self.plain
        return seconds

    def _decode(self) -> Array:
        planes = np.empty((len(self.new), self.word.itemsize), np.uint8)
        for number, stored in enumerate(self.stored):
            planes[:, number] = np.frombuffer(self.decompressor.decompress(stored), np.uint8)
        turned = planes.view(self.word).ravel()
        top = self.word.type(8 * self.word.itemsize - 1)
        return (turned >> self.word.type(1) | turned << top) ^ self.old


class ZipNNDelta:
    """zipnn's delta, in its own environment."""

    def __init__(self) -> None:
        self.worker = ZipNN(LARGEST)
        self.load = self.worker.load_against
        self.encode = self.worker.encode
        self.decode = self.worker.decode


def pairs(run: str, dtype: str) -> list[tuple[Part, Part]]:
    """The tensors of a fine-tune that differ from the base's, beside those."""
    tensors = []
    for path in (tuned(run, dtype), dataset(f"minilm-{dtype}")):
        with path.open("rb") as file:
            first = file.read(8)
            header = parse_header(first + file.read(header_length(first)), path.stat().st_size)
        data = len(header.raw)
        tensors.append(
            {t.name: (path, data + t.begin, data + t.end, t.dtype) for t in header.tensors}
        )
    new, old = tensors
    return [
        (new[name], old[name])
        for name in new
        if new[name][3] in WORDS
        and new[name][2] - new[name][1] >= LEAST
        and read(new[name]) != read(old[name])
    ]


def measure(
    contestants: dict[str, Contestant], work: list[tuple[Part, Part]], rounds: int
) -> dict[str, Totals]:
    """Every pair through every contestant, in turns; one uncounted round first."""
    totals: dict[str, Totals] = defaultdict(lambda: Totals(rounds))
    for part, base in work:
        for contestant in contestants.values():
            contestant.load(part, base)
        for number in range(-1, rounds):
            order = list(contestants.items())
            for name, contestant in order if number % 2 == 0 else reversed(order):
                encoding, stored = contestant.encode()
                decoding = contestant.decode()
                if number >= 0:
                    totals[name].encode[number] += encoding
                    totals[name].decode[number] += decoding
                if number == 0:
                    totals[name].stored += stored
    return totals


def report(run: str, dtype: str, totals: dict[str, Totals], plain: int) -> dict[str, Any]:
    ours, xor = totals["ours"], totals["xor"]
    numbers = {
        name: {
            "ratio": t.stored / plain,
            "encode_mb_s": plain / 1e6 / statistics.median(t.encode),
            "decode_mb_s": plain / 1e6 / statistics.median(t.decode),
        }
        for name, t in totals.items()
    }
    show(
        f"{run}, {dtype}: {plain / 1e6:.0f} MB that changed, one thread, CPU time",
        ("contestant", "stored/plain", "encode MB/s", "decode MB/s"),
        [(name, *row.values()) for name, row in numbers.items()],
    )
    against = {
        "bytes": ours.stored / xor.stored,
        "encode_times": paired_ratio(xor.encode, ours.encode),
        "decode_times": paired_ratio(xor.decode, ours.decode),
    }
    show(
        f"{run}, {dtype}: ours against xor",
        ("bytes", "encode times", "decode times"),
        [(
            target(against["bytes"], "<=", BYTES[dtype]),
            target(against["encode_times"], ">=", ENCODE),
            target(against["decode_times"], ">=", DECODE),
        )],
    )  # fmt: skip
    return {"plain_bytes": plain, "contestants": numbers, "ours_against_xor": against}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=tuple(BYTES))
    parser.add_argument("--runs", nargs="+", choices=tuple(RUNS),
                        default=["all-40", "all-300", "last-40", "last-300"])  # fmt: skip
    args = parser.parse_args()
    contestants: dict[str, Contestant] = {
        "ours": Ours(delta=True),
        "xor": Xor(),
        "zipnn": ZipNNDelta(),
        "re-save": Ours(delta=False),
    }
    results: dict[str, Any] = {}
    for run in args.runs:
        for dtype in [args.only] if args.only else BYTES:
            work = pairs(run, dtype)
            plain = sum(end - begin for (_, begin, end, _), _ in work)
            totals = measure(contestants, work, args.rounds)
            results[f"{run}-{dtype}"] = report(run, dtype, totals, plain)
    write_results("delta", results)


if __name__ == "__main__":
    main()
