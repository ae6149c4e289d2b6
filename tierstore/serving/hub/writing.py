"""Handlers of the Hub's write API: repositories, branches, uploads by git-lfs, commits."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tierstore.errors import NotFound
from tierstore.format.paths import is_own
from tierstore.ids import check_name
from tierstore.serving.hub.answers import HubError, repo_not_found
from tierstore.serving.hub.bodies import body_parts, read_body
from tierstore.serving.hub.commits import Committer, parse_commit
from tierstore.serving.hub.reading import Reading, text_of
from tierstore.serving.hub.repos import MAIN, oid_of
from tierstore.serving.hub.rights import Caller
from tierstore.serving.hub.spool import UploadSpool, check_oid
from tierstore.serving.hub.tree import is_lfs

_SMALL_BYTES = 1 << 20
_LISTS_BYTES = 64 << 20
"""Largest body with a list of files, in bytes: a commit holds its small files too."""

PART_BYTES = 64 << 20
"""Size of a part of an upload, in bytes; larger files come in parts, which can be sent again."""

_LONGEST_S = 6 * 3600
_LFS = "application/vnd.git-lfs+json"


@dataclass(frozen=True, slots=True)
class Writing:
    """The handlers of the write API.

    Attributes:
        reading: Handlers of the read API, which know callers and versions.
        spool: Uploads that wait for their commit.
        committer: Publisher of commits.
    """

    reading: Reading
    spool: UploadSpool
    committer: Committer

    def _writer(self, request: Request, model: str) -> Caller:
        caller = self.reading.caller(request)
        check_name("model", model)
        if not caller.may_write(model):
            if not caller.may_read(model):
                raise repo_not_found(model, anonymous=caller.name is None)
            raise HubError(403, f"this token may not write to {model}")
        return caller

    async def _json(self, request: Request, most: int) -> dict[str, Any]:
        try:
            found = json.loads(await read_body(request, most, self.reading.stall_s) or b"{}")
        except ValueError:
            raise HubError(400, "the body is not JSON") from None
        if not isinstance(found, dict):
            raise HubError(400, "the body must be a JSON object")
        return found

    async def create_repo(self, request: Request) -> Response:
        """``POST /api/repos/create``: a model, which exists once it has a version."""
        asked = await self._json(request, _SMALL_BYTES)
        parts = [asked.get("organization"), asked.get("name")]
        if asked.get("type", "model") != "model":
            raise HubError(400, "this gateway only has models")
        model = "/".join(str(part) for part in parts if part)
        return await run_in_threadpool(self._create_repo, request, model)

    def _create_repo(self, request: Request, model: str) -> Response:
        self._writer(request, model)
        url = f"{_base(request)}/{model}"
        try:
            self.reading.repos.main(model)
        except NotFound:
            return JSONResponse({"url": url, "name": model, "id": model})
        body = {"error": "You already created this model repo", "url": url}
        return JSONResponse(body, 409)

    async def create_branch(self, request: Request) -> Response:
        """``POST /api/models/{repo}/branch/{branch}``: a new alias."""
        asked = await self._json(request, _SMALL_BYTES)
        return await run_in_threadpool(self._create_branch, request, asked)

    def _create_branch(self, request: Request, asked: dict[str, Any]) -> Response:
        model, branch = text_of(request, "repo"), text_of(request, "rev")
        caller = self._writer(request, model)
        start = str(asked.get("startingPoint") or MAIN)
        commit = self.reading.repos.commit(model, start, caller)
        store = self.reading.repos.store
        if branch == MAIN or any(alias.name == branch for alias in store.aliases(model)):
            raise HubError(409, f"Reference already exists: {branch[:200]}")
        store.alias(model, branch, str(commit.version), message=_by("branch", caller))
        self.reading.repos.forget(model)
        return JSONResponse({"url": f"{_base(request)}/{model}/tree/{quote(branch, safe='')}"})

    def delete_branch(self, request: Request) -> Response:
        """``DELETE /api/models/{repo}/branch/{branch}``: remove an alias."""
        model, branch = text_of(request, "repo"), text_of(request, "rev")
        caller = self._writer(request, model)
        self.reading.repos.store.remove_alias(model, branch, message=_by("branch", caller))
        self.reading.repos.forget(model)
        return JSONResponse({})

    async def preupload(self, request: Request) -> Response:
        """``POST /api/models/{repo}/preupload/{rev}``: how to upload each file."""
        asked = await self._json(request, _LISTS_BYTES)
        return await run_in_threadpool(self._preupload, request, asked)

    def _preupload(self, request: Request, asked: dict[str, Any]) -> Response:
        model = text_of(request, "repo")
        caller = self._writer(request, model)
        known = {}
        try:
            commit = self.reading.repos.commit(model, text_of(request, "rev"), caller)
            opened = self.reading.repos.open(commit)
            known = {blob.path: blob.oid for blob in self.reading.blobs.all_of(opened)}
        except HubError as error:
            if error.status != 404:
                raise
        files = []
        for file in _objects(asked.get("files"), "files"):
            path, size = file.get("path"), file.get("size")
            if not isinstance(path, str) or not isinstance(size, int):
                raise HubError(400, "each of the files needs a path and a size")
            mode = "lfs" if is_lfs(path, size) else "regular"
            ignore = any(map(is_own, path.split("/")))
            files.append(
                {"path": path, "uploadMode": mode, "shouldIgnore": ignore, "oid": known.get(path)}
            )
        return JSONResponse({"files": files})

    async def lfs_batch(self, request: Request) -> Response:
        """``POST /{repo}.git/info/lfs/objects/batch``: where to upload files that are missing."""
        asked = await self._json(request, _LISTS_BYTES)
        return await run_in_threadpool(self._lfs_batch, request, asked)

    def _lfs_batch(self, request: Request, asked: dict[str, Any]) -> Response:
        model = text_of(request, "repo")
        self._writer(request, model)
        if asked.get("operation") != "upload":
            raise HubError(422, "this gateway takes uploads here; files are read by 'resolve'")
        transfers = asked.get("transfers") or ["basic"]
        try:
            newest = self.reading.repos.store.load(model)
        except NotFound:
            newest = None
        have = {file.sha256 for file in newest.files} if newest else set()
        wanted = [
            check_oid(one.get("oid"), one.get("size"))
            for one in _objects(asked.get("objects"), "objects")
        ]
        missing = sum(size for oid, size in wanted if oid not in have)
        objects: list[dict[str, Any]] = []
        room = self.spool.free()
        for oid, size in wanted:
            found: dict[str, Any] = {"oid": oid, "size": size}
            if missing > room:
                found["error"] = {"code": 507, "message": "the gateway's disk has no room for it"}
            elif oid not in have and self.spool.find(model, oid, size) is None:
                in_parts = size > PART_BYTES and "multipart" in transfers
                found["actions"] = self._actions(request, model, oid, size, in_parts)
            objects.append(found)
        large = any("chunk_size" in _header(one) for one in objects)
        body = {"transfer": "multipart" if large else "basic", "objects": objects}
        return JSONResponse(body, media_type=_LFS)

    def _actions(
        self, request: Request, model: str, oid: str, size: int, in_parts: bool
    ) -> dict[str, Any]:
        upload: dict[str, Any] = {"href": self._href(request, model, oid, size, 0)}
        if in_parts:
            count = math.ceil(size / PART_BYTES)
            upload["header"] = {"chunk_size": str(PART_BYTES)} | {
                str(part): self._href(request, model, oid, size, part)
                for part in range(1, count + 1)
            }
        verify = f"{_base(request)}/{quote(model)}.git/info/lfs/verify"
        return {"upload": upload, "verify": {"href": verify}}

    def _href(self, request: Request, model: str, oid: str, size: int, part: int) -> str:
        expires = int(time.time()) + _LONGEST_S
        signature = self.spool.sign(model, oid, size, part, expires)
        query = {"size": size, "part": part, "expires": expires, "signature": signature}
        return f"{_base(request)}/{quote(model)}.git/info/lfs/objects/{oid}?{urlencode(query)}"

    def _allowed(self, request: Request) -> tuple[str, str, int, int]:
        model = text_of(request, "repo")
        query = request.query_params
        numbers = [query.get(name, "") for name in ("size", "part", "expires")]
        if not all(text.isascii() and text.isdigit() and len(text) < 17 for text in numbers):
            raise HubError(403, "this URL is not one that the gateway gave out")
        size, part, expires = map(int, numbers)
        oid, size = check_oid(text_of(request, "oid"), size)
        self.spool.check(model, oid, size, part, expires, query.get("signature", ""))
        return model, oid, size, part

    async def upload(self, request: Request) -> Response:
        """``PUT`` to a URL that ``lfs_batch`` gave out: a file, or one part of it."""
        model, oid, size, part = self._allowed(request)
        most = size if part == 0 else min(PART_BYTES, size - (part - 1) * PART_BYTES)
        parts = body_parts(request, most, self.reading.stall_s)
        found = await self.spool.receive(model, oid, size, part, parts)
        self.reading.stats.received(most)
        return Response(status_code=200, headers={"ETag": f'"{found}"'})

    def complete(self, request: Request) -> Response:
        """``POST`` to the URL of the whole file: join its parts."""
        model, oid, size, _ = self._allowed(request)
        if self.spool.find(model, oid, size) is None:
            self.spool.join(model, oid, size, math.ceil(size / PART_BYTES))
        return JSONResponse({"success": True})

    async def verify(self, request: Request) -> Response:
        """``POST /{repo}.git/info/lfs/verify``: whether a file has arrived."""
        asked = await self._json(request, _SMALL_BYTES)
        return await run_in_threadpool(self._verify, request, asked)

    def _verify(self, request: Request, asked: dict[str, Any]) -> Response:
        model = text_of(request, "repo")
        self._writer(request, model)
        oid, size = check_oid(asked.get("oid"), asked.get("size"))
        if self.spool.find(model, oid, size) is None:
            raise HubError(404, f"{oid} was not uploaded")
        return JSONResponse({}, media_type=_LFS)

    async def commit(self, request: Request) -> Response:
        """``POST /api/models/{repo}/commit/{rev}``: a new version."""
        body = await read_body(request, _LISTS_BYTES, self.reading.stall_s)
        return await run_in_threadpool(self._commit, request, body)

    def _commit(self, request: Request, body: bytes) -> Response:
        model, branch = text_of(request, "repo"), text_of(request, "rev")
        caller = self._writer(request, model)
        if request.query_params.get("create_pr"):
            raise HubError(400, "this gateway has no pull requests: commit to a branch")
        version = self.committer.commit(model, branch, parse_commit(body), caller.name)
        return JSONResponse(
            {
                "success": True,
                "commitOid": oid_of(version),
                "commitUrl": f"{_base(request)}/{model}/commit/{oid_of(version)}",
                "hookOutput": "",
            }
        )


def _base(request: Request) -> str:
    return f"{request.url.scheme}://{request.headers.get('host', request.url.netloc)}"


def _by(what: str, caller: Caller) -> str:
    return f"{what} ({caller.name})" if caller.name else what


def _header(found: dict[str, Any]) -> dict[str, Any]:
    header: dict[str, Any] = found.get("actions", {}).get("upload", {}).get("header", {})
    return header


def _objects(value: object, name: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise HubError(400, f"{name} must be a list of objects")
    return value
