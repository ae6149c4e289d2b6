"""Durable tiers: where packs may lie, and what moves them."""

__all__ = ["archive", "budget", "census", "marker", "mover", "tiers"]
