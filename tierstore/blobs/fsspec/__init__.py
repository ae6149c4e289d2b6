"""A blob store in any file system of fsspec."""

__all__ = ["store"]
