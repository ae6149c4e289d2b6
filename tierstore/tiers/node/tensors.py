"""Whole tensors from this node's chunk files: mapped, or copied where that costs less.

Files in their expected places are taken all at once, by the C extension where it was built. What it
leaves (a file from before the machine's last start, one of the wrong length, an error) is looked at
one by one, and so is every file where each process compares it first: what is trusted is then an
open file, not a name.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeAlias

from tierstore.deferred import np
from tierstore.format.checks import digest_of
from tierstore.ids import DIGEST_BYTES, split_digests
from tierstore.tiers.node import mapping
from tierstore.tiers.node.files import ChunkFiles

if TYPE_CHECKING:
    from tierstore.deferred import Bytes

MIN_MAPPED_BYTES = 128 << 10
"""The size from which tensors are mapped.

Copying a smaller one costs less than a mapping (measured; at 1 MiB five times as much).
"""

try:
    _native: Any = import_module("tierstore.tiers.node._chunkio")
except ImportError:  # not built: no compiler when tierstore was installed
    _native = None
_DONE, _UNCLEAR = 1, 2
_MAX_ERRORS = 3

Stored: TypeAlias = tuple[bytes, int]
"""A tensor: the digests of its chunks end to end, and its plain bytes."""

_log = logging.getLogger("tierstore.tiers")


class WholeTensors:
    """Takes tensors out of the files of one directory. Thread-safe.

    Args:
        name: The name of the tier, for the log.
        files: The chunk files.
        verify: Whether to compare every chunk with its digest at every use. Nothing is mapped then:
            a file may change under its mapping, after it was compared.
        reject: Called with the digest of a wrong chunk; removes it.
    """

    def __init__(
        self, name: str, files: ChunkFiles, verify: bool, reject: Callable[[bytes], None]
    ) -> None:
        self._name, self._files, self._verify, self._reject = name, files, verify, reject
        self._can_map = mapping.SUPPORTED

    def take(
        self, wanted: Sequence[Stored], chunk_size: int, errors: list[OSError]
    ) -> list[Bytes | None]:
        """Return one array for each tensor, or ``None``.

        It is ``None`` where a chunk is missing, or where the tensor is large and is not mapped
        (chunks that are not whole pages, too many mappings, not Linux, every use verified). Errors
        of the directory are added to ``errors``; after a few no more files are looked at.
        """
        for digests, nbytes in wanted:
            if len(digests) != DIGEST_BYTES * -(-nbytes // chunk_size):
                count = len(digests) // DIGEST_BYTES
                raise ValueError(f"{count} chunks of {chunk_size} are not {nbytes} bytes")
        found: list[Bytes | None] = [None] * len(wanted)
        try:
            for at in self._at_once(wanted, chunk_size, found):
                if len(errors) < _MAX_ERRORS:
                    found[at] = self._one(*wanted[at], chunk_size, errors)
        except mapping.MappingFailed as error:
            _log.warning("tier %s copies from now on: %s", self._name, error)
            self._can_map = False
        if self._verify:
            return [
                array if array is None or self._is_right(digests, chunk_size, array) else None
                for (digests, _), array in zip(wanted, found, strict=True)
            ]
        return found

    def _at_once(
        self, wanted: Sequence[Stored], chunk_size: int, found: list[Bytes | None]
    ) -> list[int]:
        """Take files in their expected places; return the numbers of the remaining tensors."""
        if _native is None or self._files.compare_first:
            return list(range(len(wanted)))
        unclear = []
        for by_map in (False, True):
            targets = {
                at: target
                for at, (_, nbytes) in enumerate(wanted)
                if (nbytes >= MIN_MAPPED_BYTES) == by_map
                and (target := self._target(nbytes, chunk_size)) is not None
            }
            if not targets:
                continue
            items = tuple((wanted[at][0], target) for at, target in targets.items())
            statuses = _native.fill(self._files.trusted, items, chunk_size, by_map)
            for (at, target), status in zip(targets.items(), statuses, strict=True):
                if status == _DONE:
                    found[at] = np.frombuffer(target, np.uint8) if by_map else target
                elif status < 0:
                    mapping.refused(target, -status)
                elif status == _UNCLEAR or self._files.has_old:
                    unclear.append(at)
        return unclear

    def _target(self, nbytes: int, chunk_size: int) -> Any:
        """Return memory for a tensor: an array, or reserved addresses; ``None`` without any."""
        if nbytes < MIN_MAPPED_BYTES:
            return np.empty(nbytes, np.uint8)
        if self._verify or not self._can_map or chunk_size % mapping.PAGE:
            return None
        return mapping.reserve(chunk_size, nbytes)

    def _one(
        self, digests: bytes, nbytes: int, chunk_size: int, errors: list[OSError]
    ) -> Bytes | None:
        target = self._target(nbytes, chunk_size)
        if target is None:
            return None
        array = np.frombuffer(target, np.uint8)
        every = split_digests(digests)
        try:
            if nbytes < MIN_MAPPED_BYTES:
                here = all(self._files.read_into(digest, array.data) for digest in every)
            else:
                here = mapping.map_files(
                    target, array, chunk_size, lambda at, size: self._files.open(every[at], size)
                )
        except OSError as error:
            errors.append(error)
            return None
        return array if here else None

    def _is_right(self, digests: bytes, chunk_size: int, array: Bytes) -> bool:
        for number, digest in enumerate(split_digests(digests)):
            begin = number * chunk_size
            if digest_of(array[begin : begin + chunk_size].data).raw != digest:
                self._reject(digest)
                return False
        return True
