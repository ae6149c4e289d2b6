"""The hot tier on this node: chunk files, their index, and tensors mapped from them."""

__all__ = ["local"]
