"""What an administrator asks of a store, for the command line and for Python alike."""

__all__ = ["admin", "doctor", "health", "manage", "overview", "survey", "validate"]
