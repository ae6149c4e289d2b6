"""Blobs in object stores: S3, GCS, Azure."""

__all__ = ["archive", "store"]
