"""Reading tensors onto a device: into one staging buffer while the other one is copied."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from tierstore.modelstore.chunks.plan import batches
from tierstore.modelstore.loading.arrays import typed_torch
from tierstore.modelstore.loading.shards import Shard, Strip, StripRead, read_strips
from tierstore.modelstore.loading.tensor import Tensor

WINDOW_BYTES = 64 << 20
"""Size of each of the two staging buffers, in bytes."""


class _Stage:
    """A staging buffer; for a CUDA device it is pinned, and copies do not block."""

    def __init__(self, nbytes: int, device: torch.device) -> None:
        self._device = device
        self._cuda = device.type == "cuda"
        self._plain = torch.empty(nbytes, dtype=torch.uint8, pin_memory=self._cuda)
        self.host = self._plain.numpy().data
        self._copied: torch.cuda.Event | None = None

    def free(self) -> None:
        """Wait until all copies from the buffer are done."""
        if self._copied is not None:
            self._copied.synchronize()

    def copy(self, start: int, stop: int, target: torch.Tensor) -> None:
        """Copy the bytes [start, stop) of the buffer to ``target``, which has the same length."""
        target.copy_(self._plain[start:stop], non_blocking=self._cuda)

    def mark(self) -> None:
        """Mark the end of the copies that ``free`` waits for."""
        if self._cuda:
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record(torch.cuda.current_stream(self._device))


def upload(
    shards: Mapping[str, tuple[Tensor, Shard]],
    device: torch.device,
    window_bytes: int = WINDOW_BYTES,
) -> dict[str, torch.Tensor]:
    """Read tensors of one version, or parts of them, onto ``device``.

    Args:
        shards: Tensors and the parts to read, by name of the result.
        device: Device of torch to put them on.
        window_bytes: Size of each staging buffer, in bytes.
    """
    plain: dict[str, torch.Tensor] = {}
    todo: list[tuple[str, int, Strip]] = []
    for name, (_, shard) in shards.items():
        plain[name] = torch.empty(shard.strip.nbytes, dtype=torch.uint8, device=device)
        at = 0
        for strip in shard.strip.split(window_bytes):
            todo.append((name, at, strip))
            at += strip.nbytes
    stages = [_Stage(window_bytes, device) for _ in range(min(2, len(todo)))]
    with torch.no_grad():
        for number, group in enumerate(batches(todo, lambda one: one[2].nbytes, window_bytes)):
            _move(group, shards, stages[number % 2], plain)
    for stage in stages:
        stage.free()
    return {
        name: typed_torch(plain[name], tensor.dtype, shard.shape)
        for name, (tensor, shard) in shards.items()
    }


def _move(
    group: list[tuple[str, int, Strip]],
    shards: Mapping[str, tuple[Tensor, Shard]],
    stage: _Stage,
    plain: Mapping[str, torch.Tensor],
) -> None:
    stage.free()
    reads, start = [], 0
    for name, _, strip in group:
        out = stage.host[start : start + strip.nbytes]
        reads.append(StripRead(shards[name][0], strip, out))
        start += strip.nbytes
    read_strips(reads)
    start = 0
    for name, at, strip in group:
        stage.copy(start, start + strip.nbytes, plain[name][at : at + strip.nbytes])
        start += strip.nbytes
    stage.mark()
