"""The command line: ``tierstore`` (see ``tierstore --help``) and ``python -m tierstore``."""

from __future__ import annotations

import sys
from typing import NoReturn

__all__ = ["main"]


def main() -> NoReturn:
    """Run the command in ``sys.argv`` and exit with its code."""
    from tierstore.cli.kit.signals import Terminated, end_at_once, end_on_sigterm

    end_on_sigterm()
    try:
        from tierstore.cli.kit import streams

        streams.prepare()  # before anything is opened, which would take their place
        from tierstore.cli.kit.app import run

        code = run(sys.argv[1:])
    except Terminated:  # while the program was being loaded, or printed its last line
        print("tierstore: error: terminated", file=sys.stderr)
        code = Terminated.code
    except KeyboardInterrupt:
        print("tierstore: error: interrupted", file=sys.stderr)
        code = 130
    end_at_once()
    sys.exit(code)
