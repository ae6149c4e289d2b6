"""Blobs, and heat, in Redis."""

__all__ = ["endpoint", "heat", "store"]
