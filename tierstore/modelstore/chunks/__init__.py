"""From packs to verified plain bytes: read plans, reading, decoding."""

__all__ = [
    "copies",
    "decode",
    "examine",
    "findlost",
    "frameways",
    "local",
    "moves",
    "origin",
    "plan",
    "pool",
    "reader",
    "recent",
    "sharing",
    "writemove",
]
