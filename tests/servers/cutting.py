"""A proxy that cuts connections in the middle of an answer."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass


@dataclass
class Cutter:
    """``port`` is where clients connect; the next ``cuts`` long answers end after ``after`` bytes.

    ``cut`` counts those that did.
    """

    port: int
    after: int
    cuts: int
    cut: int = 0


@contextmanager
def cutting(target: int, *, after: int, cuts: int) -> Iterator[Cutter]:
    """Pass on to ``target`` on loopback until the block ends."""
    lock = threading.Lock()

    def pump(source: socket.socket, sink: socket.socket, answers: bool) -> None:
        passed = 0
        with suppress(OSError):
            while data := source.recv(1 << 16):
                passed += len(data)
                with lock:
                    stop = answers and passed > cutter.after and cutter.cut < cutter.cuts
                    cutter.cut += stop
                if stop:
                    break
                sink.sendall(data)
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def serve(client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", target)) as server:
            back = threading.Thread(target=pump, args=(server, client, True))
            back.start()
            pump(client, server, False)
            back.join()

    def accept() -> None:
        with suppress(OSError):
            while True:
                client = listener.accept()[0]
                threading.Thread(target=serve, args=(client,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        cutter = Cutter(listener.getsockname()[1], after, cuts)
        threading.Thread(target=accept, daemon=True).start()
        try:
            yield cutter
        finally:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
