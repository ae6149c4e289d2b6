"""Contract suites, faulty stores and strategies, for tests of backends and of the format."""

__all__ = ["blob_batches", "blob_contract", "blob_races", "faulty", "strategies"]
