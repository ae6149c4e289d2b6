"""Trying storage that may become a store or a tier."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tierstore import config
from tierstore.admin.examine import Examination, examine
from tierstore.arguments import as_path, as_table
from tierstore.blobs.base import Capabilities
from tierstore.errors import ConfigError
from tierstore.folders import path_of, remove_empty
from tierstore.format.tiers import Role, TierSpec, has_secret
from tierstore.wiring.backends import open_tier
from tierstore.wiring.places import canonical
from tierstore.wiring.tiers import placed

_CLIENTS = 2


@dataclass(frozen=True, slots=True)
class Validation:
    """The results of trying a storage.

    Attributes:
        url: URL of the storage, as it is shown.
        capabilities: Claims of its backend.
        local: Whether it is on this machine.
        examination: Results of the trial.
    """

    url: str
    capabilities: Capabilities
    local: bool
    examination: Examination


def validate(
    url: str | os.PathLike[str],
    role: Role,
    *,
    name: str = "tried",
    options: Mapping[str, str] | None = None,
) -> Validation:
    """Write, read, list, create in a race and delete in a storage, and leave nothing there.

    Args:
        url: Path or URL of the storage, without secrets.
        role: Role to open it in; ``shared`` for a Redis or Memcached.
        name: Name of the tier in this node's file whose credentials and options are used.
        options: Options of the backend.

    Raises:
        ConfigError: The URL holds a secret, or cannot be opened.
        UsageError: There is no such role.
        NotFound: A directory is missing.
        BackendError: Nothing can be written there.
    """
    url = as_path("url", url, "a path or a URL")
    if has_secret(url):  # it is not repeated
        raise ConfigError(
            "the URL holds a password or key; leave it out, and put 'username' and 'password_env' "
            "under [tiers.NAME] of this node's tierstore.toml (then name=NAME, --as NAME), or use "
            "the usual AWS_* variables"
        )
    spec = canonical(
        TierSpec(
            name=name,
            role=role,
            url=url,
            options=dict(as_table("options", options or {}, "{'region': 'eu-1'}")),
        )
    )
    place = placed(spec, config.node_config(), "validate")
    with contextlib.ExitStack() as stack:
        stack.enter_context(_tidy(place.spec.url))
        stores = [stack.enter_context(open_tier(place)) for _ in range(_CLIENTS)]
        store = stores[0]
        return Validation(store.url, store.capabilities, store.local, examine(stores))


@contextlib.contextmanager
def _tidy(url: str) -> Iterator[None]:
    """Remove the folders that a local store made in the block."""
    root = path_of(url.removeprefix("fsspec+").replace("local://", "file://", 1))
    own = [Path(root, name) for name in ("probes", ".tmp~")] if root is not None else []
    # os.path: a folder that may not be entered is said where it is opened
    new = [folder for folder in own if not os.path.exists(folder)]  # noqa: PTH110
    try:
        yield
    finally:
        for folder in new:
            remove_empty(folder)
