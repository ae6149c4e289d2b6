"""A blob store in Memcached."""

__all__ = ["store"]
