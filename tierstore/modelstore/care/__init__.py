"""Care for what is stored: check, comparison, rebase."""

__all__ = ["check", "check_hot", "compare", "framesizes", "rebase"]
