"""Runs in zipnn's own environment: times its calls on request, one line of JSON each way.

Only the codec call is timed, by this process' CPU clock, with one thread. zipnn may change the
buffer that it compresses, so each call gets a fresh copy, made outside the timing.

Requests: ``{"load": [path, begin, end], "dtype": "bfloat16", "piece": bytes per call}``, with
``"base": [path, begin, end]`` for deltas against it; ``{"encode": true}`` -> CPU seconds and stored
bytes; ``{"decode": true}`` -> CPU seconds (the result is compared with the input).
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from zipnn import ZipNN  # type: ignore[import-not-found]


def read(part: list[object]) -> bytes:
    path, begin, end = part
    with Path(str(path)).open("rb") as file:
        file.seek(int(str(begin)))
        return file.read(int(str(end)) - int(str(begin)))


class Worker:
    def load(
        self, part: list[object], dtype: str, piece: int, base: list[object] | None
    ) -> dict[str, float]:
        data = read(part)
        self.pieces = [data[at : at + piece] for at in range(0, len(data), piece)]
        self.bases: list[bytes | None] = [None] * len(self.pieces)
        if base is not None:
            below = read(base)
            self.bases = [below[at : at + piece] for at in range(0, len(data), piece)]
        self.codec = ZipNN(
            input_format="byte",
            bytearray_dtype=dtype,
            threads=1,
            delta_compressed_type="byte" if base else 0,
        )
        return {}

    def encode(self) -> dict[str, float]:
        seconds = 0.0
        self.stored = []
        for piece, base in zip(self.pieces, self.bases, strict=True):
            copy = bytearray(piece)
            below = None if base is None else bytearray(base)
            start = time.process_time()
            stored = self.codec.compress(copy, delta_second_data=below)
            seconds += time.process_time() - start
            self.stored.append(bytes(stored))
        return {"cpu": seconds, "stored": sum(map(len, self.stored))}

    def decode(self) -> dict[str, float]:
        seconds = 0.0
        for piece, stored, base in zip(self.pieces, self.stored, self.bases, strict=True):
            below = None if base is None else bytearray(base)
            start = time.process_time()
            plain = self.codec.decompress(stored, delta_second_data=below)
            seconds += time.process_time() - start
            if bytes(plain) != piece:
                raise SystemExit("zipnn did not give back what it was given")
        return {"cpu": seconds}


def main() -> None:
    # zipnn prints; only this program's answers may reach the pipe.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = Worker()
    for line in sys.stdin:
        request = json.loads(line)
        if "load" in request:
            answer = worker.load(
                request["load"], request["dtype"], request["piece"], request.get("base")
            )
        elif "encode" in request:
            answer = worker.encode()
        else:
            answer = worker.decode()
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
