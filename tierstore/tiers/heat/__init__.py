"""How often things are read: recorded by this process, shared through home."""

__all__ = ["home", "recorder"]
