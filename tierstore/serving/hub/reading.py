"""Handlers of the Hub's read API: whoami, models, revisions, trees, refs, commits, files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlencode

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tierstore.errors import InvalidName, NotFound
from tierstore.format.paths import check_path
from tierstore.modelstore.loading.model import Model
from tierstore.modelstore.saving.source import SUFFIX
from tierstore.modelstore.version import Version
from tierstore.serving.hub.answers import HubError, entry_not_found
from tierstore.serving.hub.bodies import read_body
from tierstore.serving.hub.files import FileBody, headers_of, is_fresh, range_of
from tierstore.serving.hub.repos import MAIN, Commit, Repos, oid_of
from tierstore.serving.hub.rights import Caller, Tokens, whoami
from tierstore.serving.hub.stats import HubStats
from tierstore.serving.hub.tree import Blobs, Tree

PAGE = 1000
_COMMITS_PAGE = 100
_MODELS_PAGE = 1000
_MOST_PATHS = 5000


def text_of(request: Request, name: str) -> str:
    """Return a part of the request's path, unquoted.

    Raises:
        HubError: It is not UTF-8, or holds a NUL.
    """
    try:
        found = unquote(request.path_params[name], errors="strict")
    except UnicodeDecodeError:
        raise HubError(400, "the URL is not UTF-8") from None
    if "\0" in found:
        raise HubError(400, "the URL holds a NUL")
    return found


def when(time: datetime) -> str:
    """Return a time in the form that clients parse."""
    return time.strftime("%Y-%m-%dT%H:%M:%S.") + f"{time.microsecond // 1000:03d}Z"


@dataclass(frozen=True, slots=True)
class Reading:
    """The handlers of the read API.

    Attributes:
        repos: Repositories of the store.
        tokens: Tokens of the callers.
        blobs: Ids of files.
        stats: Counters of the gateway.
        stall_s: Seconds for which a client may take nothing.
    """

    repos: Repos
    tokens: Tokens
    blobs: Blobs
    stats: HubStats
    stall_s: float

    def caller(self, request: Request) -> Caller:
        """Return the caller that sent a request."""
        return self.tokens.caller(request.headers.get("authorization"))

    def commit(self, request: Request) -> tuple[str, Commit]:
        """Return the model and the version that the request's path names."""
        model = text_of(request, "repo")
        named = "rev" in request.path_params
        revision = text_of(request, "rev") if named else MAIN
        return model, self.repos.commit(model, revision, self.caller(request))

    def whoami(self, request: Request) -> Response:
        """``GET /api/whoami-v2``: the name of the token."""
        caller = self.caller(request)
        if caller.name is None:
            raise HubError(401, "Invalid username or password.")
        return JSONResponse(whoami(caller))

    def auth_check(self, request: Request) -> Response:
        """``GET /api/models/{repo}/auth-check``: whether the caller may read the model."""
        self.repos.check_read(text_of(request, "repo"), self.caller(request))
        return JSONResponse("OK")

    def models(self, request: Request) -> Response:
        """``GET /api/models``: the models that the caller may read."""
        caller = self.caller(request)
        search = request.query_params.get("search", "").lower()
        author = request.query_params.get("author")
        limit = _count(request, "limit", _MODELS_PAGE, _MODELS_PAGE)
        names = (
            name
            for name in self.repos.store.models()
            if caller.may_read(name)
            and search in name.lower()
            and (author is None or name.startswith(f"{author}/"))
        )
        found = []
        for name in islice(names, limit):
            try:
                found.append(_brief(name, self.repos.main(name)))
            except NotFound:  # saved for the first time just now
                continue
        return JSONResponse(found)

    def info(self, request: Request) -> Response:
        """``GET /api/models/{repo}`` and ``…/revision/{rev}``: a version and its files."""
        name, commit = self.commit(request)
        model = self.repos.open(commit)
        blobs = request.query_params.get("blobs", "").lower() in {"1", "true"}
        created = self.repos.store.resolve(f"{name}@1").created
        siblings = (
            [blob.sibling(blobs=True) for blob in self.blobs.all_of(model)]
            if blobs
            else [{"rfilename": file.path} for file in model._opened.manifest.files]
        )
        return JSONResponse(
            _brief(name, commit.version)
            | {"siblings": siblings, "usedStorage": model.nbytes, "createdAt": when(created)}
            | _safetensors(model)
        )

    def tree(self, request: Request) -> Response:
        """``GET /api/models/{repo}/tree/{rev}/{path}``: the content of a folder."""
        _, commit = self.commit(request)
        path = text_of(request, "path").strip("/") if "path" in request.path_params else ""
        recursive = request.query_params.get("recursive", "").lower() in {"1", "true"}
        below = Tree(self.blobs.all_of(self.repos.open(commit))).below(path, recursive=recursive)
        if below is None:
            raise entry_not_found(path, commit.oid)
        start = _count(request, "cursor", 0)
        limit = _count(request, "limit", PAGE, PAGE)
        rows = list(islice(below, start, start + limit + 1))
        if request.query_params.get("expand", "").lower() in {"1", "true"}:
            rows = [row | {"lastCommit": _last(commit)} for row in rows]
        return _page(request, rows, start, limit)

    async def paths_info(self, request: Request) -> Response:
        """``POST /api/models/{repo}/paths-info/{rev}``: those of the paths that exist."""
        body = await read_body(request, 4 << 20, self.stall_s)
        paths, expand = _asked_paths(request, body)
        return await run_in_threadpool(self._paths_info, request, paths, expand)

    def _paths_info(self, request: Request, paths: list[str], expand: bool) -> Response:
        _, commit = self.commit(request)
        tree = Tree(self.blobs.all_of(self.repos.open(commit)))
        rows = [row for path in paths if (row := tree.one(path.strip("/"))) is not None]
        if expand:
            rows = [row | {"lastCommit": _last(commit)} for row in rows]
        return JSONResponse(rows)

    def refs(self, request: Request) -> Response:
        """``GET /api/models/{repo}/refs``: aliases are branches, numbers are tags."""
        model = text_of(request, "repo")
        self.repos.check_read(model, self.caller(request))
        store = self.repos.store
        heads = {MAIN: self.repos.main(model)}
        heads |= {alias.name: alias.version for alias in store.aliases(model)}
        tags = store.versions(model)
        found: dict[str, Any] = {
            "branches": [_ref(name, "heads", version) for name, version in heads.items()],
            "converts": [],
            "tags": [_ref(str(version.number), "tags", version) for version in tags],
        }
        if request.query_params.get("include_prs"):
            found["pullRequests"] = []
        return JSONResponse(found)

    def commits(self, request: Request) -> Response:
        """``GET /api/models/{repo}/commits/{rev}``: the versions up to this one."""
        model, commit = self.commit(request)
        start = _count(request, "p", 0)
        limit = _count(request, "limit", _COMMITS_PAGE, _COMMITS_PAGE)
        newest = commit.version.number - start * limit
        rows = []
        for number in range(newest, max(0, newest - limit), -1):
            version = self.repos.store.resolve(f"{model}@{number}")
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

    def safetensors_metadata(self, request: Request) -> Response:
        """``GET /api/models/{repo}/safetensors-metadata/{index}``: the shards' headers at once."""
        _, commit = self.commit(request)
        path = text_of(request, "path")
        model = self.repos.open(commit)
        index = self._json_file(model, path, commit)
        shards = {str(shard) for shard in index.get("weight_map", {}).values()}
        folder = path.rpartition("/")[0]
        headers = {}
        for shard in sorted(shards):
            full = f"{folder}/{shard}" if folder else shard
            header = self._view(model, full, commit).header
            headers[shard] = json.loads(header[8:]) if header else {}
        return JSONResponse({"headers": headers, "index": {"metadata": index.get("metadata", {})}})

    def _json_file(self, model: Model, path: str, commit: Commit) -> dict[str, Any]:
        try:
            found = json.loads(self._view(model, path, commit).read())
        except ValueError:
            found = None
        if not isinstance(found, dict) or not isinstance(found.get("weight_map", {}), dict):
            raise HubError(400, f"{path[:200]} is not an index of safetensors files")
        return found

    def _view(self, model: Model, path: str, commit: Commit) -> Any:
        try:
            return model.open_file(check_path(path))
        except (NotFound, InvalidName):
            raise entry_not_found(path, commit.oid) from None

    def file(self, request: Request) -> Response:
        """``GET`` and ``HEAD`` of ``/{repo}/resolve/{rev}/{path}``: a file of a version."""
        _, commit = self.commit(request)
        path = text_of(request, "path")
        model = self.repos.open(commit)
        view = self._view(model, path, commit)
        blob = self.blobs.of_file(model, model._file_entry(path))
        span = range_of(request, blob)
        headers = headers_of(blob, commit.oid, span)
        if is_fresh(request, blob):
            del headers["Content-Length"]
            return Response(status_code=304, headers=headers)
        if request.method == "HEAD":
            return Response(status_code=206 if span.partial else 200, headers=headers)
        return FileBody(view, span, headers, sent=self.stats.sent, stall_s=self.stall_s)


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
            asked = json.loads(body)
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


def _next_link(request: Request, **changed: int) -> dict[str, str]:
    query = dict(request.query_params) | {name: str(value) for name, value in changed.items()}
    path = quote(request.scope["raw_path"].decode("ascii", "replace").split("?")[0], safe="/%")
    base = f"{request.url.scheme}://{request.headers.get('host', request.url.netloc)}"
    return {"Link": f'<{base}{path}?{urlencode(query)}>; rel="next"'}
