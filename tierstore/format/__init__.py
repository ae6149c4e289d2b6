"""The stored format: bytes to values and back, without I/O; specified in SPEC.md beside it."""

__all__ = [
    "checks",
    "condemned",
    "dtypes",
    "exportlist",
    "frame",
    "heat",
    "keys",
    "layout",
    "manifest",
    "pack",
    "patch",
    "paths",
    "proof",
    "readback",
    "reflog",
    "safetensors",
    "sealed",
    "storeconfig",
    "table",
    "tiers",
]
