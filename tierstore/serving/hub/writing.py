"""Handlers of the Hub's write API: repositories, branches, uploads by git-lfs, commits."""

from __future__ import annotations

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
from tierstore.serving.hub.answers import HubError, base_of
from tierstore.serving.hub.bodies import body_parts, json_object
from tierstore.serving.hub.commits import Committer, parse_commit
from tierstore.serving.hub.endpoints import Call, UploadCall, WriteCall, text_of
from tierstore.serving.hub.repos import MAIN, oid_of
from tierstore.serving.hub.rights import Caller
from tierstore.serving.hub.spool import UploadSpool, check_oid
from tierstore.serving.hub.stats import HubStats
from tierstore.serving.hub.tree import Blobs, is_lfs

SMALL_BYTES = 64 << 10
"""Largest body that names one thing, in bytes."""

LISTS_BYTES = 4 << 20
"""Largest body with a list of files, in bytes."""

COMMIT_BYTES = 64 << 20
"""Largest body of a commit, in bytes: it holds the small files."""

PART_BYTES = 64 << 20
"""Size of a part of an upload, in bytes; larger files come in parts, which can be sent again."""

_LONGEST_S = 6 * 3600
_LFS = "application/vnd.git-lfs+json"


@dataclass(frozen=True, slots=True)
class Writing:
    """The handlers of the write API.

    Attributes:
        spool: Uploads that wait for their commit.
        committer: Publisher of commits.
        blobs: Ids of files.
        stats: Counters of the gateway.
        stall_s: Seconds for which a client may send nothing.
    """

    spool: UploadSpool
    committer: Committer
    blobs: Blobs
    stats: HubStats
    stall_s: float

    def create_repo(self, call: WriteCall) -> Response:
        """``POST /api/repos/create``: a model, which exists once it has a version."""
        if json_object(call.body).get("type", "model") != "model":
            raise HubError(400, "this gateway only has models")
        name = call.repo.name
        url = f"{base_of(call.request)}/{name}"
        try:
            call.repo.main()
        except NotFound:
            return JSONResponse({"url": url, "name": name, "id": name})
        body = {"error": "You already created this model repo", "url": url}
        return JSONResponse(body, 409)

    def validate_yaml(self, call: Call) -> Response:
        """``POST /api/validate-yaml``: clients ask before they upload a model card; any is taken.

        Nothing here reads the card, which is a file as others are: the body is not looked at.
        """
        return JSONResponse({"errors": [], "warnings": []})

    def create_branch(self, call: WriteCall) -> Response:
        """``POST /api/models/{repo}/branch/{branch}``: a new alias."""
        branch = text_of(call.request, "rev")
        start = str(json_object(call.body).get("startingPoint") or MAIN)
        call.repo.add_branch(branch, call.repo.commit(start), _by("branch", call.caller))
        url = f"{base_of(call.request)}/{call.repo.name}/tree/{quote(branch, safe='')}"
        return JSONResponse({"url": url})

    def delete_branch(self, call: WriteCall) -> Response:
        """``DELETE /api/models/{repo}/branch/{branch}``: remove an alias."""
        call.repo.remove_branch(text_of(call.request, "rev"), _by("branch", call.caller))
        return JSONResponse({})

    def preupload(self, call: WriteCall) -> Response:
        """``POST /api/models/{repo}/preupload/{rev}``: how to upload each file."""
        asked = json_object(call.body)
        known = {}
        try:
            model = call.repo.open(call.repo.commit(text_of(call.request, "rev")))
            model.fold()  # as the commit that follows does
            known = {blob.path: blob.oid for blob in self.blobs.all_of(model)}
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

    def lfs_batch(self, call: WriteCall) -> Response:
        """``POST /{repo}.git/info/lfs/objects/batch``: where to upload files that are missing."""
        asked = json_object(call.body)
        if asked.get("operation") != "upload":
            raise HubError(422, "this gateway takes uploads here; files are read by 'resolve'")
        transfers = asked.get("transfers") or ["basic"]
        model, have = call.repo.name, call.repo.stored_sha256s()
        wanted = [
            check_oid(one.get("oid"), one.get("size"))
            for one in _objects(asked.get("objects"), "objects")
        ]
        missing = sum(size for oid, size in wanted if oid not in have)
        objects: list[dict[str, Any]] = []
        self.spool.sweep_now_and_then()
        room = self.spool.free()
        for oid, size in wanted:
            found: dict[str, Any] = {"oid": oid, "size": size}
            if missing > room:
                found["error"] = {"code": 507, "message": "the gateway's disk has no room for it"}
            elif oid not in have and self.spool.find(model, oid, size) is None:
                in_parts = size > PART_BYTES and "multipart" in transfers
                found["actions"] = self._actions(call.request, model, oid, size, in_parts)
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
        verify = f"{base_of(request)}/{quote(model)}.git/info/lfs/verify"
        return {"upload": upload, "verify": {"href": verify}}

    def _href(self, request: Request, model: str, oid: str, size: int, part: int) -> str:
        expires = int(time.time()) + _LONGEST_S
        signature = self.spool.sign(model, oid, size, part, expires)
        query = {"size": size, "part": part, "expires": expires, "signature": signature}
        return f"{base_of(request)}/{quote(model)}.git/info/lfs/objects/{oid}?{urlencode(query)}"

    async def upload(self, call: UploadCall) -> Response:
        """``PUT`` to a URL that ``lfs_batch`` gave out: a file, or one part of it."""
        size, part = call.size, call.part
        most = size if part == 0 else min(PART_BYTES, size - (part - 1) * PART_BYTES)
        parts = body_parts(call.request, most, self.stall_s)
        found = await self.spool.receive(call.repo, call.oid, size, part, parts)
        self.stats.received(most)
        return Response(status_code=200, headers={"ETag": f'"{found}"'})

    async def complete(self, call: UploadCall) -> Response:
        """``POST`` to the URL of the whole file: join its parts."""
        await run_in_threadpool(self._complete, call)
        return JSONResponse({"success": True})

    def _complete(self, call: UploadCall) -> None:
        if self.spool.find(call.repo, call.oid, call.size) is None:
            self.spool.join(call.repo, call.oid, call.size, math.ceil(call.size / PART_BYTES))

    def verify(self, call: WriteCall) -> Response:
        """``POST /{repo}.git/info/lfs/verify``: whether a file has arrived."""
        asked = json_object(call.body)
        oid, size = check_oid(asked.get("oid"), asked.get("size"))
        if self.spool.find(call.repo.name, oid, size) is None:
            raise HubError(404, f"{oid} was not uploaded")
        return JSONResponse({}, media_type=_LFS)

    def commit(self, call: WriteCall) -> Response:
        """``POST /api/models/{repo}/commit/{rev}``: a new version."""
        request = call.request
        if request.query_params.get("create_pr"):
            raise HubError(400, "this gateway has no pull requests: commit to a branch")
        branch = text_of(request, "rev")
        version = self.committer.commit(call.repo, branch, parse_commit(call.body))
        return JSONResponse(
            {
                "success": True,
                "commitOid": oid_of(version),
                "commitUrl": f"{base_of(request)}/{call.repo.name}/commit/{oid_of(version)}",
                "hookOutput": "",
            }
        )


def _by(what: str, caller: Caller) -> str:
    return f"{what} ({caller.name})" if caller.name else what


def _header(found: dict[str, Any]) -> dict[str, Any]:
    header: dict[str, Any] = found.get("actions", {}).get("upload", {}).get("header", {})
    return header


def _objects(value: object, name: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise HubError(400, f"{name} must be a list of objects")
    return value
