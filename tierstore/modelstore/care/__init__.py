"""Care for what is stored: check, comparison, rebase."""

__all__ = ["check", "compare", "framesizes", "rebase"]
