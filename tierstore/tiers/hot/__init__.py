"""Hot tiers: what is read through them, and what is offered to them."""

__all__ = ["flight", "shared", "tiers"]
