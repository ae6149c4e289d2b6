"""The public ways of reading a store, each as a function that returns what it read as text."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tierstore
from tierstore.errors import Damaged
from tierstore.serving.hub.app import make_app
from tierstore.serving.hub.zerocopy import EXTENSION
from tierstore.store import Store

REFS = ("m@1", "m@2", "m@3", "m@4", "m@1+bf16")
RANGE = (300_000, 900_000)


def _sum(*parts: bytes | memoryview) -> str:
    found = hashlib.blake2b(digest_size=12)
    for part in parts:
        found.update(part)
    return found.hexdigest()


def load(store: Store, ref: str) -> str:
    """Every tensor."""
    arrays = store.load(ref).load()
    return "\n".join(f"{name} {_sum(arrays[name].tobytes())}" for name in sorted(arrays))


def rows(store: Store, ref: str) -> str:
    """Some rows."""
    return _sum(store.load(ref).tensor("emb")[[0, 3, 4, 2500, 4000, 4999]].tobytes())


def slices(store: Store, ref: str) -> str:
    """A slice, across chunks."""
    return _sum(np.ascontiguousarray(store.load(ref).tensor("emb")[1000:4500]).tobytes())


def files(store: Store, ref: str) -> str:
    """Every file, as bytes."""
    model = store.load(ref)
    return "\n".join(f"{file.path} {_sum(model.read_file(file.path))}" for file in model.files)


def ranges(store: Store, ref: str) -> str:
    """A range of a file, once read and once in the parts that would be sent of it."""
    view = store.load(ref).open_file("model.safetensors")
    sent = b""
    for part in view.parts(*RANGE):
        if isinstance(part, bytes):
            sent += part
            continue
        with part.file as file:
            sent += os.pread(file.fileno(), part.plain_bytes, part.offset)
    return f"{_sum(view.read(RANGE[0], RANGE[1] - RANGE[0]))} {_sum(sent)}"


def export(store: Store, ref: str) -> str:
    """All of it as a directory."""
    with tempfile.TemporaryDirectory() as folder:
        store.load(ref).export(folder)
        return "\n".join(
            f"{path.name} {_sum(path.read_bytes())}"
            for path in sorted(Path(folder).iterdir())
            if not path.name.startswith(".")
        )


def gateway(store: Store, ref: str) -> str:
    """The bodies of a large file at the gateway, once copied and once sent from where it lies."""
    return _bodies(store, ref, "model.safetensors")


def gateway_range(store: Store, ref: str) -> str:
    """The bodies of a range of a file."""
    return _bodies(store, ref, "model.safetensors", RANGE)


def gateway_small(store: Store, ref: str) -> str:
    """The bodies of a small file, whose ETag is git's id of it."""
    return _bodies(store, ref, "config.json")


def _bodies(store: Store, ref: str, path: str, span: tuple[int, int] | None = None) -> str:
    with tempfile.TemporaryDirectory() as folder:
        app = make_app(store, Path(folder))
        asked = f"/m/resolve/{ref.removeprefix('m@')}/{path}"
        return "\n".join(_body(app, asked, span, sent=sent) for sent in (False, True))


def _body(app: Any, path: str, span: tuple[int, int] | None, *, sent: bool) -> str:
    headers = [] if span is None else [(b"range", b"bytes=%d-%d" % (span[0], span[1] - 1))]
    scope = {
        "type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "scheme": "http",
        "query_string": b"", "headers": headers, "server": ("x", 80), "client": ("x", 1),
        "http_version": "1.1", "root_path": "", "extensions": {EXTENSION: {}} if sent else {},
    }  # fmt: skip
    body, answer = [], {}
    asked = False
    closed = asyncio.Event()

    async def receive() -> dict[str, Any]:
        nonlocal asked
        if asked:
            await closed.wait()
        asked = True
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            answer.update(message)
        elif message["type"] == EXTENSION:
            body.append(os.pread(message["file"].fileno(), message["count"], message["offset"]))
        else:
            body.append(bytes(message.get("body", b"")))

    try:
        asyncio.run(app(scope, receive, send))
    except ConnectionAbortedError as error:
        raise Damaged(f"the answer was broken off: {error}") from None
    if answer["status"] >= 400:
        raise Damaged(f"status {answer['status']}: {b''.join(body)!r}")
    etag = dict(answer["headers"])[b"etag"].decode()
    return f"{path} {span} {etag} {_sum(*body)}"


def names(store: Store, ref: str) -> str:
    """What references mean, and how they came to mean it."""
    said: list[object] = [store.resolve(f"m@{name}") for name in (*range(1, 5), "prod", "canary")]
    said += store.versions("m")
    said += store.aliases("m")
    said += store.all_variants("m")
    said += [entry for alias in ("prod", "canary") for entry in store.history("m", alias)]
    said += [store.resolve("m@release:bundle@1"), store.releases.get("bundle@1").members]
    return "\n".join(map(repr, said))


def tiers(store: Store, ref: str) -> str:
    """Tiers, what is pinned, and the state of a rollout."""
    pinned = sorted({pin.version.hex for pin in store.pins.active()})
    status = store.rollouts.status("m", "canary")
    return "\n".join([*map(repr, store.tiers()), *pinned, repr(status)])


def heat(store: Store, ref: str) -> str:
    """Packs that were read, and are none: how much was read changes with every read."""
    tiers = store._parts.home.packs.tiers
    known = {info.key[-64:] for tier in tiers for info in tier.blobs.list("packs/")}
    return repr(sorted({key.hex() for key in store.heat().packs()} - known))


def patches(store: Store, ref: str) -> str:
    """What patches change."""
    return "\n".join(
        f"{name} {_sum(np.ascontiguousarray(change.values).tobytes())}"
        for patch in store.patches("m@2", "m@4")
        for name, change in sorted(patch.changes().items())
    )


def save(store: Store, ref: str) -> str:
    """What is saved in a copy of the store, where much of it is known already."""
    warm = Path(
        next(spec.url for spec in store.tiers() if spec.role == "warm").removeprefix("file://")
    )
    known = set(warm.rglob("*"))
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIERSTORE_CACHE_DIR", f"{folder}/cache")  # a known index is not read again
        shutil.copytree(store.url.removeprefix("file://"), f"{folder}/store")
        try:
            with tierstore.open(f"{folder}/store") as copy:
                copy.save("copy", store.load(ref).load())
                return load(copy, "copy")
        finally:
            for path in set(warm.rglob("*")) - known:
                if path.is_file():
                    path.unlink()


Way = Callable[[Store, str], str]
DATA: dict[str, Way] = {
    "load": load, "rows": rows, "slices": slices, "files": files, "ranges": ranges,
    "export": export, "gateway": gateway, "gateway range": gateway_range,
    "gateway small": gateway_small, "patches": patches,
}  # fmt: skip
METADATA: dict[str, Way] = {
    "names": names, "tiers": tiers, "heat": heat, "load": load, "rows": rows, "files": files,
    "export": export, "gateway": gateway, "gateway small": gateway_small, "patches": patches,
    "save": save,
}  # fmt: skip
WAYS = DATA | METADATA
