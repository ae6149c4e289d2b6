"""Redis: a blob store, the heat that nodes share, and news."""

__all__ = ["endpoint", "heat", "store"]
