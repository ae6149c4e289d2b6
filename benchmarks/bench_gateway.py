"""The hub gateway against nginx, which serves the raw file: the same client, one worker each.

A file of 1 GiB (bf16 weights) to ``/dev/null``: by one ``curl``, by eight at a time that each take
the whole, and by ``huggingface_hub``'s own download function. The gateway reads a store with a hot
tier on this node, warm before it begins; nginx's file lies in the page cache. ``cold`` is the same
gateway of a store without a hot tier, which decodes what it sends.

Run: ``python -m benchmarks.bench_gateway [--rounds 5]``; needs nginx and curl.
"""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import tierstore
from benchmarks.common import (
    Sample,
    alternate,
    input_file,
    median,
    paired_ratio,
    show,
    target,
    timed,
    warm,
    write_results,
)

CLIENTS = 8
MANY_TIMES, ONE_TIMES = 0.5, 0.8
HUB = """
import sys, tempfile
from huggingface_hub.file_download import http_get
with tempfile.NamedTemporaryFile(dir=sys.argv[2]) as file:
    http_get(sys.argv[1], file)
"""
NGINX = """
worker_processes 1;
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
  access_log off;
  sendfile on;
  tcp_nopush on;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  server {{ listen 127.0.0.1:{port}; root {root}; }}
}}
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def nginx(folder: Path, root: Path) -> Iterator[str]:
    """One worker that serves a folder."""
    port = free_port()
    conf = folder / "nginx.conf"
    conf.write_text(NGINX.format(folder=folder, port=port, root=root))
    program = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin")
    if program is None:
        raise SystemExit("nginx is missing: run benchmarks/envs.sh")
    with subprocess.Popen([program, "-c", str(conf), "-p", str(folder)]) as process:
        try:
            for _ in range(100):
                with socket.socket() as client:
                    if client.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


@contextmanager
def gateway(store: Path, folder: Path) -> Iterator[str]:
    """One process, as an operator starts it."""
    command = [
        sys.executable, "-m", "tierstore", "--store", str(store), "serve", "hub", "--json",
        "--port", "0", "--spool", str(folder / f"{store.name}-spool"),
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            url: str = json.loads(process.stdout.readline())["url"]
            yield url
        finally:
            process.terminate()


def curl(url: str, clients: int) -> Callable[[], Sample]:
    """That many clients at a time, each for the whole file."""

    def run() -> None:
        running = [
            subprocess.Popen(["curl", "-sS", "-f", "-o", "/dev/null", url]) for _ in range(clients)
        ]
        failed = [process.wait() for process in running]
        if any(failed):
            raise SystemExit(f"curl {url} failed: {failed}")

    return lambda: timed(run)


def hub(url: str, folder: Path) -> Callable[[], Sample]:
    """``huggingface_hub``'s download of one file into a folder, in a fresh process."""
    command = [sys.executable, "-c", HUB, url, str(folder)]

    def run() -> None:
        subprocess.run(command, check=True, capture_output=True)

    return lambda: timed(run)


def stores(folder: Path, file: Path) -> dict[str, Path]:
    """A store with a hot tier that has it all, and one without."""
    found = {}
    for name in ("hot", "cold"):
        tiers = []
        if name == "hot":
            tiers = [tierstore.TierSpec(name="hot", role="hot", url=f"{folder}/tier", size=3 << 30)]
        with tierstore.init(folder / name, tiers=tiers) as store:
            store.save("bench", file)
            if name == "hot":
                store.warmup("bench")
        found[name] = folder / name
    return found


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    file = input_file("tiled-bf16")
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(dir=file.parent) as parent, ExitStack() as stack:
        folder = Path(parent)
        made = stores(folder, file)
        warm(file)
        urls = {"nginx": f"{stack.enter_context(nginx(folder, file.parent))}/{file.name}"}
        for name, store in made.items():
            base = stack.enter_context(gateway(store, folder))
            urls[name] = f"{base}/bench/resolve/main/{file.name}"
        kinds: dict[str, Callable[[str], Callable[[], Sample]]] = {
            "1 curl": lambda url: curl(url, 1),
            f"{CLIENTS} curl": lambda url: curl(url, CLIENTS),
            "huggingface_hub": lambda url: hub(url, folder),
        }
        size = file.stat().st_size
        for kind, make in kinds.items():
            samples = alternate({name: make(url) for name, url in urls.items()}, rounds)
            count = CLIENTS if kind.startswith(str(CLIENTS)) else 1
            walls = {name: [one.wall for one in found] for name, found in samples.items()}
            results[kind] = {
                f"{name} MB/s": size * count / 1e6 / median(found, "wall")
                for name, found in samples.items()
            } | {
                f"{name} / nginx": paired_ratio(walls["nginx"], walls[name])
                for name in ("hot", "cold")
            }
    rows = []
    for kind, found in results.items():
        least = ONE_TIMES if kind == "huggingface_hub" else MANY_TIMES
        met = target(found["hot / nginx"], ">=", least)
        rows.append([
            kind, *(f"{found[f'{name} MB/s']:.0f}" for name in ("nginx", "hot", "cold")),
            met, f"{found['cold / nginx']:.2f}",
        ])  # fmt: skip
    columns = ["client", "nginx MB/s", "hot MB/s", "cold MB/s", "hot / nginx", "cold / nginx"]
    show("Hub gateway, 1 GiB", columns, rows)
    write_results("gateway", {"results": results})


if __name__ == "__main__":
    main()
