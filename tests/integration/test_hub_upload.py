"""``hf upload`` with nothing but ``HF_ENDPOINT`` and ``HF_TOKEN``, by git-lfs and by Xet."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from safetensors.numpy import save_file

import tierstore
from tests.children import die, killed
from tests.integration.test_hub_client import (
    Client,
    Setting,
    files_below,
    model_at,
    received,
    tokens_for,
)
from tests.integration.test_hub_hostile import ask
from tests.integration.test_hub_xorbs import NAME, chunk, shard
from tests.servers.hub import gateway
from tierstore.serving.hub import xet as hub_xet
from tierstore.serving.hub.spool import UploadSpool

pytestmark = pytest.mark.server

MIB = 1 << 20
CARD = "---\nlicense: apache-2.0\nlibrary_name: transformers\ntags: [ranking]\n---\n# Ranker\n"
WITHOUT_XET = {"HF_HUB_DISABLE_XET": "1"}  # as where hf_xet is not installed
HF = str(Path(sys.executable).parent / "hf")


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    root = tmp_path_factory.mktemp("hub-upload")
    tokens = tokens_for(
        team=("secret-team", [], ["team/*", "plain"]), reader=("secret-reader", ["team/*"], [])
    )
    (root / "tokens.toml").write_text(tokens)
    source = model_at(root / "source", 1)
    (source / "README.md").write_text(CARD)
    with (
        tierstore.init(root / "store") as store,
        gateway(store.url, root / "spool", "--tokens", str(root / "tokens.toml")) as running,
    ):
        client = Client(running.url, root / "hf", {"HF_TOKEN": "secret-team"})
        yield Setting(running, store, source, client)


def upload(setting: Setting, *arguments: str, **more: str) -> str:
    done = setting.client.run(HF, "upload", *arguments, **more)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def exported(setting: Setting, ref: str, folder: Path) -> dict[str, bytes]:
    setting.store.load(ref).export(folder)
    return files_below(folder)


@pytest.mark.parametrize("more", [{}, WITHOUT_XET], ids=["xet", "lfs"])
def test_a_model_with_its_card_is_uploaded(
    setting: Setting, more: dict[str, str], tmp_path: Path
) -> None:
    name = "team/lfs" if more else "team/xet"
    before = len(list(setting.source.parent.glob("spool/xet-*/*")))
    said = upload(setting, name, str(setting.source), **more)
    assert setting.store.resolve(name).digest.hex[:40] in said
    files = exported(setting, name, tmp_path / "out")
    assert files == files_below(setting.source)
    assert setting.store.resolve(name).size == sum(map(len, files.values()))
    upload(setting, name, str(setting.source), **more)
    assert [one.number for one in setting.store.versions(name)] == [1]
    came_by_xet = len(list(setting.source.parent.glob("spool/xet-*/*"))) > before
    assert came_by_xet == (not more)


def test_only_what_is_new_is_sent(setting: Setting, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    tensors = {
        "plain": rng.integers(0, 1 << 16, 40 * MIB, dtype="u2"),  # more than one xorb
        "zeros": np.zeros(2 * MIB, "f4"),
        "by 4": np.arange(3 * MIB, dtype="u4") // 7,
    }
    source = tmp_path / "model"
    source.mkdir()
    save_file(tensors, source / "model.safetensors")
    upload(setting, "team/large", str(source))
    before = received(setting)
    tensors["new"] = rng.integers(0, 256, MIB, dtype="u1")
    save_file(tensors, source / "model.safetensors")
    upload(setting, "team/large", str(source))
    assert MIB <= received(setting) - before < 4 * MIB
    assert exported(setting, "team/large", tmp_path / "out") == files_below(source)
    assert setting.store.check(read_data=True).findings == []


def test_a_name_of_one_part_is_read_and_not_uploaded_to(setting: Setting, tmp_path: Path) -> None:
    setting.store.save("plain", setting.source)
    setting.client.python("hub.snapshot_download('plain', local_dir=sys.argv[1])", str(tmp_path))
    assert files_below(tmp_path) == files_below(setting.source)
    done = setting.client.run(HF, "upload", "plain", str(setting.source))
    assert done.returncode != 0, "docs/how-to/gateway.md says that the client cannot do it"
    assert "<namespace>/<name>" in done.stderr
    assert len(setting.store.versions("plain")) == 1


def test_a_card_is_taken_of_those_alone_who_may_write(setting: Setting) -> None:
    body = json.dumps({"content": CARD, "repoType": "model"}).encode()
    statuses = [
        ask(setting.gateway, "POST", "/api/validate-yaml", body, **headers)[0]
        for headers in (
            {},
            {"Authorization": "Bearer secret-reader"},
            {"Authorization": "Bearer secret-team"},
        )
    ]
    assert statuses == [401, 403, 200]


# The session of an upload

TOKEN = "/api/models/team/raw/xet-write-token/main"


def begun(setting: Setting, path: str = TOKEN) -> tuple[str, dict[str, str]]:
    """Begin an upload: the path of the session, and the header that it needs."""
    status, headers, body = ask(setting.gateway, "GET", path, Authorization="Bearer secret-team")
    assert status == 200
    found = json.loads(body)
    assert found["casUrl"] == headers["x-xet-cas-url"]
    assert found["accessToken"] == headers["x-xet-access-token"]
    assert found["exp"] == int(headers["x-xet-token-expiration"]) > time.time() + 6 * 3600 - 60
    return urlsplit(found["casUrl"]).path, {"Authorization": f"Bearer {found['accessToken']}"}


def test_an_upload_needs_the_token_of_its_session(setting: Setting) -> None:
    callers: list[dict[str, Any]] = [{}, {"Authorization": "Bearer secret-reader"}]
    statuses = [ask(setting.gateway, "GET", TOKEN, **headers)[0] for headers in callers]
    assert statuses == [401, 403]
    session, right = begun(setting)
    other, _ = begun(setting, TOKEN.replace("raw", "other"))
    assert session != other
    spool = UploadSpool(setting.source.parent / "spool")
    late = int(time.time()) - 1
    expired = f"{late}.{spool.sign('team/raw', session.rpartition('/')[2], 0, 0, late)}"
    later = right["Authorization"].replace("Bearer 1", "Bearer 2")
    xorb = f"/v1/xorbs/default/{NAME}"
    refused = [
        ({}, session, 401),
        ({"Authorization": "Bearer secret-team"}, session, 401),
        ({"Authorization": "Bearer 99999999999."}, session, 403),
        ({"Authorization": f"Bearer {expired}"}, session, 403),
        ({"Authorization": later}, session, 403),
        (right, other, 403),
        (right, session.replace("team/raw", "team/other"), 403),
    ]
    for headers, path, status in refused:
        for what in (xorb, "/v1/shards"):
            assert ask(setting.gateway, "POST", path + what, b"x", **headers)[0] == status
    assert ask(setting.gateway, "POST", session + xorb, b"x", **right)[0] == 200


def test_a_file_is_put_together_from_what_was_sent_alone(setting: Setting) -> None:
    session, right = begun(setting, TOKEN.replace("raw", "parts"))
    spool = UploadSpool(setting.source.parent / "spool")

    def send(what: str, body: bytes) -> str:
        status, _, said = ask(setting.gateway, "POST", f"{session}/v1/{what}", body, **right)
        return f"{status} {said.decode()}"

    def refused(what: str, body: bytes, because: str) -> bool:
        said = send(what, body)
        return said.startswith("400 ") and because in said

    plain = [b"first" * 100, b"second" * 50, b"third"]
    digest = hashlib.sha256(plain[0] + plain[2])
    terms = [(500, 0, 1), (5, 2, 3)]
    whole = shard(*terms, sha256=digest.digest())
    assert refused("shards", whole, "was not uploaded")
    xorb = b"".join(chunk(kind, one) for kind, one in enumerate(plain))
    assert send(f"xorbs/default/{NAME}", xorb) == '200 {"was_inserted":true}'
    assert refused("shards", shard(*terms), digest.hexdigest())
    assert refused("shards", shard((500, 0, 1), (6, 2, 3)), "another size")
    assert refused("shards", whole[:-50], "ends")
    assert refused("shards", b"", "ends")
    assert refused("xorbs/default/..%2Fsecret", xorb, "hash")
    assert send("shards", whole) == '200 {"result":1}'
    found = spool.find("team/parts", digest.hexdigest(), 505)
    assert found is not None
    assert found.read_bytes() == plain[0] + plain[2]
    assert spool.find("team/raw", digest.hexdigest(), 505) is None, "it is of one model alone"
    assert not list(spool.root.glob("xet-*/*.shard"))
    assert not list(spool.root.rglob("*.partial"))


def test_a_session_ends_before_its_xorbs_are_removed(
    tmp_path: Path,
) -> None:
    spool = UploadSpool(tmp_path)
    number = int(time.time()) // hub_xet._SESSION_S
    names = {spool.session("m", "a", number), spool.session("m", "b", number)}
    names |= {spool.session("n", "a", number), spool.session("m", "a", number + 1)}
    assert len(names) == 4
    assert UploadSpool(tmp_path).session("m", "a", number) in names
    longest_s = hub_xet._SESSION_S + hub_xet._AFTER_S
    path = spool.xet_path(names.pop(), NAME)
    path.parent.mkdir()
    path.write_bytes(b"x")
    os.utime(path, (0, time.time() - longest_s))
    spool.sweep()
    assert path.exists()
    os.utime(path, (0, time.time() - 25 * 3600))
    UploadSpool(tmp_path)
    assert not path.parent.exists()


def test_a_gateway_sweeps_what_a_killed_one_was_receiving(tmp_path: Path) -> None:
    async def arriving(then: Callable[[], None]) -> AsyncIterator[bytes]:
        yield b"12"
        then()
        yield b"3"

    def receive(then: Callable[[], None]) -> str:
        return asyncio.run(UploadSpool(tmp_path).receive("m", "0" * 64, 3, 1, arriving(then)))

    seen: list[list[Path]] = []

    def meanwhile() -> None:
        UploadSpool(tmp_path).sweep()
        seen.append(list(tmp_path.rglob(".tierstore-*")))

    killed(lambda: receive(die))
    [left] = tmp_path.rglob(".tierstore-*")
    assert receive(meanwhile) == hashlib.sha256(b"123").hexdigest()
    [[mine]] = seen
    assert mine != left
    assert not list(tmp_path.rglob(".tierstore-*"))
    assert UploadSpool(tmp_path).find("m", f"{'0' * 64}.1", 3) is not None
