"""Tiers: where packs and chunks are kept, and what moves them."""

__all__ = ["activity", "base", "durable", "guard", "heat", "hot", "node", "stats", "upkeep"]
