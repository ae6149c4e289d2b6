"""Keyed immutable bytes: one interface, and a room for each kind of storage."""

__all__ = ["base", "fsspec", "local", "memcached", "objects", "redis"]
