"""Starts the gateway for ``tierstore serve hub``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tierstore import config
from tierstore.errors import ConfigError
from tierstore.modelstore.places import CACHE

if TYPE_CHECKING:
    from tierstore.modelstore.store import Store
    from tierstore.serving.hub.stats import HubStats


def serve(
    store: Store,
    host: str,
    port: int,
    *,
    ready: Callable[[str], None],
    tokens: Path | None,
    spool: Path | None,
    certificate: Path | None,
    key: Path | None,
    per_address: int,
) -> None:
    """Serve a store until a signal ends it.

    Args:
        store: Store to serve; the caller closes it.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        ready: Called with the gateway's URL once it answers.
        tokens: File of tokens; ``None`` lets everybody read and nobody write.
        spool: Folder for uploads; by default in the cache directory of the store.
        certificate: PEM file of the certificate, to serve https.
        key: PEM file of the certificate's key.
        per_address: The most connections from one address.

    Raises:
        ConfigError: The extra ``hub`` is not installed, or the file of tokens is invalid.
        UsageError: The address cannot be listened on, or ``spool`` overlaps with the store.
    """
    try:
        from tierstore.serving.hub.app import make_app
        from tierstore.serving.hub.server import listen, run
    except ImportError as error:
        raise ConfigError(f"the gateway needs {error.name}: pip install 'tierstore[hub]'") from None
    cache = config.settings_from().cache_dir
    folder = spool or cache / store._parts.home.config.store_id / "uploads"
    store._parts.places.check(folder, but=CACHE)
    app = make_app(store, folder, tokens=tokens, metrics=_metrics(store))
    where = listen(host, port, per_address)
    shown = f"[{host}]" if ":" in host else host
    scheme = "https" if certificate is not None else "http"
    url = f"{scheme}://{shown}:{where.getsockname()[1]}"
    run(
        app,
        where,
        ready=lambda: ready(url),
        certificate=None if certificate is None else str(certificate),
        key=None if key is None else str(key),
    )


def _metrics(store: Store) -> Callable[[HubStats], tuple[bytes, str]] | None:
    try:
        from tierstore.serving.metrics import TierCollector, page_of, samples
    except ConfigError:  # the extra is not installed
        return None
    return lambda stats: page_of(TierCollector(lambda: samples(store), stats.totals))
