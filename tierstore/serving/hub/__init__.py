"""A gateway that speaks the Hugging Face Hub's HTTP API."""

__all__ = ["command"]
