"""What a caller of the gateway may see, on every route, however the URL is written."""

from __future__ import annotations

import hashlib
import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest

import tierstore
from tests.integration.test_hub_hostile import ask
from tests.servers.hub import Gateway, gateway
from tierstore.errors import ConfigError
from tierstore.serving.hub.answers import HubError
from tierstore.serving.hub.rights import Tokens

pytestmark = pytest.mark.server

SECRET = np.full(100, 7, np.float32)
RIGHTS = {
    "public": ("*-public", ""),
    "base": ("*/base", ""),
    "reader": ("secret", ""),
    "releases": ("*-public", "hidden/*"),
    "writer": ("", "*-public"),
    "plus": ("*+*", ""),
}
"""Patterns of models that a token of this name may read, and write."""
OF_NO_MODEL = {
    "/healthz", "/metrics", "/openapi.json", "/api/whoami-v2", "/api/models", "/api/repos/create",
    "/api/validate-yaml",
}  # fmt: skip


def token_file(path: Path, rights: dict[str, tuple[str, str]]) -> Path:
    rows = []
    for token, (read, write) in rights.items():
        sha256 = hashlib.sha256(token.encode()).hexdigest()
        rows.append(
            f"[[token]]\nname = {token!r}\nsha256 = {sha256!r}\n"
            f"read = {[read] if read else []}\nwrite = {[write] if write else []}\n"
        )
    path.write_text("\n".join(rows), "utf-8")
    return path


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    root = tmp_path_factory.mktemp("hub-rights")
    tokens = token_file(root / "tokens.toml", RIGHTS)
    with tierstore.init(root / "store") as store:
        store.save("secret", {"w": SECRET}, alias="eu-public")
        store.alias("secret", "x/base", "secret@1")
        store.derive("secret@1", {"cast": "bf16"})
        store.save("demo-public", {"w": np.zeros(10, np.float32)})
        store.save("team/base", {"w": np.ones(10, np.float32)})
        store.releases.create("hidden/rel", ["secret@1", "demo-public@1"])
        with gateway(store.url, root / "spool", "--tokens", str(tokens)) as one:
            yield one


def get(running: Gateway, path: str, token: str) -> tuple[int, dict[str, str], bytes]:
    return ask(running, "GET", path, Authorization=f"Bearer {token}")


def routes(running: Gateway) -> list[tuple[str, str]]:
    with urllib.request.urlopen(f"{running.url}/openapi.json", timeout=30) as answer:
        found: dict[str, Any] = json.load(answer)
    return [
        (method.upper(), path) for path, item in found["paths"].items() for method in sorted(item)
    ]


def asked(running: Gateway, method: str, path: str, repo: str, token: str | None) -> Any:
    values = {"repo": repo, "rev": "main", "path": "model.safetensors", "oid": "ab" * 32}
    for name, value in values.items():
        path = path.replace(f"{{{name}}}", value)
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    body = None if method == "GET" else b'{"paths": ["model.safetensors"]}'
    return ask(running, method, path, body, Content_Type="application/json", **headers)


@pytest.mark.parametrize(
    "repo",
    [
        "secret", "secret@eu-public", "secret%40eu-public", "secret@x/base", "secret%40x%2Fbase",
        "secret@1", "secret@+bf16", "secret%40%2Bbf16", "secret@release:hidden/rel", "hidden/rel",
        "secret%2F", "demo-public%2F..%2Fsecret", "secret%00-public", "secret%0A-public",
        "secret%5C-public",
    ],
)  # fmt: skip
def test_no_route_gives_anything_of_a_model_without_its_right(running: Gateway, repo: str) -> None:
    for method, path in routes(running):
        if "{repo}" not in path:
            assert path in OF_NO_MODEL, f"{path} names no model: does it ask for a right?"
            continue
        for token in (None, "public", "base", "writer", "plus"):
            status, _, body = asked(running, method, path, repo, token)
            assert status in {400, 401, 403, 404}, (method, path, repo, token, status)
            assert SECRET.tobytes()[:8] not in body
            assert b"eu-public" not in body.replace(repo.encode(), b"").replace(
                b"secret@eu-public", b""
            )


