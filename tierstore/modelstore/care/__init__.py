"""Care for what is stored: check, comparison, rebase."""

__all__ = [
    "check",
    "check_findings",
    "check_hot",
    "check_patches",
    "compare",
    "framesizes",
    "readtimes",
    "rebase",
]
