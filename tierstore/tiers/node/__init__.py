"""The hot tier of this node: chunk files, their index, and tensors mapped from them."""

__all__ = ["local"]
