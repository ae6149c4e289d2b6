"""A network between two ends of this machine whose bandwidth can be capped.

A pair of virtual interfaces joins this machine to a network namespace of its own. Servers listen
on ``Link.address`` on this side, clients run in the namespace by ``Link.command``, and what the
servers send passes a token bucket (``tc tbf``). Needs Linux, root and iproute2; nothing stays
behind.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_BURST = "256k"  # several packets as large as the kernel makes them
_LATENCY = "50ms"


@dataclass(frozen=True)
class Link:
    """One end here, the other in the namespace ``name``.

    Attributes:
        name: of the interface here and of the namespace.
        address: of the end here.
    """

    name: str
    address: str

    def command(self, argv: Sequence[str]) -> list[str]:
        """The command, to be run at the other end."""
        return ["ip", "netns", "exec", self.name, *argv]

    def cap(self, rate: str | None) -> None:
        """Limit what this end sends, to ``1gbit`` and the like; ``None`` for no limit."""
        subprocess.run(
            ["tc", "qdisc", "del", "dev", self.name, "root"], check=False, capture_output=True
        )
        if rate is not None:
            limit = ["tbf", "rate", rate, "burst", _BURST, "latency", _LATENCY]
            _run("tc", "qdisc", "add", "dev", self.name, "root", *limit)

    @property
    def sent(self) -> int:
        """Bytes on the wire from this end so far, headers of all layers included."""
        return int(Path(f"/sys/class/net/{self.name}/statistics/tx_bytes").read_text())


@contextmanager
def link() -> Iterator[Link]:
    """Set it up, uncapped."""
    name = f"ts{os.getpid()}"
    inner = f"{name}c"
    # four addresses of our own: another process may have a link, too
    number = os.getpid() % (1 << 14)
    here, there = (f"10.213.{number >> 6}.{((number & 63) << 2) + end}" for end in (1, 2))
    _run("ip", "netns", "add", name)
    try:
        _run("ip", "link", "add", name, "type", "veth", "peer", "name", inner, "netns", name)
        _run("ip", "addr", "add", f"{here}/30", "dev", name)
        _run("ip", "link", "set", name, "up")
        _run("ip", "-n", name, "addr", "add", f"{there}/30", "dev", inner)
        _run("ip", "-n", name, "link", "set", inner, "up")
        _run("ip", "-n", name, "link", "set", "lo", "up")
        yield Link(name, here)
    finally:
        _run("ip", "netns", "del", name)


def _run(*argv: str) -> None:
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(argv)}: {done.stderr.strip()}; this needs root and iproute2")
