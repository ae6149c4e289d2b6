"""Administration of stores, for the command line and for Python alike."""

__all__ = [
    "admin", "doctor", "health", "manage", "overview", "purges", "repair", "survey", "validate",
]  # fmt: skip
