"""Codecs on one thread: stored ratio, and encoding and decoding speed by CPU time.

Input: every tensor of at least 1 MiB of all-MiniLM-L6-v2 in f32, bf16 and f16. Ours gets it as
the store cuts it, in chunks of 4 MiB, and its size counts the whole frame. zipnn gets whole tensors
(its best case) and also 4 MiB chunks; zstd gets whole tensors. Only the codec call is timed; the
result of every decode is compared with the input. ``memcpy`` copies between two buffers used
before, so page faults, which the others pay for their output, do not count against it.

Run: ``python -m benchmarks.bench_codec [--rounds 5] [--only bf16] [--peers]``
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import zstandard

from benchmarks.common import HERE, MIB, paired_ratio, show, target, write_results
from benchmarks.data import dataset
from tierstore.codecs import decode, encode
from tierstore.format.frame import BLOCK_LOG2, build_head
from tierstore.format.safetensors import Header, header_length, parse_header

CHUNK = 4 * MIB
BLOCK = 1 << BLOCK_LOG2
LARGEST = 1 << 40
ZIPNN_PYTHON = HERE / ".envs" / "zipnn" / "bin" / "python"
ZIPNN_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
TARGETS = {"bf16": (1.6, 2.0), "f32": (2.0, 1.8)}
RATIO_SLACK = 0.001
TWO_THREADS = 1.7
REPEATS = 6

Part = tuple[Path, int, int, str]


class Contestant(Protocol):
    """A codec that holds one tensor at a time."""

    def load(self, part: Part) -> None: ...

    def encode(self) -> tuple[float, int]:
        """CPU seconds, stored bytes."""
        ...

    def decode(self) -> float:
        """CPU seconds."""
        ...


def read(part: Part) -> bytes:
    path, begin, end, _ = part
    with path.open("rb") as file:
        file.seek(begin)
        return file.read(end - begin)


def cpu_of(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.thread_time()
    result = call()
    return time.thread_time() - start, result


class Ours:
    """tierstore.codecs, chunk by chunk.

    Decodes into a buffer that is new for every tensor, as a codec of whole tensors does, or with
    ``reuse`` into one of a chunk's size again and again, as one of 4 MiB pieces ends up doing.
    """

    def __init__(self, *, reuse: bool = False) -> None:
        self.reuse = bytearray(CHUNK) if reuse else None

    def load(self, part: Part) -> None:
        self.plain, self.dtype = read(part), part[3]
        view = memoryview(self.plain)
        self.chunks = [view[at : at + CHUNK] for at in range(0, len(view), CHUNK)]

    def encode(self) -> tuple[float, int]:
        seconds, self.stored = cpu_of(
            lambda: [encode(c, self.dtype, block_size=BLOCK) for c in self.chunks]
        )
        size = 0
        for chunk, e in zip(self.chunks, self.stored, strict=True):
            head = build_head(
                digest=bytes(32), codec=e.codec, dtype=self.dtype, plain=chunk,
                codec_head=e.head, ends=e.ends,
                payload=e.payload,
            )  # fmt: skip
            size += len(head) + len(e.payload)
        return seconds, size

    def decode_all(self) -> np.ndarray[Any, Any]:
        out = np.empty(len(self.plain), np.uint8)
        at = 0
        for chunk, e in zip(self.chunks, self.stored, strict=True):
            into = out.data[at : at + len(chunk)]
            decode(e.codec, e.head, e.ends, e.payload, into, self.dtype, block_size=BLOCK)
            at += len(chunk)
        return out

    def decode(self) -> float:
        if self.reuse is None:
            seconds, out = cpu_of(self.decode_all)
            assert out.tobytes() == self.plain
            return seconds
        total = 0.0
        for chunk, e in zip(self.chunks, self.stored, strict=True):
            into = memoryview(self.reuse)[: len(chunk)]
            form = (e.codec, e.head, e.ends, e.payload, into, self.dtype)
            seconds, _ = cpu_of(partial(decode, *form, block_size=BLOCK))
            assert into == chunk
            total += seconds
        return total


class Zstd:
    """libzstd on whole tensors, one thread."""

    def __init__(self, level: int) -> None:
        self.compressor = zstandard.ZstdCompressor(level=level)
        self.decompressor = zstandard.ZstdDecompressor()

    def load(self, part: Part) -> None:
        self.plain = read(part)

    def encode(self) -> tuple[float, int]:
        seconds, self.stored = cpu_of(lambda: self.compressor.compress(self.plain))
        return seconds, len(self.stored)

    def decode(self) -> float:
        seconds, plain = cpu_of(lambda: self.decompressor.decompress(self.stored))
        assert plain == self.plain
        return seconds


class Memcpy:
    """The C library's memcpy between two warm buffers: no codec decodes faster than this."""

    def load(self, part: Part) -> None:
        self.plain = read(part)
        self.out = ctypes.create_string_buffer(len(self.plain))
        ctypes.memmove(self.out, self.plain, len(self.plain))

    def encode(self) -> tuple[float, int]:
        return self.decode(), len(self.plain)

    def decode(self) -> float:
        return cpu_of(lambda: ctypes.memmove(self.out, self.plain, len(self.plain)))[0]


