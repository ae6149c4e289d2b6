"""Blob stores, which keep immutable bytes under keys: one interface, one folder per storage."""

__all__ = ["base", "fsspec", "local", "memcached", "objects", "redis"]
