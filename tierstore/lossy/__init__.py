"""Lossy methods (cast, quantise, prune, low-rank) and the errors that they make."""

__all__ = ["errors", "methods", "record"]
