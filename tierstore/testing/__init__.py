"""Contract suites and faulty stores, for whoever writes a new backend."""

__all__ = ["blob_batches", "blob_contract", "blob_races", "faulty", "strategies"]
