"""The description of the API, made from the routes: ``GET /openapi.json``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from starlette.routing import Route

_CONVERTOR = re.compile(r":\w+\}")
_TEXT = {"type": "string", "minLength": 1}
_COUNT = {"type": "integer", "minimum": 0}
_FLAG = {"type": "string", "enum": ["true", "false"]}
_PATHS = {
    "repo": "model, or organization/model",
    "rev": "branch (an alias), tag (a version's number) or commit id",
    "path": "path of a file or folder",
    "oid": "SHA-256 of the file, 64 hex digits",
    "session": "session of the Xet protocol, from the URL that came with its token",
    "hash": "hash of the xorb, 64 hex digits",
}
_QUERIES: dict[str, dict[str, Any]] = {
    "models": {"search": _TEXT, "author": _TEXT, "cursor": _TEXT, "limit": _COUNT},
    "info": {"blobs": _FLAG},
    "tree": {"recursive": _FLAG, "expand": _FLAG, "cursor": _COUNT, "limit": _COUNT},
    "commits": {"p": _COUNT, "limit": _COUNT},
    "upload": {"size": _COUNT, "part": _COUNT, "expires": _COUNT, "signature": _TEXT},
    "complete": {"size": _COUNT, "part": _COUNT, "expires": _COUNT, "signature": _TEXT},
}
_LFS_OBJECT = {"type": "object", "properties": {"oid": _TEXT, "size": _COUNT}}
_BODIES: dict[str, dict[str, Any]] = {
    "create_repo": {"name": _TEXT, "organization": _TEXT, "type": {"enum": ["model"]}},
    "create_branch": {"startingPoint": _TEXT},
    "validate_yaml": {"content": _TEXT, "repoType": _TEXT},
    "paths_info": {"paths": {"type": "array", "items": _TEXT}, "expand": {"type": "boolean"}},
    "preupload": {
        "files": {
            "type": "array",
            "items": {"type": "object", "properties": {"path": _TEXT, "size": _COUNT}},
        }
    },
    "lfs_batch": {
        "operation": {"enum": ["upload"]},
        "transfers": {"type": "array", "items": {"enum": ["basic", "multipart"]}},
        "objects": {"type": "array", "items": _LFS_OBJECT},
    },
    "verify": _LFS_OBJECT["properties"],  # type: ignore[dict-item]
}
_RAW = {"commit": "application/x-ndjson"} | dict.fromkeys(
    ["upload", "xorb", "shard"], "application/octet-stream"
)
_ERROR = {
    "description": "message for people; X-Error-Code is the code for programs",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["error"],
                "properties": {"error": {"type": "string"}},
            }
        }
    },
}


def describe(routes: Sequence[Route]) -> dict[str, Any]:
    """Return OpenAPI 3.0 of the routes; the first line of a handler's docstring describes it."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        item = paths.setdefault(_CONVERTOR.sub("}", route.path), {})
        for method in sorted((route.methods or set()) - {"HEAD"}):  # as GET, without the body
            item[method.lower()] = _operation(route, method)
    return {
        "openapi": "3.0.3",
        "info": {"title": "tierstore hub gateway", "version": version("tierstore")},
        "paths": paths,
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"token": []}],
    }


def _operation(route: Route, method: str) -> dict[str, Any]:
    name = route.name
    said = (route.endpoint.__doc__ or name).strip().partition("\n")[0]
    parameters = [
        {"name": one, "in": "path", "required": True, "schema": _TEXT, "description": _PATHS[one]}
        for one in route.param_convertors
    ] + [
        {"name": one, "in": "query", "required": False, "schema": schema}
        for one, schema in _QUERIES.get(name, {}).items()
    ]
    found: dict[str, Any] = {
        "operationId": f"{method.lower()} {route.path}",
        "summary": said.partition("``: ")[2] or said,
        "parameters": parameters,
        "responses": {"2XX": {"description": "done"}, "4XX": _ERROR},
    }
    if name == "file":
        found["responses"]["304"] = {"description": "the caller has it already"}
    if name in _BODIES:
        schema = {"type": "object", "properties": _BODIES[name]}
        found["requestBody"] = {"content": {"application/json": {"schema": schema}}}
    elif name in _RAW:
        schema = {"type": "string", "format": "binary"}
        found["requestBody"] = {"required": True, "content": {_RAW[name]: {"schema": schema}}}
    return found
