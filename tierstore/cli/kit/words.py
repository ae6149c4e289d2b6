"""Words that users try as commands, and what to tell them: the nearest name would mislead."""

from __future__ import annotations

_REMOVE = (
    "'tierstore rm REF' removes a version, 'tierstore alias rm' an alias, 'tierstore tier rm' a "
    "tier, and 'tierstore evict' frees a hot tier"
)
_GC = "'tierstore gc' deletes what nothing needs, and 'tierstore evict' frees a hot tier"
_FILES = "'tierstore load REF --to DIR' writes the files of a version"
_STORE = "'tierstore save MODEL SOURCE' stores a model"
_FOLLOW = (
    "'tierstore agent --follow REF' keeps what REF names in this node's hot tier, and "
    "tierstore.follow in Python serves it"
)
_LIST = "'tierstore ls' lists models, 'tierstore ls MODEL' the versions of one"
_ROLLOUTS = "'tierstore rollout status' lists the rollouts in progress"

TRIED = {
    **dict.fromkeys(("delete", "remove"), _REMOVE),
    **dict.fromkeys(("vacuum", "prune", "compact", "reclaim"), _GC),
    **dict.fromkeys(("recover", "undo"), "'tierstore undelete REF' brings one back"),
    **dict.fromkeys(("export", "get", "pull", "download", "checkout"), _FILES),
    **dict.fromkeys(("push", "put", "add", "upload", "import", "commit"), _STORE),
    **dict.fromkeys(("follow", "watch"), _FOLLOW),
    **dict.fromkeys(("list", "models", "versions"), _LIST),
    **dict.fromkeys(("show", "info", "describe"), "'tierstore stat REF' shows a version"),
    **dict.fromkeys(("verify", "fsck", "validate"), "'tierstore check' verifies a store"),
    **dict.fromkeys(("history", "reflog"), "'tierstore log' shows who moved what, and when"),
    **dict.fromkeys(("status", "health"), "'tierstore doctor' checks the store and its tiers"),
    **dict.fromkeys(("rollout ls", "rollout list"), _ROLLOUTS),
    **dict.fromkeys(("alias list", "tier list", "release list"), "the command is called 'ls'"),
    **dict.fromkeys(("alias delete", "alias remove", "tier delete", "tier remove"),
                    "the command is called 'rm'"),
}  # fmt: skip
"""What to say of each word, or group and word, that is no command."""
