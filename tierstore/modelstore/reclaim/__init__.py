"""Reclaim: versions are removed and brought back, rules keep them, and garbage is collected."""

__all__ = [
    "explain",
    "feature",
    "forgetting",
    "growth",
    "looks",
    "purge",
    "reclaim",
    "removal",
    "removedlist",
    "repair",
    "report",
    "retention",
    "rules",
]
