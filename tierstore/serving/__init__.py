"""Serving processes: following a reference, loading into torch, file systems and gateways."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tierstore.modelstore.store import Store
    from tierstore.serving.follower import Follower
    from tierstore.serving.update import Update

__all__ = [
    "agent",
    "filesystem",
    "follow",
    "follower",
    "hub",
    "inplace",
    "metrics",
    "node",
    "observe",
    "safetensors",
    "torch",
    "update",
    "vllm",
]


def follow(
    ref: str,
    on_ready: Callable[[Update], None],
    *,
    store: Store | None = None,
    profile: str | None = None,
    poll_s: float = 5.0,
    warm: bool = True,
) -> Follower:
    """Keep this process on the version that ``ref`` points to; see ``follower.Follower``.

    Args:
        ref: Reference to follow, such as ``ranker@prod``.
        on_ready: Called with each version once it is read and verified; the old one serves until
            the call returns.
        store: Store to read from; by default the configured one, opened once for this process.
        profile: Variants to prefer, as for ``Store.load``.
        poll_s: Seconds between two looks at the reference, on average.
        warm: Whether to load versions into this node's hot tier, if it has one.
    """
    from tierstore.serving.follower import Follower
    from tierstore.serving.observe import OBSERVED
    from tierstore.serving.opened import open_shared

    if store is None:
        store = open_shared(None)
    follower = Follower(store, ref, on_ready, profile=profile, poll_s=poll_s, warm=warm)
    OBSERVED.followers.add(follower)
    return follower
