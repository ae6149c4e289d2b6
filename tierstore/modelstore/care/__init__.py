"""Care for what is stored: check, comparison, rebase."""

__all__ = [
    "check",
    "check_findings",
    "check_folds",
    "check_hot",
    "check_limits",
    "check_patches",
    "check_report",
    "compare",
    "framesizes",
    "homekinds",
    "readtimes",
    "rebase",
]
