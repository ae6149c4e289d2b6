"""Names: versions, aliases, variants, rollouts and releases, and what a reference points to."""

__all__ = [
    "aliaslog",
    "claims",
    "history",
    "listed",
    "members",
    "names",
    "purgerecords",
    "releases",
    "removalprotocol",
    "removed",
    "reports",
    "rollout",
    "sizes",
    "witnesses",
]
