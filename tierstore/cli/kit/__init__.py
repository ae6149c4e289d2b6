"""Parts that commands are made of: the app, options, references, help, output, progress."""

__all__ = ["app", "command", "objects", "output", "progress", "refs", "signals", "streams", "times"]
