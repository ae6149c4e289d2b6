"""Versions that cannot be loaded any more: who collects stops for those that are not removed."""

from __future__ import annotations

from collections.abc import Mapping

from tierstore.errors import Damaged

_SHOWN = 5


class Unloadable(Damaged):
    """A manifest is missing or damaged: what it describes cannot be loaded.

    No other object says what was in it, so nothing but saving the same content again, or a copy,
    brings it back.
    """


def refuse(lost: Mapping[str, Exception], what: str) -> None:
    """Raise ``Damaged`` if anything is lost.

    Args:
        lost: Why versions are lost, by what they are called.
        what: What is wrong with each, such as ``has lost chunks``.
    """
    if not lost:
        return
    shown = [f"{ref} {what}: {error}" for ref, error in list(lost.items())[:_SHOWN]]
    more = f"; and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else ""
    raise Damaged(
        f"{'; '.join(shown)}{more}. Nothing was deleted: save the model again, or restore what is "
        "missing from a copy; if the version is not needed, 'tierstore rm' removes it once nothing "
        "names it"
    ) from next(iter(lost.values()))
