"""Output of servers with ``--json``; the rules are those of ``core``."""

from __future__ import annotations

from tierstore.cli.schemas.core import Schema


class Serving(Schema):
    """A server, printed on one line once it answers; ``writable`` if tokens may allow writes."""

    url: str
    store: str
    writable: bool
