"""Reclaim: versions are removed and brought back, and what rules keep of them."""

__all__ = ["feature", "holders", "removal", "retention", "rules"]
