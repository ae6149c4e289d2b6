"""What one save has found out so far."""

from __future__ import annotations

import mmap
import threading
from dataclasses import dataclass, field
from typing import NamedTuple

from tierstore.format.table import ChunkPlace
from tierstore.modelstore.saving.framing import Frame
from tierstore.modelstore.saving.source import SourceFile


@dataclass(frozen=True, slots=True)
class SourceChunk:
    """One chunk to be saved: ``length`` bytes at ``offset`` of a file, ``begin`` of a tensor."""

    file: SourceFile
    offset: int
    length: int
    dtype: str
    tensor: str = ""
    begin: int = 0


@dataclass(slots=True)
class Encoded:
    """What a worker made of a chunk; ``frame`` is ``None`` when the chunk is stored already."""

    digest: bytes
    frame: Frame | None


class Batch(NamedTuple):
    """What a worker made of chunks that were read together.

    Attributes:
        chunks: in their order.
        held: the buffers that their frames lie in.
    """

    chunks: list[Encoded]
    held: list[mmap.mmap]


@dataclass(slots=True)
class SaveState:
    """What a save has found out so far, shared by its threads under ``lock``."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    claimed: set[bytes] = field(default_factory=set)
    reused: dict[bytes, ChunkPlace] = field(default_factory=dict)
    reused_packs: dict[bytes, int] = field(default_factory=dict)
    gone: set[bytes] = field(default_factory=set)
    sources: dict[bytes, SourceChunk] = field(default_factory=dict)
    order: dict[bytes, None] = field(default_factory=dict)
