"""Blobs in a local directory."""

__all__ = ["files", "store"]