class ZipNN:
    """zipnn in its own environment, behind a pipe; it times itself."""

    def __init__(self, piece: int) -> None:
        self.piece = piece
        self.child = subprocess.Popen(
            [str(ZIPNN_PYTHON), str(HERE / "zipnn_worker.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        self.child.stdin.write(json.dumps(request) + "\n")
        self.child.stdin.flush()
        answer: dict[str, Any] = json.loads(self.child.stdout.readline())
        return answer

    def load(self, part: Part) -> None:
        self._load(part, None)

    def load_against(self, part: Part, base: Part) -> None:
        """Hold a tensor and the one that its delta refers to."""
        self._load(part, [str(base[0]), base[1], base[2]])

    def _load(self, part: Part, base: list[str | int] | None) -> None:
        path, begin, end, dtype = part
        request = {"load": [str(path), begin, end], "dtype": ZIPNN_DTYPES[dtype], "base": base}
        self._ask({**request, "piece": self.piece})

    def encode(self) -> tuple[float, int]:
        answer = self._ask({"encode": True})
        return answer["cpu"], answer["stored"]

    def decode(self) -> float:
        seconds: float = self._ask({"decode": True})["cpu"]
        return seconds


def parts(name: str) -> Iterator[Part]:
    """The tensors of at least 1 MiB of an input: path, first and last byte in the file, dtype."""
    path = dataset(name)
    with path.open("rb") as file:
        first = file.read(8)
        header: Header = parse_header(first + file.read(header_length(first)), path.stat().st_size)
    data = len(header.raw)
    for tensor in header.tensors:
        if tensor.end - tensor.begin >= MIB:
            yield path, data + tensor.begin, data + tensor.end, tensor.dtype


class Totals:
    """Sums over tensors, one per round, so that rounds can be compared pair by pair."""

    def __init__(self, rounds: int) -> None:
        self.encode = [0.0] * rounds
        self.decode = [0.0] * rounds
        self.stored = 0


def measure(
    contestants: dict[str, Contestant], tensors: list[Part], rounds: int
) -> dict[str, Totals]:
    """Every tensor through every contestant, in turns; one uncounted round first."""
    totals: dict[str, Totals] = defaultdict(lambda: Totals(rounds))
    for part in tensors:
        for contestant in contestants.values():
            contestant.load(part)
        for number in range(-1, rounds):
            order = list(contestants.items())
            for name, contestant in order if number % 2 == 0 else reversed(order):
                encode, stored = contestant.encode()
                decode = contestant.decode()
                if number >= 0:
                    totals[name].encode[number] += encode
                    totals[name].decode[number] += decode
                if number == 0:
                    totals[name].stored += stored
    return totals


def two_threads(tensors: list[Part], rounds: int) -> dict[str, float]:
    """How many times faster (by the wall clock) two threads encode and decode chunks than one."""
    chunks = []
    for part in tensors:
        one = Ours()
        one.load(part)
        chunks += [(chunk, one.dtype) for chunk in one.chunks]
    stored = [
        (encode(chunk, dtype), dtype, memoryview(bytearray(len(chunk)))) for chunk, dtype in chunks
    ]

    def wall(threads: int, call: Callable[..., Any], work: list[Any]) -> float:
        with ThreadPoolExecutor(threads) as pool:
            start = time.perf_counter()
            list(pool.map(lambda arguments: call(*arguments, block_size=BLOCK), work))
            return time.perf_counter() - start

    decoding = [(e.codec, e.head, e.ends, e.payload, out, dtype) for e, dtype, out in stored]
    # long enough that starting the threads does not count
    chunks, decoding = chunks * REPEATS, decoding * REPEATS
    jobs: dict[str, tuple[Callable[..., Any], list[Any]]] = {
        "encode": (encode, chunks),
        "decode": (decode, decoding),
    }
    return {
        what: statistics.median(wall(1, *job) / wall(2, *job) for _ in range(2 * rounds))
        for what, job in jobs.items()
    }


def report(dtype: str, totals: dict[str, Totals], plain: int) -> dict[str, dict[str, float]]:
    numbers = {
        name: {
            "ratio": t.stored / plain,
            "encode_mb_s": plain / 1e6 / statistics.median(t.encode),
            "decode_mb_s": plain / 1e6 / statistics.median(t.decode),
            "decode_of_memcpy": paired_ratio(totals["memcpy"].decode, t.decode),
        }
        for name, t in totals.items()
    }
    show(
        f"{dtype}: {plain / 1e6:.0f} MB, one thread, CPU time",
        ("codec", "stored/plain", "encode MB/s", "decode MB/s", "decode / memcpy"),
        [(name, *row.values()) for name, row in numbers.items()],
    )
    return numbers


def against(dtype: str, totals: dict[str, Totals], plain: int) -> dict[str, dict[str, float]]:
    """Ours to each of the others, like with like, with the targets beside zipnn's numbers."""
    rows, numbers = [], {}
    for name, other in totals.items():
        if name.startswith("ours") or name == "memcpy":
            continue
        ours = totals["ours 4 MiB" if name == "zipnn 4 MiB" else "ours"]
        ratio = (ours.stored - other.stored) / plain
        encode = paired_ratio(other.encode, ours.encode)
        decode = paired_ratio(other.decode, ours.decode)
        numbers[name] = {"ratio_minus": ratio, "encode_times": encode, "decode_times": decode}
        if name.startswith("zipnn") and dtype in TARGETS:
            wanted = TARGETS[dtype]
            shown = (
                target(ratio, "<=", RATIO_SLACK),
                target(encode, ">=", wanted[0]),
                target(decode, ">=", wanted[1]),
            )
        else:
            shown = (f"{ratio:+.4f}", f"{encode:.2f}", f"{decode:.2f}")
        rows.append((name, *shown))
    show(f"{dtype}: ours against", ("codec", "ratio minus", "encode times", "decode times"), rows)
    return numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("bf16", "f16", "f32"))
    parser.add_argument("--peers", action="store_true", help="leave ours out")
    args = parser.parse_args()
    contestants: dict[str, Contestant] = {}
    if not args.peers:
        contestants = {"ours": Ours(), "ours 4 MiB": Ours(reuse=True)}
    contestants |= {
        "zipnn": ZipNN(LARGEST),
        "zipnn 4 MiB": ZipNN(CHUNK),
        "zstd -1": Zstd(1),
        "zstd -3": Zstd(3),
        "memcpy": Memcpy(),
    }
    results: dict[str, Any] = {}
    for dtype in [args.only] if args.only else ["bf16", "f32", "f16"]:
        tensors = list(parts(f"minilm-{dtype}"))
        plain = sum(end - begin for _, begin, end, _ in tensors)
        totals = measure(contestants, tensors, args.rounds)
        results[dtype] = {"codecs": report(dtype, totals, plain)}
        if not args.peers:
            results[dtype]["ours_against"] = against(dtype, totals, plain)
            gains = two_threads(tensors, args.rounds)
            results[dtype]["two_threads"] = gains
            show(
                f"{dtype}: two threads against one, wall clock",
                ("what", "times"),
                [(what, target(gain, ">=", TWO_THREADS)) for what, gain in gains.items()],
            )
    write_results("codec-peers" if args.peers else "codec", results)


if __name__ == "__main__":
    main()
