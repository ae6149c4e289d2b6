"""Placement of versions in tiers: plans carried out, pins, warm-up."""

__all__ = ["hotpins", "moverlease", "packgraph", "placing", "snapshot", "warming"]
