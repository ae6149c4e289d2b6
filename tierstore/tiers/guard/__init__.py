"""Blob stores that wrap one: a breaker, a deadline, opening at first use."""

__all__ = ["breaker", "deadline", "guarded", "lazy"]
