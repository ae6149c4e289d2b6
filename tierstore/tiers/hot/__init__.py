"""Hot tiers: caches of chunks and frames in front of the durable tiers."""

__all__ = ["flight", "shared", "tiers"]
