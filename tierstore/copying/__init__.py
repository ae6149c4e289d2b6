"""Copies versions from one store to another: backup, migration, another region."""

__all__ = ["copying", "report", "sync"]
