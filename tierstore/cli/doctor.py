"""The command doctor: checks the installation, this machine, a store and its tiers."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

from click.exceptions import Exit

from tierstore.cli.kit.command import Cli
from tierstore.cli.kit.output import facts, size
from tierstore.cli.kit.params import option
from tierstore.cli.schemas import health as schemas
from tierstore.cli.tierhealth import disk_json, disk_text, tier_facts, tier_health_json
from tierstore.errors import ConfigError, OutOfSpace
from tierstore.shown import duration_text, shown_url

if TYPE_CHECKING:
    from tierstore.admin.doctor import Diagnosis, StoreHealth


def doctor(
    cli: Cli,
    strict: Annotated[
        bool, option("--strict", help="Refuse TIERSTORE_ variables that are not known.")
    ] = False,
) -> None:
    """Check this installation, the store and its tiers.

    It shows versions, kernels, limits and libraries, tries whether the store and each of its tiers
    can be read and written, and looks at how caches are set up.

    Exits with 3 when a tier cannot be used, and as other commands do when the store cannot.
    """
    from tierstore import codecs, config

    if strict and cli.odd_variables:
        raise ConfigError(cli.odd_variables[0])
    codecs.use_native(config.native_wanted())
    with cli.progress("checking the store and its tiers"):
        found = _diagnosis(cli)
    data = _json(found)
    cli.out.show(data, found.problems, lambda: _print(data, found))
    if found.store is not None and found.store.error is not None:
        raise found.store.error
    if any(tier.error for tier in data.tiers):
        raise Exit(3)


def _diagnosis(cli: Cli) -> Diagnosis:
    from tierstore import config
    from tierstore.admin.doctor import Diagnosis, StoreHealth, installation
    from tierstore.errors import TierstoreError, UsageError

    try:
        url = config.store_url(cli.url)
    except UsageError:  # none is named, which is fine here
        return Diagnosis(installation())
    try:
        with cli.open() as store:
            return store.admin.doctor()
    except TierstoreError as error:
        return Diagnosis(installation(), StoreHealth(shown_url(url), error=error))


def _json(found: Diagnosis) -> schemas.Doctor:
    about = found.installation
    return schemas.Doctor(
        tierstore=about.tierstore or "not installed",
        python=about.python,
        platform=about.platform,
        kernels=schemas.Kernels(
            built=about.kernels.built,
            in_use=about.kernels.in_use,
            instructions=about.kernels.instructions,
        ),
        native_parts=dict(about.native_parts),
        threads=about.threads,
        memory_limit_bytes=about.memory_limit_bytes,
        cache_dir=str(about.cache_dir),
        cache_writable=about.cache_writable,
        cache_bytes=about.cache_bytes,
        libraries=dict(about.libraries),
        optional_libraries=dict(about.optional_libraries),
        node_file=None if about.node_file is None else str(about.node_file),
        store=None if found.store is None else _store_json(found.store),
        tiers=[tier_health_json(tier) for tier in found.tiers],
    )


def _store_json(store: StoreHealth) -> schemas.StoreHealth:
    return schemas.StoreHealth(
        url=store.url,
        format=store.format,
        store_id=store.store_id,
        chunk_bytes=store.chunk_size,
        features=None if store.features is None else list(store.features),
        put_if_absent=store.put_if_absent,
        clock_skew_seconds=None if store.clock_skew_s is None else round(store.clock_skew_s, 3),
        disk=disk_json(store.disk),
        has_reserve=store.has_reserve,
        keeps_versions=store.keeps_versions,
        quarantined_packs=store.quarantined_packs,
        lost=None if store.lost is None else list(store.lost),
        blocked_rules=None if store.blocked_rules is None else list(store.blocked_rules),
        uncollected_seconds=None if store.uncollected_s is None else round(store.uncollected_s, 3),
        error=None if store.error is None else str(store.error),
    )


def _print(data: schemas.Doctor, found: Diagnosis) -> None:
    from tierstore.admin.doctor import optional_libraries

    kernels, state = found.installation.kernels, "not built"
    used_for = optional_libraries()
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
        ("libraries", ", ".join(f"{name} {version}" for name, version in data.libraries.items())),
        *(
            ("optional", f"{name} {version or 'is not installed'} ({used_for[name]})")
            for name, version in data.optional_libraries.items()
        ),
        ("node file", data.node_file or "none; see 'tierstore tier example'"),
        *_store_facts(data.store, is_full=_is_full(found.store)),
        *(fact for tier in data.tiers for fact in tier_facts(tier)),
        *(("problem", problem) for problem in found.problems),
    ]
    facts(pairs)


def _is_full(store: StoreHealth | None) -> bool:
    return store is not None and isinstance(store.error, OutOfSpace)


def _store_facts(store: schemas.StoreHealth | None, *, is_full: bool) -> list[tuple[str, str]]:
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
    if store.uncollected_seconds is not None:
        ago = duration_text(timedelta(seconds=store.uncollected_seconds))
        found.append(("store", f"garbage can be collected; {ago} since the last time"))
    if store.disk is not None:
        found.append(("store", disk_text(store.disk)))
    if store.error:
        found.append(("store", f"{'full' if is_full else 'NOT usable'}: {store.error}"))
    return found
