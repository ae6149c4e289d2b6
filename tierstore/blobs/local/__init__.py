"""A blob store in a local directory."""

__all__ = ["files", "store"]
