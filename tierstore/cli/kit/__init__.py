"""Parts that commands are made of: the app, options, help, output, progress."""

__all__ = ["app", "command", "output", "progress", "signals", "streams"]
