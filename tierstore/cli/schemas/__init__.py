"""The structs that commands print with ``--json``."""

__all__ = [
    "copying",
    "core",
    "deltas",
    "gc",
    "health",
    "patches",
    "placing",
    "purge",
    "rebuild",
    "releases",
    "removal",
    "repair",
    "rollout",
    "serve",
    "tiers",
    "variants",
    "warming",
]
