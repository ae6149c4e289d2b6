"""Output of ``doctor --json``; the rules are those of ``core``."""

from __future__ import annotations

from typing import Literal

from tierstore.cli.schemas.core import Schema
from tierstore.cli.schemas.tiers import DiskJson, ServerJson


class Kernels(Schema):
    """The native codec kernels; ``instructions`` is null where they were not built."""

    built: bool
    in_use: bool
    instructions: str | None


class StoreHealth(Schema):
    """The store as this machine finds it.

    ``clock_skew_seconds`` is the storage's clock minus this machine's; with ``keeps_versions`` it
    keeps what is deleted or written over. ``disk`` is the file system of a home in a directory, and
    ``has_reserve`` whether the reserve is there that a full disk is collected with; null where
    nothing can be collected yet. ``quarantined_packs`` counts
    the packs that no tier has a good copy of, as far as a check has found out.
    ``lost`` names what is gone: all of ``layouts/`` or ``index/`` though the store has versions,
    of models all versions, by the prefix of their logs, such as ``refs/ranker/``, and ``purged/``
    where a purge is recorded that has had no order for a day.
    ``blocked_rules`` say why rules of retention remove nothing of a model.
    ``uncollected_seconds`` passed since garbage was collected last, or else since that was allowed;
    null where it is not. ``error`` says why the store could not be opened or written to; fields
    that are not known are null then.
    """

    url: str
    format: int | None = None
    store_id: str | None = None
    chunk_bytes: int | None = None
    features: list[str] | None = None
    put_if_absent: bool | None = None
    clock_skew_seconds: float | None = None
    disk: DiskJson | None = None
    has_reserve: bool | None = None
    keeps_versions: bool | None = None
    quarantined_packs: int | None = None
    lost: list[str] | None = None
    blocked_rules: list[str] | None = None
    uncollected_seconds: float | None = None
    error: str | None = None


class TierHealthJson(Schema):
    """A tier as this node finds it.

    ``error`` says why no object could be written to it and read back. ``disk`` is the file system
    of a tier in a directory, ``servers`` are those of a cache. ``problems`` are worth mending.
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
    """The installation, this machine and the store; a library that is not installed is null.

    ``native_parts`` tells by module whether the native parts beside the kernels were built.
    ``node_file`` is the path of the tierstore.toml that is read, or null.
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
