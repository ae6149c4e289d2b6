"""What every command is made with: the app, options, help, output, progress."""

__all__ = ["app", "command", "output", "progress"]
