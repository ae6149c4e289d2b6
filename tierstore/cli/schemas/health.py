"""What ``doctor --json`` prints; the rules are those of ``core``."""

from __future__ import annotations

from typing import Literal

from tierstore.cli.schemas.core import Schema
from tierstore.cli.schemas.tiers import ServerJson


class Kernels(Schema):
    """The native codec kernels; ``instructions`` is null where they were not built."""

    built: bool
    in_use: bool
    instructions: str | None


class StoreHealth(Schema):
    """The store as seen from here; ``clock_skew_seconds`` is the storage's clock minus ours.

    ``error`` says why the store could not be opened or written to; the rest is then null.
    """

    url: str
    format: int | None = None
    store_id: str | None = None
    chunk_bytes: int | None = None
    features: list[str] | None = None
    put_if_absent: bool | None = None
    clock_skew_seconds: float | None = None
    error: str | None = None


class DiskJson(Schema):
    """The file system below a directory; ``kind`` is such as ``ext4``, null if not known."""

    kind: str | None
    network: bool
    total_bytes: int
    free_bytes: int


class TierHealthJson(Schema):
    """A tier as this node finds it.

    ``error`` says why no object could be written to it and read back; ``disk`` is below a tier in a
    directory, ``servers`` are those of a cache, ``problems`` what is worth doing something about.
    """

    name: str
    role: Literal["hot", "shared", "warm", "cold"]
    url: str
    enabled: bool
    error: str | None
    disk: DiskJson | None
    servers: list[ServerJson]
    problems: list[str]


class Doctor(Schema):
    """What tierstore finds on this machine; a library that is not installed is null.

    ``native_parts`` are those beside the kernels, by module, and whether they were built.
    ``node_file`` is the tierstore.toml that is read, if there is one.
    """

    tierstore: str
    python: str
    platform: str
    kernels: Kernels
    native_parts: dict[str, bool]
    threads: int
    memory_limit_bytes: int
    cache_dir: str
    cache_writable: bool
    cache_bytes: int
    libraries: dict[str, str | None]
    optional_libraries: dict[str, str | None]
    node_file: str | None
    store: StoreHealth | None
    tiers: list[TierHealthJson]
