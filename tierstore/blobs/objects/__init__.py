"""Blob stores in object storage: S3, Google Cloud Storage, Azure Blob Storage."""

__all__ = ["archive", "store"]
