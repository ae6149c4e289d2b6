"""What a reference means: versions, aliases, variants, rollouts and releases."""

__all__ = ["history", "members", "names", "releases", "reports", "rollout"]
