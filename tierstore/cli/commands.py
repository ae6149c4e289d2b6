"""Every command of the program, in one table: its place in the help, its code, its JSON.

``kit.app`` registers the commands from here, ``kit.help`` lists them in this order, and
``schemas.markdown`` documents what they print. To add one, write its function, the struct that it
prints, and its line.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Command:
    """One command.

    Modules are named, not imported: a run of the program loads only those of its own command.

    Attributes:
        section: Heading of the help under which the command stands.
        name: The words that call it, such as ``tier ls``; the first of two names a group.
        code: File below ``tierstore/cli`` and function in it that runs the command.
        prints: Structs below ``tierstore/cli/schemas`` that ``--json`` prints: the first, or the
            second where the command is given a name; others by an option.
    """

    section: str
    name: str
    code: str
    prints: tuple[str, ...]

    @property
    def first(self) -> str:
        """The word behind ``tierstore``: the command's own name, or that of its group."""
        return self.name.partition(" ")[0]

    @property
    def module(self) -> str:
        """Full name of the module that defines the command."""
        return f"tierstore.cli.{self.code.partition('.')[0]}"


GROUPS = {
    "alias": "Set, remove and list names of versions.",
    "purge": "Receipts of what was removed for good.",
    "retention": "Set, remove, list and apply what is kept of models.",
    "rollout": "Move an alias to a version stage by stage.",
    "release": "Switch versions of several models at once.",
    "tier": "List, add, change, drain and remove tiers.",
    "serve": "Serve the store to other programs.",
    "layout": "Make anew what says where chunks lie.",
    "index": "Make anew what saves find duplicates by.",
    "store": "Try storage before it becomes a store or a tier.",
}
"""Help of the commands that only hold others, by name."""

_TABLE = (
    ("Models", "init", "stores.init", "tiers.Init"),
    ("Models", "save", "models.save", "core.Save"),
    ("Models", "load", "models.load", "core.Load"),
    ("Models", "ls", "listing.ls", "core.Models", "core.Versions", "removal.Deleted"),
    ("Models", "stat", "describe.stat", "core.Stat"),
    ("Models", "tensors", "describe.tensors", "core.Tensors"),
    ("Models", "diff", "describe.diff", "deltas.DiffJson"),
    ("Models", "log", "aliases.log", "core.History", "core.Log"),
    ("Models", "alias set", "aliases.set_alias", "core.AliasJson"),
    ("Models", "alias rm", "aliases.remove", "core.AliasRemoved"),
    ("Models", "alias ls", "aliases.ls", "core.AllAliases", "core.Aliases"),
    ("Models", "rollback", "aliases.rollback", "core.AliasJson"),
    ("Models", "rm", "removal.remove", "removal.Deleted", "purge.Receipts", "purge.Plan"),
    ("Models", "undelete", "removal.undelete", "core.VersionJson"),
    ("Models", "purge ls", "purge.ls", "purge.Receipts"),
    ("Models", "purge show", "purge.show", "purge.Receipt"),
    ("Models", "purge run", "purge.run", "purge.Receipts"),
    ("Models", "purge gone", "purge.gone", "purge.GoneNodes"),
    ("Models", "forget", "removal.forget", "removal.Forgot"),
    ("Models", "retention set", "retention.set_rules", "removal.RetentionJson"),
    ("Models", "retention rm", "retention.remove", "removal.RetentionRemoved"),
    ("Models", "retention ls", "retention.ls", "removal.Retentions"),
    ("Models", "retention apply", "retention.apply", "removal.Forgot"),
    ("Models", "rebase", "models.rebase", "deltas.Rebase"),
    ("Models", "patch", "patches.patch", "patches.Patched"),
    ("Models", "patches", "patches.patches", "patches.Patches"),
    ("Models", "fold", "patches.fold", "patches.FoldJson"),
    ("Models", "cp", "copying.cp", "copying.Copied"),
    ("Models", "sync", "copying.sync", "copying.SyncJson"),
    ("Rollouts", "rollout start", "rollouts.start", "rollout.RolloutJson"),
    ("Rollouts", "rollout step", "rollouts.step", "rollout.RolloutJson", "rollout.RolloutDone"),
    ("Rollouts", "rollout status", "rollouts.status", "rollout.RolloutsJson"),
    ("Rollouts", "rollout pause", "rollouts.pause", "rollout.RolloutJson"),
    ("Rollouts", "rollout resume", "rollouts.resume", "rollout.RolloutJson"),
    ("Rollouts", "rollout abort", "rollouts.abort", "rollout.RolloutDone"),
    ("Rollouts", "report", "rollouts.report", "rollout.Reported"),
    ("Rollouts", "release create", "releases.create", "releases.ReleaseJson"),
    ("Rollouts", "release ls", "releases.ls", "releases.ReleaseNames", "releases.ReleaseList"),
    ("Rollouts", "release show", "releases.show", "releases.ReleaseJson"),
    ("Variants", "derive", "variants.derive", "variants.Derived"),
    ("Variants", "variants", "variants.variants", "variants.Variants"),
    ("Variants", "lineage", "variants.lineage", "variants.LineageTree"),
    ("Tiers", "tier ls", "tiers.ls", "tiers.TiersJson"),
    ("Tiers", "tier add", "tiers.add", "tiers.TierJson"),
    ("Tiers", "tier set", "tiers.change", "tiers.TierJson"),
    ("Tiers", "tier drain", "tiers.drain", "tiers.TierDrained"),
    ("Tiers", "tier rm", "tiers.remove", "tiers.TierRemoved"),
    ("Tiers", "tier example", "tiers.example", "tiers.TierExample"),
    ("Tiers", "df", "space.df", "tiers.Df"),
    ("Tiers", "top", "top.top", "tiers.Top"),
    ("Tiers", "explain", "placing.explain", "placing.Explained"),
    ("Tiers", "rebalance", "placing.rebalance", "placing.Moves"),
    ("Tiers", "mv", "placing.move", "placing.Moves"),
    ("Tiers", "restore", "archives.restore", "placing.Restored"),
    ("Tiers", "warmup", "warming.warmup", "warming.Warmup"),
    ("Tiers", "evict", "warming.evict", "warming.Evicted"),
    ("Tiers", "pin", "warming.pin", "warming.PinJson"),
    ("Tiers", "unpin", "warming.unpin", "warming.Unpinned"),
    ("Tiers", "pins", "warming.pins", "warming.PinsJson"),
    ("Serving", "agent", "agent.agent", "placing.AgentEnded"),
    ("Serving", "serve hub", "serve.hub", "serve.Serving"),
    ("Care", "du", "stores.du", "core.Du"),
    ("Care", "gc", "gc.gc", "gc.Gc", "gc.GcExplained", "gc.GcEnabled", "gc.GcMoved"),
    ("Care", "check", "stores.check", "core.CheckJson"),
    ("Care", "repair", "repair.repair", "repair.Repair"),
    ("Care", "layout rebuild", "rebuild.rebuild_layout", "rebuild.LayoutsRebuilt"),
    ("Care", "index rebuild", "rebuild.rebuild_index", "rebuild.IndexRebuilt"),
    ("Care", "doctor", "doctor.doctor", "health.Doctor"),
    ("Care", "store validate", "backends.validate", "tiers.Validation"),
    ("Care", "demo", "demo.demo", "core.Demo"),
    ("Care", "version", "stores.version", "core.VersionOutput"),
)
COMMANDS = tuple(
    Command(section, name, code, tuple(prints)) for section, name, code, *prints in _TABLE
)
"""Every command, in the order in which ``--help`` and ``SCHEMAS.md`` list them."""
