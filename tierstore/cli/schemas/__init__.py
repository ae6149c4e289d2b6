"""The structs that commands print with ``--json``."""

__all__ = [
    "core",
    "deltas",
    "health",
    "patches",
    "placing",
    "releases",
    "removal",
    "rollout",
    "serve",
    "tiers",
    "variants",
    "warming",
]
