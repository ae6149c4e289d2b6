"""Records anew what the commands print with ``--json``: only when they are meant to print it.

    python -m tests.golden.record_commands [SCENARIO ...]

Without names all scenarios are recorded, those of ``WITH_EXTRAS`` included, which need
``pip install 'tierstore[hub,metrics,demo]'``. ``git diff tests/golden/commands`` then shows what
has changed; tests never run this.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.golden.replay import RECORDED, play
from tests.golden.scenarios import SCENARIOS, WITH_EXTRAS


def main(names: list[str]) -> None:
    known = SCENARIOS | WITH_EXTRAS
    if unknown := set(names) - set(known):
        sys.exit(f"there is no scenario {', '.join(sorted(unknown))}: {', '.join(known)}")
    for name in names or known:
        with tempfile.TemporaryDirectory() as folder:
            text = play(name, Path(folder))
        (RECORDED / f"{name}.json").write_text(text, "utf-8")
        print(f"recorded {name}")


if __name__ == "__main__":
    main(sys.argv[1:])
