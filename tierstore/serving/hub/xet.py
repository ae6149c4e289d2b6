"""Uploads by the Xet protocol, which clients with ``hf_xet`` use without asking for another one.

A client cuts its files into chunks, and sends them in objects of up to 64 MiB, xorbs. A shard says
then of which chunks each file consists, and what its SHA-256 is; the file is put together in the
spool, where a commit finds it as if it had been uploaded by git-lfs.

Clients remember which chunks they have sent to an address, and do not send these again. The address
is therefore one of a session: of a model, a caller, and half a day. It changes before the spool
removes the first of the session's xorbs.

Source: github.com/huggingface/xet-core, ``openapi/cas.openapi.yaml``.
"""

from __future__ import annotations

import mmap
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from tierstore.serving.hub.answers import HubError, base_of
from tierstore.serving.hub.bodies import body_parts
from tierstore.serving.hub.endpoints import SessionCall, WriteCall, text_of
from tierstore.serving.hub.spool import UploadSpool
from tierstore.serving.hub.stats import HubStats
from tierstore.serving.hub.xorbs import Malformed, XetFile, Xorb, files_of

XORB_BYTES = 65 << 20
"""Largest xorb as it is sent, in bytes: 64 MiB of chunks, and the head of each."""

SHARD_BYTES = 64 << 20
"""Largest shard, in bytes."""

_SESSION_S = 12 * 3600
_AFTER_S = 6 * 3600
_XORBS_OPEN = 32
_HASH = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True, slots=True)
class Xet:
    """The handlers of uploads by the Xet protocol.

    Attributes:
        spool: Uploads that wait for their commit.
        stats: Counters of the gateway.
        stall_s: Seconds for which a client may send nothing.
    """

    spool: UploadSpool
    stats: HubStats
    stall_s: float

    def token(self, call: WriteCall) -> Response:
        """``GET /api/models/{repo}/xet-write-token/{rev}``: where to upload, and a token for it."""
        model, number = call.repo.name, int(time.time()) // _SESSION_S
        self.spool.sweep_now_and_then()
        session = self.spool.session(model, call.caller.name or "", number)
        expires = (number + 1) * _SESSION_S + _AFTER_S
        url = f"{base_of(call.request)}/{quote(model)}.git/info/xet/{session}"
        token = f"{expires}.{self.spool.sign(model, session, 0, 0, expires)}"
        headers = {
            "X-Xet-Cas-Url": url,
            "X-Xet-Token-Expiration": str(expires),
            "X-Xet-Access-Token": token,
        }
        body = {"casUrl": url, "exp": expires, "accessToken": token}
        return JSONResponse(body, headers=headers | {"Cache-Control": "no-store"})

    async def xorb(self, call: SessionCall) -> Response:
        """``POST …/v1/xorbs/default/{hash}``: a part of what is uploaded."""
        name = text_of(call.request, "hash")
        if not _HASH.match(name):
            raise HubError(400, "the name of a xorb is a hash of 64 lower-case hex digits")
        if self.spool.free() < XORB_BYTES:
            raise HubError(507, "the gateway's disk has no room for it")
        parts = body_parts(call.request, XORB_BYTES, self.stall_s)
        path = await self.spool.receive_xet(call.session, name, parts)
        self.stats.received(path.stat().st_size)
        return JSONResponse({"was_inserted": True})

    async def shard(self, call: SessionCall) -> Response:
        """``POST …/v1/shards``: put the files together that a shard lists."""
        parts = body_parts(call.request, SHARD_BYTES, self.stall_s)
        path = await self.spool.receive_xet(call.session, None, parts)
        try:
            await run_in_threadpool(self._put_together, call, path)
        finally:
            path.unlink(missing_ok=True)
        return JSONResponse({"result": 1})

    def _put_together(self, call: SessionCall, shard: Path) -> None:
        xorb_of = lru_cache(_XORBS_OPEN)(lambda name: self._open(call.session, name))
        try:
            for file in files_of(_mapped(shard)):
                if self.spool.find(call.repo, file.sha256, file.size) is not None:
                    continue
                if self.spool.free() < file.size:
                    raise HubError(507, "the gateway's disk has no room for the upload")
                kept = self.spool.keep(call.repo, _content(file, xorb_of))
                if kept.name != file.sha256:
                    raise HubError(400, f"the chunks of {file.sha256} make {kept.name}")
        except Malformed as error:
            raise HubError(400, str(error)) from None

    def _open(self, session: str, name: str) -> Xorb:
        try:
            return Xorb(_mapped(self.spool.xet_path(session, name)))
        except FileNotFoundError:
            raise HubError(400, f"the xorb {name} was not uploaded: begin again") from None


def _content(file: XetFile, xorb_of: Callable[[str], Xorb]) -> Iterator[bytes]:
    for term in file.terms():
        yield from xorb_of(term.xorb).chunks(term)


def _mapped(path: Path) -> memoryview:
    with path.open("rb") as file:
        try:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except ValueError:  # it is empty
            return memoryview(b"")
