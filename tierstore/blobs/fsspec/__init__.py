"""Blobs in any file system that fsspec knows."""

__all__ = ["store"]
