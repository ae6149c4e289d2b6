"""The hub gateway under clients that mean it ill, beside honest ones: memory, latency, answers.

Everything is on loopback, with no token, and bounded: 2,000 connections with half a request, 200
readers that take next to nothing of a model of 64 MiB, and clients that send bodies of 64 MiB which
nobody allowed. Eight honest clients send 10,000 requests of mixed kinds meanwhile: the info of a
model, its tree, ranges and whole small files. They come from an address of their own, as the others
do; with ``--one-address`` everybody shares one, as behind a proxy.

What it must show: memory below 512 MiB, the honest clients' median latency at most twice what it is
alone, and no 5xx for them. Rounds with and without the others alternate, as other work on the
machine changes. Honest and mean clients have a process each; all of them compete for the same
cores, so the CPU time of each is shown. ``--nice`` gives the mean ones what the rest leaves.

Run: ``python -m benchmarks.bench_gateway_load [--requests 10000] [--rounds 5] [--one-address]``
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import tierstore
from benchmarks.common import show, target, write_results
from benchmarks.data import bench_dir

HALF_OPEN = 2000
SLOW_READERS = 200
BODY_BYTES = 64 << 20
HONEST_CLIENTS = 8
MIB = 1 << 20
HONEST, MEAN = "127.0.0.1", "127.0.1.{}"
"""Addresses of clients; the mean ones have sixteen."""

KINDS: tuple[tuple[str, dict[str, str]], ...] = (
    ("/api/models/m", {}),
    ("/api/models/m/tree/main", {}),
    ("/api/models/m/refs", {}),
    ("/m/resolve/main/config.json", {}),
    ("/m/resolve/main/model.safetensors", {"Range": "bytes=1000000-1065535"}),
)


@dataclass
class Seen:
    """What the honest clients saw: seconds of each request, and the answers by status."""

    seconds: list[float] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)


def memory_mib(process: subprocess.Popen[str]) -> float:
    status = Path(f"/proc/{process.pid}/status").read_text()
    (line,) = [row for row in status.splitlines() if row.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def honest(port: int, requests: int) -> Seen:
    """Send requests from a few clients, each over one connection that it keeps."""
    seen, lock = Seen(), threading.Lock()

    def client(number: int) -> None:
        connection = http.client.HTTPConnection(
            HONEST, port, timeout=120, source_address=(HONEST, 0)
        )
        own = Seen()
        for count in range(requests // HONEST_CLIENTS):
            path, headers = KINDS[(count + number) % len(KINDS)]
            began = time.perf_counter()
            try:
                connection.request("GET", path, headers=headers)
                answer = connection.getresponse()
                answer.read()
                own.answers[f"{answer.status // 100}xx"] += 1
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                own.answers[type(error).__name__] += 1
            own.seconds.append(time.perf_counter() - began)
        connection.close()
        with lock:
            seen.seconds += own.seconds
            seen.answers += own.answers

    threads = [threading.Thread(target=client, args=(n,)) for n in range(HONEST_CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seen


def connect(port: int, source: str, rcvbuf: int = 0) -> socket.socket:
    client = socket.socket()
    if rcvbuf:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
    client.settimeout(60)
    client.bind((source, 0))
    client.connect((HONEST, port))
    return client


class MeanClients:
    """Keeps up half-open connections, slow readers and bodies without a token, until it is told."""

    def __init__(self, port: int, one_address: bool) -> None:
        self._port, self._one = port, one_address
        self._ended = threading.Event()
        self.counts: Counter[str] = Counter()
        works = (self._half_open, self._slow_readers, self._bodies)
        self._threads = [threading.Thread(target=work) for work in works]

    def run(self) -> None:
        """Say when the first round is complete; end with the standard input."""
        for thread in self._threads:
            thread.start()
        while self.counts["half-open connections"] < HALF_OPEN or not self.counts["rounds"]:
            time.sleep(0.05)
        print("ready", flush=True)
        sys.stdin.read()
        self._ended.set()
        for thread in self._threads:
            thread.join()
        del self.counts["rounds"]
        print(json.dumps(self.counts | {"s of CPU": time.process_time()}), flush=True)

    def _source(self, number: int) -> str:
        return HONEST if self._one else MEAN.format(1 + number % 16)

    def _half_open(self) -> None:
        held: list[socket.socket] = []
        number = 0
        while not self._ended.is_set():
            with contextlib.suppress(OSError):
                client = connect(self._port, self._source(number))
                client.sendall(b"GET /api/models/m HTTP/1.1\r\nHost: x\r\nX: ")
                held.append(client)
            number += 1
            self.counts["half-open connections"] += 1
            if len(held) > HALF_OPEN:
                held.pop(0).close()
            if number > HALF_OPEN:
                time.sleep(0.005)
        for client in held:
            client.close()

    def _slow_readers(self) -> None:
        held: dict[int, socket.socket] = {}
        ask = b"GET /m/resolve/main/model.safetensors HTTP/1.1\r\nHost: x\r\n\r\n"
        while not self._ended.is_set():
            for number in range(SLOW_READERS):
                with contextlib.suppress(OSError):
                    if number not in held:
                        held[number] = connect(self._port, self._source(number), 4096)
                        held[number].sendall(ask)
                        self.counts["slow readers"] += 1
                    if not held[number].recv(1000):
                        held.pop(number).close()
                        continue
            self.counts["rounds"] += 1
            self._ended.wait(0.5)
        for client in held.values():
            client.close()

    def _bodies(self) -> None:
        part = bytes(MIB)
        head = (
            "POST /api/models/m/commit/main HTTP/1.1\r\nHost: x\r\n"
            f"Content-Length: {BODY_BYTES}\r\n\r\n"
        ).encode()
        while not self._ended.is_set():
            with contextlib.suppress(OSError):
                client = connect(self._port, self._source(self.counts["bodies of 64 MiB"]))
                with client:
                    client.sendall(head)
                    for _ in range(BODY_BYTES // MIB):
                        client.sendall(part)
                        self.counts["MiB of bodies taken"] += 1
            self.counts["bodies of 64 MiB"] += 1


@dataclass
class Others:
    """The mean clients, in a process of their own."""

    counts: Counter[str] = field(default_factory=Counter)

    @contextmanager
    def at_work(self, port: int, options: list[str]) -> Iterator[None]:
        """Have them at work until the block ends, and add up what they did."""
        command = [sys.executable, "-m", "benchmarks.bench_gateway_load", "--mean", str(port)]
        pipe = subprocess.PIPE
        with subprocess.Popen([*command, *options], stdin=pipe, stdout=pipe, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                assert process.stdout.readline() == "ready\n"
                yield
                process.stdin.close()
                self.counts += Counter(json.loads(process.stdout.readline()))
            finally:
                process.kill()


@contextmanager
def gateway(root: Path) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    (root / "model").mkdir()
    (root / "model" / "config.json").write_text(json.dumps({"hidden": 32}))
    with tierstore.init(root / "store") as store:
        weights = np.random.default_rng(1).standard_normal(8 * MIB)
        from safetensors.numpy import save_file

        save_file({"w": weights}, root / "model" / "model.safetensors")
        store.save("m", root / "model")
        url = store.url
    command = [sys.executable, "-m", "tierstore", "--store", url, "serve", "hub", "--json"]
    command += ["--port", "0", "--spool", str(root / "spool")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(json.loads(process.stdout.readline())["url"].rpartition(":")[2]), process
        finally:
            process.terminate()
            process.wait(90)


def cpu_s(process: subprocess.Popen[str]) -> float:
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one-address", action="store_true")
    parser.add_argument("--nice", action="store_true")
    parser.add_argument("--mean", type=int, metavar="PORT", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.mean is not None:
        if args.nice:
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        MeanClients(args.mean, args.one_address).run()
        return
    options = ["--one-address"] * args.one_address + ["--nice"] * args.nice
    others = Others()
    alone, beside = Seen(), Seen()
    used: dict[str, float] = dict.fromkeys(("alone", "beside the others"), 0.0)
    with tempfile.TemporaryDirectory(dir=bench_dir()) as folder, gateway(Path(folder)) as served:
        port, process = served
        honest(port, 10 * HONEST_CLIENTS)  # what is opened and imported once
        for _ in range(args.rounds):
            for name, seen in (("alone", alone), ("beside the others", beside)):
                with others.at_work(port, options) if seen is beside else nullcontext():
                    before = cpu_s(process)
                    found = honest(port, args.requests // args.rounds)
                    used[name] += cpu_s(process) - before
                seen.seconds += found.seconds
                seen.answers += found.answers
        peak = memory_mib(process)
    report(args, {"alone": alone, "beside the others": beside}, used, peak, others.counts)


def report(
    args: argparse.Namespace,
    seen: dict[str, Seen],
    used: dict[str, float],
    peak: float,
    others: Counter[str],
) -> None:
    rows, medians = [], []
    results: dict[str, Any] = {name: value for name, value in vars(args).items() if name != "mean"}
    for name, one in seen.items():
        ordered = sorted(one.seconds)
        medians.append(median(ordered))
        p99 = ordered[int(len(ordered) * 0.99)]
        answers = ", ".join(f"{count} {what}" for what, count in sorted(one.answers.items()))
        rows.append(
            (name, len(ordered), 1000 * medians[-1], 1000 * p99, used[name], answers)
        )  # fmt: skip
        results[name] = {
            "median_s": medians[-1],
            "p99_s": p99,
            "gateway_cpu_s": used[name],
            "answers": dict(one.answers),
        }
    results["mean_clients"], results["peak_mib"] = dict(others), peak
    columns = ("honest clients", "requests", "median ms", "p99 ms", "gateway CPU s", "answers")
    show("The gateway under load", columns, rows)
    print("the others:", ", ".join(f"{count:.0f} {what}" for what, count in others.items()))
    failed = sum(n for what, n in seen["beside the others"].answers.items() if what != "2xx")
    print(f"memory {target(peak, '<', 512)}  MiB")
    print(f"median latency {target(medians[1] / medians[0], '<=', 2.0)} of that alone")
    print(f"answers that are no 2xx {target(failed, '<=', 0)}")
    write_results("gateway_load", results)


if __name__ == "__main__":
    main()
