"""Which versions are removed, for those who list them or bring one back."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime

from tierstore.errors import Damaged, UnsupportedFormat, UsageError
from tierstore.ids import ModelRef, check_name
from tierstore.modelstore.home.retention import SetRetentions, read_over
from tierstore.modelstore.names.members import numbered
from tierstore.modelstore.names.names import Names
from tierstore.modelstore.names.removed import PURGE, window_end
from tierstore.modelstore.version import Version, when

_SHOWN = 5
_log = logging.getLogger("tierstore.removal")


@dataclass(frozen=True, slots=True)
class RemovedVersion:
    """A version that was removed.

    Attributes:
        version: The version.
        removed: When it was removed, by home's clock, in UTC.
        who: Who removed it, as ``user@host``.
        message: Why.
        until: Until when it can be brought back for certain.
        is_purged: Whether it is gone for good, and cannot be brought back at all.
    """

    version: Version
    removed: datetime
    who: str
    message: str
    until: datetime
    is_purged: bool = False


def deleted(names: Names, model: str | None) -> list[RemovedVersion]:
    """Return the versions that are removed; see ``Store.deleted``."""
    home = names.home
    if model is not None and home.log(check_name("model", model)).last() is None:
        names.resolve(model)  # says so
    listing = RemovedListing(names)
    models = home.models() if model is None else [model]
    return [one for name in models for one in listing.of(name)]


class RemovedListing:
    """Lists what is removed, model by model.

    Args:
        names: The names of the store.
    """

    def __init__(self, names: Names) -> None:
        self._names = names
        self._set, self._over = SetRetentions(names.home.blobs), read_over(names.home.blobs)

    def of(self, model: str) -> list[RemovedVersion]:
        """Return the removed versions of a model.

        Nothing is promised of them where the window of the model cannot be read.

        Raises:
            Damaged: What is removed of it, or an entry of that, cannot be read.
        """
        removed = self._names.removals.of(model)
        if not removed:
            return []
        try:
            window_s = self._set.of(model).window_s()
        except (Damaged, UnsupportedFormat) as error:
            window_s = 0
            _log.warning(
                "until when what was removed of %s can be brought back is not known: %s",
                model,
                error,
            )
        found = []
        for version in numbered(self._names.home, model, removed):
            by = removed[version.number]
            until = window_end(by, window_s, is_over=self._over.has(model, by))
            purged = by.action == PURGE
            found.append(RemovedVersion(version, when(by), by.who, by.message, until, purged))
        return found


def removed_version(names: Names, ref: ModelRef) -> Version:
    """Return the removed version that a reference names; a model alone means none that was purged.

    An alias and a release name none: what they name is in force.

    Raises:
        UsageError: It names none, or several.
        NotFound: There is no such version, alias or release.
    """
    if ref.variant is not None:
        raise UsageError(f"{ref} is a variant: it comes back with its version")
    if ref.alias is not None or ref.release is not None:
        raise _not_removed(names, ref)
    removed = names.removals.of(ref.model)
    found = numbered(names.home, ref.model, removed)
    if ref.number is not None:
        chosen = [version for version in found if version.number == ref.number]
    elif ref.prefix is not None:
        chosen = [version for version in found if version.digest.hex.startswith(ref.prefix)]
    else:
        chosen = [version for version in found if removed[version.number].action != PURGE]
    if len(chosen) == 1:
        return chosen[0]
    if chosen:
        some = ", ".join(str(version) for version in chosen[:_SHOWN])
        raise UsageError(
            f"{len(chosen)} removed versions are meant by {ref}, {some} among them; name one"
        )
    raise _not_removed(names, ref)


def _not_removed(names: Names, ref: ModelRef) -> UsageError:
    names.resolve(str(ref))  # says what does not exist
    return UsageError(f"{ref} is not removed; 'tierstore ls --deleted' lists what is")
