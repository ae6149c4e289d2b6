"""Versions of models: how they are saved, read, named, placed and looked after."""

__all__ = [
    "care",
    "chunks",
    "home",
    "loading",
    "names",
    "patches",
    "places",
    "placing",
    "reclaim",
    "saving",
    "settings",
    "store",
    "version",
]
