"""Heat: how often chunks and packs are read, recorded by this process and shared by all."""

__all__ = ["home", "recorder"]
