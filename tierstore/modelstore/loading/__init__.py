"""Opened versions: models, tensors, files and shards, read when they are asked for."""

__all__ = [
    "arrays",
    "dequantized",
    "export",
    "exportdir",
    "fileview",
    "model",
    "opener",
    "overlay",
    "patchedfile",
    "patchparts",
    "shards",
    "stored",
    "tensor",
]
