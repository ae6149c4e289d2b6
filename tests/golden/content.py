"""What the golden stores hold, computed from SHAKE-256 alone, so that it is the same for ever.

No random generator of a library is used: their streams may change between releases.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tierstore.format.dtypes import DTYPES
from tierstore.format.safetensors import build_header

MIB = 1 << 20
CHUNK = MIB


def stream(seed: str, size: int) -> bytes:
    """``size`` bytes that follow from ``seed``."""
    return hashlib.shake_256(b"tierstore golden " + seed.encode()).digest(size)


def weights(seed: str, count: int) -> npt.NDArray[np.float32]:
    """``count`` float32 of a bell curve around 0; sums of bytes, so every bit is exact."""
    data = np.frombuffer(stream(seed, 8 * count), np.uint8).reshape(count, 8).astype(np.int32)
    return (data.sum(axis=1) - 1020).astype(np.float32) / np.float32(1 << 14)


def bf16(values: npt.NDArray[np.float32]) -> bytes:
    """The upper halves of float32 values."""
    return (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()


def sparse(seed: str, size: int) -> bytes:
    """``size`` bytes, one in about 500 not zero."""
    data = np.zeros(size, np.uint8)
    where = np.frombuffer(stream(seed, 4 * (size // 500)), "<u4") % size
    data[where] = np.frombuffer(stream(seed + "!", len(where)), np.uint8)
    return data.tobytes()


@dataclass(frozen=True)
class Tensor:
    """One tensor: its plain bytes and what they mean."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


