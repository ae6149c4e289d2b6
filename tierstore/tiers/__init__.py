"""Hot and durable tiers: where bytes lie, and what moves them."""

__all__ = ["activity", "base", "durable", "guard", "heat", "hot", "node", "stats", "upkeep"]
