"""Roles of processes whose clocks differ: ``python -m tests.schedules.clocks ROOT ROLE...``.

Each role is a forked child. Writers print what they were promised, a line for each version.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from tests.schedules.kill import opened
from tests.schedules.places import Disk
from tests.schedules.promises import CONTENTS, patched
from tierstore.errors import Conflict, Damaged, NotFound
from tierstore.modelstore.reclaim.collector import Collector
from tierstore.modelstore.store import Store

_ROUNDS = 6
_OVER = "over"


def write(store: Store, root: Path) -> None:
    """Save and patch, by turns what others have and what is new."""
    names = list(CONTENTS)
    for at in range(_ROUNDS):
        name = names[at % len(names)]
        version = store.save("m", CONTENTS[name], base="n@3" if at % 2 else None)
        print("m", version.number, name, 0, flush=True)
        changes, _ = patched(CONTENTS[name], 2)
        version = store.patch(str(version), changes)
        print("m", version.number, name, 2, flush=True)
    (root / _OVER).touch()


def remove(store: Store, root: Path) -> None:
    """Remove all but the newest two, and bring one back now and then."""
    while not (root / _OVER).exists():
        for version in store.versions("m")[2:]:
            try:
                store.remove(str(version))
                if version.number % 3 == 0:
                    store.undelete(str(version), message="kept")
            except (Conflict, NotFound):  # it is read, or lies below a patch, or it is too late
                continue


def collect(store: Store, root: Path) -> None:
    """Collect all the time, without grace and window."""
    while not (root / _OVER).exists():
        try:
            Collector(store._parts.home).run(grace_s=0, window_s=0)
        except (Conflict, Damaged):  # a version whose writer is still to store something again
            continue


def read(store: Store, root: Path) -> None:
    """Load the newest version, and read on in it while it gets older."""
    while not (root / _OVER).exists():
        for ref in ("m", "n"):
            try:
                model = store.load(ref)
                for _ in range(3):
                    model.load()
            except NotFound:
                if model.version.number not in store._names.removals.of(ref):
                    raise


ROLES: dict[str, Callable[[Store, Path], None]] = {
    "write": write,
    "remove": remove,
    "collect": collect,
    "read": read,
}


def main() -> int:
    """Play the roles that are asked for; return 1 unless all of them end well."""
    root, roles = Path(sys.argv[1]), sys.argv[2:]
    children = []
    for role in roles:
        child = os.fork()
        if not child:
            with opened(Disk(root)) as store:
                try:
                    ROLES[role](store, root)
                except BaseException:
                    (root / _OVER).touch()
                    raise
            return 0
        children.append(child)
    return 0 if all(os.waitpid(child, 0)[1] == 0 for child in children) else 1


if __name__ == "__main__":
    sys.exit(main())
