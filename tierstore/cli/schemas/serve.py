"""What ``--json`` prints of servers; the rules are those of ``core``."""

from __future__ import annotations

from tierstore.cli.schemas.core import Schema


class Serving(Schema):
    """Printed once it answers, on one line; ``writable`` when tokens may allow to write."""

    url: str
    store: str
    writable: bool