def test_with_the_right_the_same_routes_answer(running: Gateway) -> None:
    found = {}
    for method, path in routes(running):
        if "{repo}" in path:
            found[method, path] = asked(running, method, path, "secret", "reader")
    read = {path for (method, path), answer in found.items() if answer[0] == 200}
    assert read == {
        "/api/models/{repo}", "/api/models/{repo}/auth-check", "/api/models/{repo}/refs",
        "/api/models/{repo}/revision/{rev}", "/api/models/{repo}/commits/{rev}",
        "/api/models/{repo}/paths-info/{rev}", "/api/models/{repo}/tree/{rev}",
        "/{repo}/resolve/{rev}/{path}",
    }  # fmt: skip
    assert found["GET", "/{repo}/resolve/{rev}/{path}"][2].endswith(SECRET.tobytes())
    for (method, path), answer in found.items():
        if "{session}" in path:
            assert answer[0] == 401, (method, path, "it takes the token of its session alone")
        elif path not in read and method in {"POST", "DELETE"} and "{oid}" not in path:
            assert answer[0] == 403, (method, path, "a reader may not write")


def test_who_lists_models_sees_those_it_may_read(running: Gateway) -> None:
    for token, wanted in {
        "public": ["demo-public"], "base": ["team/base"], "reader": ["secret"], "plus": [],
    }.items():  # fmt: skip
        status, _, body = get(running, "/api/models", token)
        assert (status, [row["id"] for row in json.loads(body)]) == (200, wanted)


def test_a_revision_stays_in_its_model(running: Gateway) -> None:
    for revision, number in {"eu-public": 1, "1": 1, "1+bf16": 1, "x/base": 1}.items():
        path = f"/api/models/secret/revision/{quote(revision, safe='')}"
        assert get(running, path, "reader")[0] == 200, (revision, number)
        assert get(running, path, "public")[0] == 404
    for revision in ("secret@1", "@secret", "main@secret", "b3:", "release:", "release:secret"):
        path = f"/api/models/demo-public/revision/{quote(revision, safe='')}"
        assert get(running, path, "public")[0] == 404, revision


def test_a_release_is_told_to_those_alone_who_may_read_it(running: Gateway) -> None:
    def told(release: str, token: str) -> tuple[int, str, bytes]:
        path = f"/api/models/demo-public/revision/{quote(f'release:{release}', safe='')}"
        status, headers, body = get(running, path, token)
        return status, headers.get("x-error-code", ""), body.replace(release.encode(), b"?")

    none = (404, "RevisionNotFound", b'{"error":"Invalid rev id: release:?"}')
    assert told("hidden/rel", "public") == told("nothing/here", "public") == none
    assert told("hidden/rel@1", "public") == none
    status, _, body = told("hidden/rel@1", "releases")
    assert (status, json.loads(body)["id"]) == (200, "demo-public")
    assert told("hidden/rel", "public") == none, "what another caller resolved is not remembered"


def test_a_writer_writes_to_its_models_alone(running: Gateway) -> None:
    for name in ("secret", "secret@eu-public", "team/base", "new"):
        body = json.dumps({"name": name, "type": "model"}).encode()
        status, _, _ = ask(
            running, "POST", "/api/repos/create", body, Authorization="Bearer writer"
        )
        assert status in {400, 404}, name
    body = json.dumps({"name": "new-public", "type": "model"}).encode()
    created = ask(running, "POST", "/api/repos/create", body, Authorization="Bearer writer")
    assert created[0] == 200
    assert ask(running, "POST", "/api/repos/create", body, Authorization="Bearer reader")[0] == 403
    assert ask(running, "POST", "/api/repos/create", body)[0] == 401
    for start in ("secret@1", "release:hidden/rel@1"):
        body = json.dumps({"startingPoint": start}).encode()
        path = "/api/models/demo-public/branch/dev"
        status, _, said = ask(running, "POST", path, body, Authorization="Bearer writer")
        assert status == 404, said


def test_an_empty_token_is_nobodys(running: Gateway, tmp_path: Path) -> None:
    for empty in ("Bearer", "Bearer ", "bearer  "):
        assert ask(running, "GET", "/api/models", Authorization=empty)[0] == 401
        with pytest.raises(HubError) as caught:  # nor where anybody may read
            Tokens().caller(empty)
        assert caught.value.status == 401
    path = token_file(tmp_path / "tokens.toml", {"": ("*", "")})
    with pytest.raises(ConfigError, match="that of an empty token"):
        Tokens(path)


def test_patterns_match_names_whatever_their_normal_form(tmp_path: Path) -> None:
    tokens = Tokens(token_file(tmp_path / "tokens.toml", {"t": ("cafe\u0301*", "")}))
    caller = tokens.caller("Bearer t")
    assert caller.may_read("caf\u00e9-1")
    assert not caller.may_read("cafe-1")


def test_a_token_may_have_any_bytes(tmp_path: Path) -> None:
    tokens = Tokens(token_file(tmp_path / "tokens.toml", {"Schlüssel": ("*", "")}))
    header = "Bearer Schlüssel".encode().decode("latin-1")  # as starlette decodes it
    assert tokens.caller(header).name == "Schlüssel"