def _every_dtype() -> dict[str, Tensor]:
    found = {}
    for name, row in DTYPES.items():
        data = stream(name, 600 * row.bits // 8)
        if name == "BOOL":
            data = bytes(byte & 1 for byte in data)
        found[f"every.{name}"] = Tensor(name, (3, 200), data)
    return found


def first_tensors() -> dict[str, Tensor]:
    """The tensors of the first version's main file."""
    normal = weights("normal", 60_000)
    return _every_dtype() | {
        "layer.weight": Tensor("BF16", (300, 200), bf16(normal)),
        "layer.half": Tensor("F16", (4000,), normal[:4000].astype("<f2").tobytes()),
        "layer.single": Tensor("F32", (2, 3001), normal[:6002].astype("<f4").tobytes()),
        "layer.double": Tensor("F64", (1500,), normal[:1500].astype("<f8").tobytes()),
        "table": Tensor("F32", (700, 1000), sparse("table", 2_800_000)),
        "ids": Tensor("I64", (5000,), np.arange(5000, dtype="<i8").tobytes()),
        "none": Tensor("F32", (0, 7), b""),
        "scalar": Tensor("F64", (), np.array(-0.0, "<f8").tobytes()),
        "one byte": Tensor("U8", (1,), b"\x07"),
        "": Tensor("U8", (2,), b"ab"),
        "a::b/c %2F ~": Tensor("I16", (2,), b"cdef"),
        "模型 🤖 \u0301": Tensor("U16", (1,), b"gh"),
        "with\0nul": Tensor("BOOL", (1,), b"\x01"),
    }


def second_tensors() -> dict[str, Tensor]:
    """The next version: one tensor differs in one of its chunks, one is new, one is gone."""
    tensors = first_tensors()
    table = bytearray(tensors["table"].data)
    table[2 * MIB + 5] ^= 255
    tensors["table"] = Tensor("F32", (700, 1000), bytes(table))
    tensors["new"] = Tensor("I8", (900,), stream("new", 900))
    del tensors["scalar"]
    return tensors


def file_of(tensors: dict[str, Tensor], metadata: dict[str, str] | None) -> bytes:
    """A safetensors file."""
    header = build_header([(name, t.dtype, t.shape) for name, t in tensors.items()], metadata)
    return header.raw + b"".join(tensors[info.name].data for info in header.tensors)


def directory(tensors: dict[str, Tensor]) -> dict[str, bytes]:
    """The files of a version, by path."""
    twin = {"layer.half": Tensor("U8", (3,), b"xyz")}
    return {
        "config.json": json.dumps({"layers": 1}).encode(),
        "empty.txt": b"",
        "nothing.safetensors": file_of({}, None),
        "model.safetensors": file_of(tensors, {"format": "pt", "é": "\n"}),
        "deeper/twin.safetensors": file_of(twin, None),
        "deeper/tokenizer é.txt": b"the quick brown fox jumps over the lazy dog\n" * 300,
    }


def delta_tensors() -> dict[str, Tensor]:
    """What lies in frames that were written by hand: a delta on two bases, and small blocks."""
    return {
        "fine-tuned": Tensor("BF16", (59_000,), bf16(delta_values())),
        "blocks": Tensor("U8", (200_000,), sparse("blocks", 200_000)),
        "raw": Tensor("U8", (500,), stream("raw", 500)),
    }


def delta_values() -> npt.NDArray[np.float32]:
    """``layer.weight`` from its row 5 on, up and down by less than one in a thousand."""
    base = weights("normal", 60_000)[1000:]
    step = np.float32(1) + weights("steps", 59_000) / np.float32(64)
    return base * step


def proven_tensors() -> dict[str, Tensor]:
    """Tensors of one to four blocks, each with and without bytes that are left over."""
    return {
        "two": Tensor("BF16", (140, 1000), bf16(weights("two", 140_000))),
        "four": Tensor("I8", (MIB,), sparse("four", MIB)),
        "five and more": Tensor("U8", (MIB + 262_145,), sparse("five", MIB + 262_145)),
        "one": Tensor("U8", (262_144,), sparse("one", 262_144)),
    }


def tuned_tensors() -> dict[str, Tensor]:
    """The next version, whose two blocks are a delta."""
    tensors = proven_tensors()
    step = np.float32(1) + weights("tuned", 140_000) / np.float32(256)
    values = weights("two", 140_000)
    return tensors | {"two": Tensor("BF16", (140, 1000), bf16(values * step))}


def small_tensors(seed: str) -> dict[str, Tensor]:
    """A small model of its own."""
    values = weights(seed, 6000)
    return {
        "w": Tensor("BF16", (60, 100), bf16(values)),
        "b": Tensor("F32", (100,), values[:100].astype("<f4").tobytes()),
        "text": Tensor("U8", (9000,), stream(seed, 90) * 100),
    }


def service_models() -> dict[str, list[dict[str, Tensor]]]:
    """The versions that the golden store of a store in service had, by model.

    Those of ``first`` share a tensor.
    """

    def tiny(seed: str) -> dict[str, Tensor]:
        return {"own": Tensor("U8", (4, 300), stream(f"service {seed}", 1200))}

    shared = {"shared": Tensor("U8", (900,), stream("service shared", 900))}
    return {
        "kept": [small_tensors("kept"), tiny("kept 2")],
        "gone": [tiny("gone")],
        "first": [tiny("first 1") | shared, tiny("first 2") | shared],
        "secret": [tiny("secret 1"), tiny("secret 2")],
    }


def service_versions() -> dict[str, dict[str, Tensor]]:
    """The versions that are left in it, by reference, but for the variant."""
    kept, first, secret = (service_models()[model] for model in ("kept", "first", "secret"))
    return {
        "kept@1": kept[0],
        "kept@2": kept[1],
        "first@2": first[1],
        "again@1": first[0],
        "secret@2": secret[1],
    }


def versions() -> dict[str, dict[str, bytes]]:
    """The files of every version that the golden store has, by reference."""

    def alone(tensors: dict[str, Tensor]) -> dict[str, bytes]:
        return {"model.safetensors": file_of(tensors, None)}

    return {
        "org/model@1": directory(first_tensors()),
        "org/model@2": directory(second_tensors()),
        "org/model@3": directory(first_tensors()),
        "by hand@1": alone(delta_tensors()),
        "moved@1": alone(small_tensors("moved")),
        "numpy@1": alone(small_tensors("numpy")),
    }


@dataclass(frozen=True)
class Change:
    """What a patch does to a tensor: units of ``data`` go to ``indices``, all of it without."""

    kind: str
    indices: tuple[int, ...]
    data: bytes


def patch_steps() -> list[dict[str, Change]]:
    """The patches of the golden store of patches, in order."""

    def rows(seed: str, indices: tuple[int, ...], width: int) -> Change:
        return Change("rows", indices, stream(seed, len(indices) * width))

    every = {
        f"every.{name}": Change("dense", (), stream(f"patched {name}", 600 * row.bits // 8))
        if at % 2
        else rows(f"rows {name}", (2, 0), 200 * row.bits // 8)
        for at, (name, row) in enumerate(DTYPES.items())
        if name != "BOOL"
    }
    return [
        {
            "table": rows("first", (699, 3, 262, 3, 524), 4000),  # 3 twice: the last one wins
            "layer.double": Change("elements", (1499, 0, 77), stream("doubles", 24)),
            "scalar": Change("elements", (0,), stream("scalar", 8)),
            "none": Change("rows", (), b""),
        },
        every,
        {"table": rows("third", (3, 4, 5), 4000), "ids": rows("ids", (4999,), 8)},
        {"a::b/c %2F ~": Change("dense", (), b"wxyz"), "table": rows("last", (0, 699), 4000)},
    ]


FOLDED_STEP = 3
"""After so many patches the golden store has a fold."""


def patch_states() -> list[dict[str, Tensor]]:
    """The tensors of every version of that store, by plain byte arithmetic."""
    states = [first_tensors()]
    for step in patch_steps():
        after = dict(states[-1])
        for name, change in step.items():
            data = bytearray(after[name].data)
            if change.kind == "dense":
                data[:] = change.data
            else:
                unit = len(change.data) // max(1, len(change.indices))
                for number, index in enumerate(change.indices):
                    part = change.data[number * unit : number * unit + unit]
                    data[index * unit : index * unit + unit] = part
            after[name] = Tensor(after[name].dtype, after[name].shape, bytes(data))
        states.append(after)
    return states


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def expected() -> dict[str, Any]:
    """SHA-256 of every file of every version."""
    files = versions() | {
        f"patched@{number}": {"model.safetensors": file_of(tensors, None)}
        for number, tensors in enumerate(patch_states(), 1)
    }
    for number, tensors in enumerate((proven_tensors(), tuned_tensors()), 1):
        files[f"proven@{number}"] = {"model.safetensors": file_of(tensors, None)}
    for number in (1, 2, 3):
        tensors = small_tensors(f"removed {number}")
        files[f"removed@{number}"] = {"model.safetensors": file_of(tensors, None)}
    files["quarantined@1"] = {"model.safetensors": file_of(small_tensors("quarantined"), None)}
    files |= {
        ref: {"model.safetensors": file_of(tensors, None)}
        for ref, tensors in service_versions().items()
    }
    return {
        ref: {path: sha256(data) for path, data in sorted(own.items())}
        for ref, own in files.items()
    }
