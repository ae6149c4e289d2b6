"""Entries of logs that are lost: nobody knows what they named, so nothing may be deleted.

An entry is never deleted. That one is lost shows by later ones, by the hint of its log
(``reflogs``), by what else names the version, and by how long the log was for the last collection
(``evidence``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tierstore.errors import Damaged
from tierstore.format.keys import REFS, VERSION_LOG, entry_key, unsegment
from tierstore.modelstore.names.claims import log_title

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class LostEntries:
    """Entries of one log that are lost.

    Attributes:
        model: The model, as one segment of a key.
        name: What the log is, as in its key.
        numbers: Their numbers, rising.
        why: What shows that there were such entries.
    """

    model: str
    name: str
    numbers: Sequence[int]
    why: str

    def __str__(self) -> str:
        try:
            model = unsegment(self.model)
        except UnicodeDecodeError:  # of no model of ours
            model = self.model
        first, last = self.numbers[0], self.numbers[-1]
        key = entry_key(f"{REFS}{self.model}/{self.name}/", first)
        if self.name == VERSION_LOG:
            each = f"the entry of {model}@{first}"
            every = f"the entries of {len(self.numbers)} versions from {model}@{first} to @{last}"
        else:
            log = f"{log_title(self.name)} of {model}"
            each = f"entry {first} of the {log}"
            every = f"{len(self.numbers)} entries from {first} to {last} of the {log}"
        if len(self.numbers) == 1:
            return f"{each}, {key}, is lost: {self.why}"
        return f"{every}, {key} the first, are lost: {self.why}"


def refuse_lost(lost: Sequence[LostEntries], orphans: Sequence[str] = ()) -> None:
    """Raise ``Damaged`` if any entries are lost.

    Args:
        lost: The entries.
        orphans: Sentences on versions that something names and no log has.
    """
    by_name = sorted(lost, key=lambda one: (one.name != VERSION_LOG, one.model, one.name))
    every = [*map(str, by_name), *orphans]
    if not every:
        return
    more = f"; and {len(every) - _SHOWN} more" if len(every) > _SHOWN else ""
    raise Damaged(
        f"{'; '.join(every[:_SHOWN])}{more}. Nothing was deleted: 'tierstore repair' makes anew "
        "what other objects say, and names the rest; restore that from a copy of home, or give a "
        "version up with 'tierstore rm MODEL@N', and what the log of a variant lost with "
        "'tierstore rm MODEL@N+NAME'"
    )
