"""A moto server (a simulated S3) in a process of its own, on a free port of this machine.

For correctness only: it takes a whole object's time for every ranged read.

moto looks whether an object exists and stores it in two steps, so that a few of many racing
``If-None-Match`` requests are both granted. S3 grants one, so here a lock around the server's
whole handling of a PUT makes it one step; the clients know nothing of it.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.servers.process import free_port, listening, running
from tests.servers.s3 import S3Server

_ROOT = Path(__file__).parents[2]
ACCESS_KEY = "AKIATESTTESTTESTTEST"
SECRET_KEY = "wJalrXUtnFEMIxSECRETxbPxRfiCYEXAMPLEKEY"


class Moto(S3Server):
    """Where the server listens, and what a test does beneath the store under test."""

    access_key = ACCESS_KEY
    secret_key = SECRET_KEY

    def __init__(self, port: int) -> None:
        self.port = port

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextlib.contextmanager
def moto_running(folder: Path) -> Iterator[Moto]:
    """A server of its own, empty; ``folder`` takes its log."""
    moto = Moto(free_port())
    # As a module from the repository's root: as a script, this file would be what "moto" imports.
    command = [sys.executable, "-m", "tests.servers.moto", str(moto.port)]
    with running(command, lambda: listening(moto.port), log=folder / "log", cwd=_ROOT):
        yield moto


def _serve(port: int) -> None:
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import run_simple

    app = DomainDispatcherApplication(create_backend_app)
    lock = threading.Lock()

    def one_put_at_a_time(environ: dict[str, Any], start_response: Any) -> Any:
        with lock if environ["REQUEST_METHOD"] == "PUT" else contextlib.nullcontext():
            return app(environ, start_response)

    run_simple("127.0.0.1", port, one_put_at_a_time, threaded=True)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
