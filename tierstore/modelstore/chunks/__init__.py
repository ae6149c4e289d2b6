"""From packs to verified plain bytes: read plans, reading, decoding."""

__all__ = [
    "copies",
    "decode",
    "examine",
    "findlost",
    "local",
    "moves",
    "origin",
    "plan",
    "pool",
    "reader",
    "recent",
    "sharing",
    "ways",
    "writemove",
]
