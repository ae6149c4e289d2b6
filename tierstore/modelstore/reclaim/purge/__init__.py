"""Purges: what is removed for good, wherever it lies, with a receipt (SPEC.md section 10.3)."""

__all__ = ["content", "dropping", "orders", "planning", "purging", "receipt"]
