"""Access to the client libraries of Redis, which are imported when they are needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tierstore.blobs.redis.endpoint import RedisEndpoint
from tierstore.errors import ConfigError

if TYPE_CHECKING:
    from tierstore.blobs.redis.client import RedisClient


def connect(endpoint: RedisEndpoint) -> RedisClient:
    """Return a client of the endpoint; it connects at the first command.

    Raises:
        ConfigError: The libraries of the ``redis`` extra are not installed.
    """
    try:
        from tierstore.blobs.redis.client import RedisClient
    except ImportError as error:
        raise ConfigError(
            f"{endpoint.url} needs the packages redis and hiredis: pip install 'tierstore[redis]'"
        ) from error
    return RedisClient(endpoint)
