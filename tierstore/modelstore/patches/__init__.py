"""Versions that are a change of another one: published, streamed, folded."""

__all__ = ["changes", "fold", "patches", "patching", "service"]
