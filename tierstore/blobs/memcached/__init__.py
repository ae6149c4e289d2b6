"""Blobs in Memcached."""

__all__ = ["store"]
