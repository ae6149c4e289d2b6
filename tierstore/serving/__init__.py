"""Serving processes: following a reference, loading into torch, file systems and gateways."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tierstore.modelstore.store import Store
    from tierstore.modelstore.version import Version
    from tierstore.serving.follower import Follower
    from tierstore.serving.update import Update

__all__ = [
    "agent",
    "collecting",
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
    ref: str | Version,
    on_ready: Callable[[Update], None],
    *,
    store: Store | None = None,
    profile: str | None = None,
    poll_s: float = 5.0,
    warm: bool = True,
) -> Follower:
    """Keep this process on the version that a reference means, also when that moves.

    A new version is read and verified while the old one serves, and what did not change is not read
    again. Whatever fails on the way, the old version stays.

    Args:
        ref: A reference, such as ``ranker@prod``, or a version, which never moves.
        on_ready: Is called with each version once it is read and verified, in the follower's
            thread; the old one serves until it returns. ``InPlace`` is one.
        store: The store; by default the configured one, opened once for this process.
        profile: Which variant suits this hardware, as for ``Store.load``.
        poll_s: Seconds between two looks, on average; more than 0.
        warm: Bring versions into this node's hot tier, where it has one.

    Returns:
        A context manager that stops following when it ends.

    Raises:
        UsageError: An argument is wrong; nothing is followed then.

    Examples:
        >>> store = tierstore.init("store")
        >>> _ = store.save("ranker", {"b": np.ones(2, np.float32)}, alias="prod")
        >>> served = []
        >>> with tierstore.follow("ranker@prod", served.append, store=store) as follower:
        ...     follower.wait(60)
        True
        >>> served[0].tensors["b"]
        array([1., 1.], dtype=float32)
    """
    from tierstore.serving.follower import Follower
    from tierstore.serving.observe import OBSERVED
    from tierstore.serving.opened import open_shared

    if store is None:
        store = open_shared(None)
    follower = Follower(store, ref, on_ready, profile=profile, poll_s=poll_s, warm=warm)
    OBSERVED.followers.add(follower)
    return follower
