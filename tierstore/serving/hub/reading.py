"""Handlers of the Hub's read API: whoami, models, revisions, trees, refs, commits, files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any
from urllib.parse import parse_qs, quote, urlencode

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tierstore.errors import InvalidName, NotFound
from tierstore.format.paths import check_path
from tierstore.modelstore.loading.fileview import FileView
from tierstore.modelstore.loading.model import Model
from tierstore.modelstore.saving.source import SUFFIX
from tierstore.modelstore.version import Version
from tierstore.serving.hub.answers import HubError, base_of, entry_not_found
from tierstore.serving.hub.bodies import json_of
from tierstore.serving.hub.endpoints import Call, ReadCall, VersionCall, text_of
from tierstore.serving.hub.files import FileBody, Sender, headers_of, is_fresh, range_of
from tierstore.serving.hub.repos import Commit, Repos, oid_of
from tierstore.serving.hub.rights import whoami
from tierstore.serving.hub.tree import Blobs, Tree

PAGE = 1000
_COMMITS_PAGE = 100
_MODELS_PAGE = 1000
_MOST_PATHS = 5000
PATHS_BYTES = 1 << 20
"""Largest body with a list of paths, in bytes."""

_INDEX = ".index.json"
_INDEX_BYTES = 16 << 20
_HEADERS_BYTES = 32 << 20


def when(time: datetime) -> str:
    """Return a time in the form that clients parse."""
    return time.strftime("%Y-%m-%dT%H:%M:%S.") + f"{time.microsecond // 1000:03d}Z"


@dataclass(frozen=True, slots=True)
class Reading:
    """The handlers of the read API.

    Attributes:
        repos: Models of the store.
        blobs: Ids of files.
        sender: Sends files.
    """

    repos: Repos
    blobs: Blobs
    sender: Sender

    def whoami(self, call: Call) -> Response:
        """``GET /api/whoami-v2``: the name of the token."""
        if call.caller.name is None:
            raise HubError(401, "Invalid username or password.")
        return JSONResponse(whoami(call.caller))

    def auth_check(self, call: ReadCall) -> Response:
        """``GET /api/models/{repo}/auth-check``: whether the caller may read the model."""
        call.repo.check_exists()
        return JSONResponse("OK")

    def models(self, call: Call) -> Response:
        """``GET /api/models``: the models that the caller may read."""
        request = call.request
        search = request.query_params.get("search", "").lower()
        author = request.query_params.get("author")
        after = request.query_params.get("cursor", "")
        limit = _count(request, "limit", _MODELS_PAGE, _MODELS_PAGE)

        def wanted(name: str) -> bool:
            of_author = author is None or name.startswith(f"{author}/")
            return name > after and of_author and search in name.lower()

        found = list(islice(self.repos.mains(call.caller, wanted), limit + 1))
        more = len(found) > limit
        headers = _next_link(request, cursor=found[limit - 1][0]) if more else None
        return JSONResponse([_brief(*one) for one in found[:limit]], headers=headers)

    def info(self, call: VersionCall) -> Response:
        """``GET /api/models/{repo}`` and ``…/revision/{rev}``: a version and its files."""
        blobs = call.request.query_params.get("blobs", "").lower() in {"1", "true"}
        created = call.repo.version(1).created
        siblings = (
            [blob.sibling(blobs=True) for blob in self.blobs.all_of(call.model)]
            if blobs
            else [{"rfilename": file.path} for file in call.model._opened.manifest.files]
        )
        more = {
            "siblings": siblings,
            "usedStorage": call.model.nbytes,
            "createdAt": when(created),
        }
        brief = _brief(call.repo.name, call.commit.version)
        return JSONResponse(brief | more | _safetensors(call.model))

    def tree(self, call: VersionCall) -> Response:
        """``GET /api/models/{repo}/tree/{rev}/{path}``: the content of a folder."""
        request = call.request
        path = text_of(request, "path").strip("/") if "path" in request.path_params else ""
        recursive = request.query_params.get("recursive", "").lower() in {"1", "true"}
        below = Tree(self.blobs.all_of(call.model)).below(path, recursive=recursive)
        if below is None:
            raise entry_not_found(path, call.commit.oid)
        start = _count(request, "cursor", 0)
        limit = _count(request, "limit", PAGE, PAGE)
        rows = list(islice(below, start, start + limit + 1))
        if request.query_params.get("expand", "").lower() in {"1", "true"}:
            rows = [row | {"lastCommit": _last(call.commit)} for row in rows]
        return _page(request, rows, start, limit)

    def paths_info(self, call: VersionCall) -> Response:
        """``POST /api/models/{repo}/paths-info/{rev}``: those of the paths that exist."""
        paths, expand = _asked_paths(call.request, call.body)
        tree = Tree(self.blobs.all_of(call.model))
        rows = [row for path in paths if (row := tree.one(path.strip("/"))) is not None]
        if expand:
            rows = [row | {"lastCommit": _last(call.commit)} for row in rows]
        return JSONResponse(rows)

    def refs(self, call: ReadCall) -> Response:
        """``GET /api/models/{repo}/refs``: aliases are branches, numbers are tags."""
        call.repo.check_exists()
        found: dict[str, Any] = {
            "branches": [
                _ref(name, "heads", version) for name, version in call.repo.branches().items()
            ],
            "converts": [],
            "tags": [
                _ref(str(version.number), "tags", version) for version in call.repo.versions()
            ],
        }
        if call.request.query_params.get("include_prs"):
            found["pullRequests"] = []
        return JSONResponse(found)

    def commits(self, call: VersionCall) -> Response:
        """``GET /api/models/{repo}/commits/{rev}``: the versions up to this one."""
        request = call.request
        start = _count(request, "p", 0)
        limit = _count(request, "limit", _COMMITS_PAGE, _COMMITS_PAGE)
        newest = call.commit.version.number - start * limit
        rows = []
        for number in range(newest, max(0, newest - limit), -1):
            version = call.repo.version(number)
            title, _, rest = (version.message or f"version {number}").partition("\n")
            rows.append(
                {
                    "id": oid_of(version),
                    "title": title,
                    "message": rest.strip(),
                    "authors": [{"user": version.who}],
                    "date": when(version.created),
                }
            )
        more = newest - limit > 0
        headers = _next_link(request, p=start + 1) if more else None
        return JSONResponse(rows, headers=headers)

    def safetensors_metadata(self, call: VersionCall) -> Response:
        """``GET /api/models/{repo}/safetensors-metadata/{index}``: the shards' headers at once.

        Of the shards nothing but the headers is read, which lie in the manifest.
        """
        path = text_of(call.request, "path")
        view = _view(call, path)
        if not path.endswith(_INDEX) or view.size > _INDEX_BYTES:
            raise _no_index(path)
        index = json_of(view.read())
        if not isinstance(index, dict) or not isinstance(index.get("weight_map", {}), dict):
            raise _no_index(path)
        folder = path.rpartition("/")[0]
        headers, room = [], _HEADERS_BYTES
        for shard in sorted(set(map(str, index.get("weight_map", {}).values()))):
            header = _view(call, f"{folder}/{shard}" if folder else shard).header[8:] or b"{}"
            room -= len(header)
            if room < 0:
                raise HubError(413, f"the headers have more than {_HEADERS_BYTES} bytes: read each")
            headers.append(json.dumps(shard).encode() + b":" + header)
        metadata = json.dumps({"metadata": index.get("metadata", {})}).encode()
        body = b'{"headers":{%s},"index":%s}' % (b",".join(headers), metadata)
        return Response(body, media_type="application/json")

    def file(self, call: VersionCall) -> Response:
        """``GET`` and ``HEAD`` of ``/{repo}/resolve/{rev}/{path}``: a file of a version."""
        request, model = call.request, call.model
        path = text_of(request, "path")
        view = _view(call, path)
        blob = self.blobs.of_file(model, view.entry)
        span = range_of(request, blob)
        headers = headers_of(blob, call.commit.oid, span)
        if is_fresh(request, blob):
            del headers["Content-Length"]
            return Response(status_code=304, headers=headers)
        if request.method == "HEAD":
            return Response(status_code=206 if span.partial else 200, headers=headers)
        return FileBody(view, span, headers, self.sender)


def _view(call: VersionCall, path: str) -> FileView:
    try:
        return call.model.open_file(check_path(path))
    except (NotFound, InvalidName):
        raise entry_not_found(path, call.commit.oid) from None


def _no_index(path: str) -> HubError:
    return HubError(400, f"{path[:200]} is not an index of safetensors files ({_INDEX})")


def _brief(name: str, version: Version) -> dict[str, Any]:
    author, slash, _ = name.partition("/")
    return {
        "_id": oid_of(version)[:24],
        "id": name,
        "modelId": name,
        "author": author if slash else None,
        "sha": oid_of(version),
        "lastModified": when(version.created),
        "createdAt": when(version.created),
        "private": False,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [],
    }


def _safetensors(model: Model) -> dict[str, Any]:
    counts: dict[str, int] = {}
    for file in model._opened.manifest.files:
        for tensor in file.tensors:
            count = 1
            for length in tensor.shape:
                count *= length
            counts[tensor.dtype] = counts.get(tensor.dtype, 0) + count
    if not counts:
        return {}
    return {
        "safetensors": {"parameters": counts, "total": sum(counts.values())},
        "tags": [SUFFIX.lstrip(".")],
    }


def _last(commit: Commit) -> dict[str, str]:
    return {
        "id": commit.oid,
        "title": commit.version.message.partition("\n")[0],
        "date": when(commit.version.created),
    }


def _ref(name: str, kind: str, version: Version) -> dict[str, str]:
    return {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": oid_of(version)}


def _asked_paths(request: Request, body: bytes) -> tuple[list[str], bool]:
    try:
        if request.headers.get("content-type", "").startswith("application/json"):
            asked = json_of(body)
            paths, expand = asked.get("paths", []), bool(asked.get("expand"))
        else:
            form = parse_qs(body.decode(), keep_blank_values=True, max_num_fields=_MOST_PATHS + 8)
            paths = form.get("paths", [])
            expand = form.get("expand", [""])[0].lower() in {"1", "true"}
    except (ValueError, AttributeError):
        raise HubError(
            400, "the body is neither a form nor JSON, or names too many paths"
        ) from None
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise HubError(400, "paths must be a list of text")
    return paths, expand


def _count(request: Request, name: str, default: int, most: int = 1 << 40) -> int:
    text = request.query_params.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 15):
        raise HubError(400, f"{name} must be a count")
    return min(int(text), most) if name != "limit" else max(1, min(int(text), most))


def _page(request: Request, rows: list[dict[str, Any]], start: int, limit: int) -> Response:
    more = len(rows) > limit
    headers = _next_link(request, cursor=start + limit) if more else None
    return JSONResponse(rows[:limit], headers=headers)


def _next_link(request: Request, **changed: int | str) -> dict[str, str]:
    query = dict(request.query_params) | {name: str(value) for name, value in changed.items()}
    path = quote(request.scope["raw_path"].decode("ascii", "replace").split("?")[0], safe="/%")
    return {"Link": f'<{base_of(request)}{path}?{urlencode(query)}>; rel="next"'}
