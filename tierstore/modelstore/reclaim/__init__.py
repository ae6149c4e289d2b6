"""Reclaim: versions are removed and brought back, rules keep them, and garbage is collected."""

__all__ = [
    "explain",
    "feature",
    "growth",
    "holders",
    "keeping",
    "reclaim",
    "removal",
    "repair",
    "report",
    "retention",
    "rules",
]
