"""Lossy variants of a version: how they are made, and what they come from."""

__all__ = ["derive", "lineage"]
