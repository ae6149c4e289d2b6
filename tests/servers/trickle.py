"""A server that is not dead: it sends a byte now and then, for ever."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_PAUSE_S = 0.02


@contextmanager
def trickling(beginning: bytes) -> Iterator[int]:
    """Its port. Each client gets ``beginning`` when it has sent something, then single bytes."""
    ended = threading.Event()
    threads: list[threading.Thread] = []

    def serve(client: socket.socket) -> None:
        with client, suppress(OSError):
            client.recv(1 << 16)
            client.sendall(beginning)
            while not ended.wait(_PAUSE_S):
                client.sendall(b"x")

    def accept() -> None:
        while not ended.is_set():
            with suppress(TimeoutError):
                client = listener.accept()[0]
                threads.append(threading.Thread(target=serve, args=(client,)))
                threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield listener.getsockname()[1]
        finally:
            ended.set()
            accepting.join()
            for thread in threads:
                thread.join()
