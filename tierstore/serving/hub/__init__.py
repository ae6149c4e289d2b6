"""A gateway that serves a store over the HTTP API of the Hugging Face Hub."""

__all__ = ["command"]
