"""Blob stores that wrap another one: a breaker, a deadline, opening at first use."""

__all__ = ["breaker", "deadline", "guarded", "lazy"]
