"""Which versions are removed, for those who list them or bring one back."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from tierstore.errors import UsageError
from tierstore.ids import ModelRef, check_name
from tierstore.modelstore.home.retention import SetRetentions, over_us
from tierstore.modelstore.names.members import numbered
from tierstore.modelstore.names.names import Names
from tierstore.modelstore.names.removed import PURGE, window_end
from tierstore.modelstore.version import Version, when

_SHOWN = 5


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
    found, retentions, over = [], SetRetentions(home.blobs), over_us(home.blobs)
    for name in home.models() if model is None else [model]:
        removed = names.removals.of(name)
        for version in numbered(home, name, removed):
            by = removed[version.number]
            until = window_end(by, retentions.window_s(name), over)
            purged = by.action == PURGE
            found.append(RemovedVersion(version, when(by), by.who, by.message, until, purged))
    return found


def removed_version(names: Names, ref: ModelRef) -> Version:
    """Return the removed version that a reference names; a model alone means none that was purged.

    Raises:
        UsageError: It names none, or several.
        NotFound: There is no such version.
    """
    if ref.variant is not None:
        raise UsageError(f"{ref} is a variant: it comes back with its version")
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
    names.resolve(str(ref))  # says what does not exist
    raise UsageError(f"{ref} is not removed; 'tierstore ls --deleted' lists what is")
