"""Parts that commands are made of: app, options, references, help, output, objects, progress."""

__all__ = [
    "app",
    "command",
    "objects",
    "output",
    "params",
    "progress",
    "refs",
    "signals",
    "skipped",
    "streams",
    "times",
    "warnings",
]
