"""Lossy variants of a version: making them, and their lineage."""

__all__ = ["derive", "lineage"]
