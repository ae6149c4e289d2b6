"""Versions that no rule keeps are removed; the rules are in ``rules.py``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tierstore.arguments import as_message, as_number
from tierstore.errors import Conflict, NotFound
from tierstore.format.retention import Rules
from tierstore.ids import check_name
from tierstore.modelstore.names.names import Names
from tierstore.modelstore.reclaim.feature import check_enabled
from tierstore.modelstore.reclaim.holders import Holders, VersionDigests
from tierstore.modelstore.reclaim.removal import RemovalPlan, Removing
from tierstore.modelstore.reclaim.rules import Candidate, kept_by
from tierstore.modelstore.version import Version, version_of, when

MOST_PERCENT = 20.0
"""Rules remove no more of a model's versions at once unless somebody allows it."""


@dataclass(frozen=True, slots=True)
class KeptVersion:
    """A version that stays, and what keeps it: rules, and who names it."""

    version: Version
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What rules made of the versions of a model.

    Attributes:
        model: The model's name.
        kept: The versions that stay, newest first, each with its reasons.
        removed: The versions that were removed, newest first; with ``dry_run`` those that would be.
        dry_run: Whether nothing was removed.
    """

    model: str
    kept: list[KeptVersion]
    removed: list[Version]
    dry_run: bool


@dataclass(frozen=True, slots=True)
class Found:
    """What rules make of the versions of a model.

    Attributes:
        model: The model's name.
        contents: Its versions in force, by number.
        kept: The numbers of those that stay, with the reasons of each.
        holders: What found the reasons.
    """

    model: str
    contents: Mapping[int, VersionDigests]
    kept: Mapping[int, list[str]]
    holders: Holders

    @property
    def going(self) -> list[int]:
        """The numbers of the versions that no rule keeps, newest first."""
        return sorted(self.contents.keys() - self.kept.keys(), reverse=True)

    def share_percent(self, until_us: int | None = None) -> float:
        """Return by how much fewer versions there will be, in percent.

        Args:
            until_us: Fewer than those of now that were published up to this time, in microseconds
                since the epoch; ``None`` for all that there are now.
        """
        before = sum(
            until_us is None or one.entry.time_us <= until_us for one in self.contents.values()
        )
        return 100 * max(0, before - len(self.kept)) / max(1, before)

    def shown(self) -> str:
        """Return how many versions would go, such as ``2 of the 7 versions of ranker``."""
        return f"{len(self.going)} of the {len(self.contents)} versions of {self.model}"

    def forgotten(self, *, dry_run: bool) -> Forgotten:
        """Return the same for whoever asked for it."""
        return Forgotten(
            self.model,
            [
                KeptVersion(self._version(number), tuple(self.kept[number]))
                for number in sorted(self.kept, reverse=True)
            ],
            [self._version(number) for number in self.going],
            dry_run,
        )

    def _version(self, number: int) -> Version:
        return version_of(self.model, self.contents[number].entry)


class Forgetting:
    """Removes the versions of a model that no rule keeps.

    Args:
        names: The names of the store.
        cache_path: A local file of what was read of home; see ``Holders``.
    """

    def __init__(self, names: Names, cache_path: Path | None) -> None:
        self._names, self._home, self._cache_path = names, names.home, cache_path

    def forget(
        self,
        model: str,
        rules: Rules,
        *,
        dry_run: bool,
        most_percent: float,
        message: str | None,
    ) -> Forgotten:
        """Remove the versions of a model that no rule keeps; see ``Store.forget``."""
        note = as_message(message)
        most = as_number("most_percent", most_percent, "a share in percent, 0 to 100", 0)
        if not dry_run:
            check_enabled(self._home)
        found = self.look(model, rules)
        share = found.share_percent()
        if not dry_run and share > most:
            enough = math.ceil(share)
            raise Conflict(
                f"{found.shown()} would be removed, which is more than {most:g} % of them: look at "
                "them with dry_run=True (--dry-run), then allow it with "
                f"most_percent={enough} (--yes, or --most-percent {enough})"
            )
        if not dry_run:
            self.carry_out(found, note)
        return found.forgotten(dry_run=dry_run)

    def look(self, model: str, rules: Rules, holders: Holders | None = None) -> Found:
        """Return what rules keep of the versions of a model, and what not; removes nothing.

        Args:
            model: The model's name.
            rules: The rules.
            holders: What finds who names them, where several models are looked at.
        """
        model = check_name("model", model)
        holders = holders or Holders(self._names, self._cache_path)
        contents = holders.contents(model, holders.in_force(model)[0])
        if not contents:
            self._names.newest(model)  # says when all of it is removed
            raise NotFound(f"there is no model {model!r}; 'tierstore ls' lists them")
        return Found(model, contents, self._kept(holders, model, rules, contents), holders)

    def carry_out(self, found: Found, message: str) -> None:
        """Remove what a look found that no rule keeps, unless somebody needs it by now."""
        if found.going:
            plan = RemovalPlan({found.model: sorted(found.going)}, is_by_rules=True)
            Removing(self._names).carry_out(plan, found.holders, message)

    def _kept(
        self, holders: Holders, model: str, rules: Rules, contents: Mapping[int, VersionDigests]
    ) -> dict[int, list[str]]:
        """Return what stays, with the reasons: rules, names, and what patches lie on."""
        aliases = holders.aliases(model)
        names: dict[int, list[str]] = {}
        for alias, last in aliases.items():
            if last.version is not None:
                names.setdefault(last.version, []).append(alias)
        patches = holders.patches(contents)
        candidates = [
            Candidate(
                number,
                when(one.entry),
                (*names.get(number, ()), one.entry.message),
                number in patches,
            )
            for number, one in contents.items()
        ]
        named = holders.named(model, contents, frozenset(), aliases)
        kept = {max(contents): ["newest"]}
        for reasons in (
            kept_by(rules, candidates, datetime.fromtimestamp(holders.now_s(), UTC)),
            {number: [one.text for one in every] for number, every in named.items()},
            holders.left(model, aliases),
        ):
            for number, why in reasons.items():
                if number in contents:
                    kept.setdefault(number, []).extend(why)
        chains = holders.chains(model, {number: contents[number] for number in kept})
        for number, one in contents.items():
            patch = chains.get(one.entry.manifest or "")
            if patch is not None:
                kept.setdefault(number, []).append(f"patch {patch} lies on it")
        return {number: list(dict.fromkeys(why)) for number, why in kept.items()}
