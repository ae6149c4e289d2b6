"""Durable tiers, which keep packs, and the mover between them."""

__all__ = ["archive", "budget", "census", "marker", "mover", "packcheck", "tier", "tiers"]
