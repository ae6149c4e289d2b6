"""A typed view of a store's home: its configuration, logs, leases, layouts and chunk index."""

__all__ = [
    "ahead",
    "cachefile",
    "chain",
    "clock",
    "condemned",
    "confirm",
    "footers",
    "home",
    "index",
    "leases",
    "once",
    "pins",
    "probe",
    "quarantine",
    "readerlease",
    "refs",
    "relayout",
    "reserve",
    "retention",
    "tierlist",
]
