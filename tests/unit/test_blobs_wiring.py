"""open_blobs: which store a URL opens, and what is said about one that opens none."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tierstore.blobs.fsspec.store import FsspecStore
from tierstore.blobs.local.store import LocalStore
from tierstore.blobs.memory import MemoryStore
from tierstore.blobs.objects.store import ObjectStore
from tierstore.config import NodeTier
from tierstore.errors import BackendError, ConfigError, NotFound
from tierstore.format.tiers import TierSpec
from tierstore.wiring import backends, open_blobs
from tierstore.wiring.backends import BACKENDS, Backend, Place, open_tier


def test_local_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotFound, match="store"):
        open_blobs("./store")
    opened = open_blobs("./store", create=True)
    assert isinstance(opened, LocalStore)
    assert opened.root == tmp_path / "store"
    (tmp_path / "a b#%").mkdir()
    for url in ("store", f"{tmp_path}/store", f"file://{tmp_path}/store", opened.url):
        assert open_blobs(url).url == opened.url
    assert open_blobs(f"file://{tmp_path}/a%20b%23%25").url == open_blobs("a b#%").url


def test_a_file_where_the_directory_should_be(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"")
    for create in (False, True):
        with pytest.raises(BackendError, match="directory") as caught:
            open_blobs(f"{tmp_path}/f", create=create)
        assert type(caught.value) is BackendError


def test_object_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    for url in ("s3://bucket/a/prefix", "s3://bucket", "gs://bucket/p", "az://container/p"):
        store = open_blobs(f"{url}/")
        assert isinstance(store, ObjectStore)
        assert store.url == url


def test_fsspec() -> None:
    for url in ("memory://one", "fsspec+memory://one"):
        assert open_blobs(url).url == "memory://one"
    foreign = open_blobs("fsspec+data://x")
    assert isinstance(foreign, FsspecStore)
    assert not foreign.capabilities.put_if_absent
    assert not foreign.capabilities.atomic_put


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "empty"),
        ("ftp://host/x", "fsspec"),
        ("http://host/x", "s3://bucket"),
        ("file://host/x", "file:///path"),
        ("file://", "file:///path"),
        ("file:///x?y", "%3F"),
        ("s3://", "bucket"),
        ("s3:///x", "bucket"),
        ("fsspec+nonsense://x", "nonsense"),
    ],
)
def test_what_cannot_be_opened(url: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_blobs(url)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "url", ["s3://key:SECRET@bucket/x", "s3://bucket/x?secret=SECRET", "gs://bucket/x#SECRET"]
)
def test_credentials_in_a_url_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_blobs(url)
    assert "SECRET" not in str(caught.value)


def test_an_fsspec_url_is_shown_without_credentials(tmp_path: Path) -> None:
    store = FsspecStore("memory://user:SECRET@name/x")
    assert store.url == "memory://name/x"


def test_a_local_store_loads_no_network_client() -> None:
    code = (
        "import sys, tierstore.wiring as w; w.open_blobs('.'); "
        "print([m for m in ('obstore', 'fsspec', 'pytest', 'asyncio') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_kind_of_storage_has_its_own_name_and_schemes() -> None:
    names = [backend.name for backend in BACKENDS]
    schemes = [scheme for backend in BACKENDS for scheme in backend.schemes]
    assert len(set(names)) == len(names)
    assert len(set(schemes)) == len(schemes)


@pytest.mark.parametrize(
    "backend", [each for each in BACKENDS if each.libraries], ids=lambda backend: backend.name
)
def test_a_missing_library_is_named_with_its_extra(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    installs = project["project"]["optional-dependencies"][backend.extra]
    spec = TierSpec(name="t", role=backend.roles[0], url=f"{backend.schemes[0]}://host:1/x")
    for library in backend.libraries:
        assert any(wanted.startswith(library) for wanted in installs)
        with monkeypatch.context() as patched:
            patched.setitem(sys.modules, library, None)
            with pytest.raises(ConfigError, match=rf"{library}.*tierstore\[{backend.extra}\]"):
                open_tier(Place(spec, NodeTier(), "00" * 16))


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
def test_a_cache_is_no_durable_tier_and_only_a_directory_is_hot(backend: Backend) -> None:
    url = f"{backend.schemes[0]}://host:1/x"
    if not backend.durable:
        with pytest.raises(ConfigError, match="shared tier: it forgets"):
            open_blobs(url)
    if "hot" not in backend.roles:
        spec = TierSpec(name="t", role="hot", url=url)
        with pytest.raises(ConfigError, match="a directory of this node"):
            open_tier(Place(spec, NodeTier(), "00" * 16))


def test_a_cache_takes_the_options_of_its_own_row(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def opener(request: backends.Request) -> MemoryStore:
        asked.append(request.options)
        return MemoryStore()

    own = Backend(
        "shelf", ("shelf",), ("shared",), opener, options={"prefix": str, "room_bytes": int}
    )
    monkeypatch.setattr(backends, "BACKENDS", (*BACKENDS, own))
    spec = TierSpec(name="t", role="shared", url="shelf://x", options={"room_bytes": "7"})
    open_tier(Place(spec, NodeTier(), "00" * 16))
    assert asked == [{"room_bytes": 7, "prefix": f"ts:{'00' * 8}:"}]
    wrong = TierSpec(name="t", role="shared", url="shelf://x", options={"ttl_s": "7"})
    with pytest.raises(ConfigError, match="no option 'ttl_s': known are prefix, room_bytes"):
        open_tier(Place(wrong, NodeTier(), "00" * 16))


def test_storage_that_is_shared_takes_the_options_of_its_own_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def opener(request: backends.Request) -> MemoryStore:
        asked.append((request.options, request.timeout_s))
        return MemoryStore()

    own = Backend("shelf", ("shelf",), ("warm", "shared"), opener, options={"room_bytes": int})
    monkeypatch.setattr(backends, "BACKENDS", (*BACKENDS, own))
    options = {"room_bytes": "7"}
    spec = TierSpec(name="t", role="shared", url="shelf://x", timeout_ms=250, options=options)
    open_tier(Place(spec, NodeTier(), "00" * 16))
    assert asked == [({"room_bytes": 7}, 0.25)]


@pytest.mark.parametrize("option", ["prefix", "ttl_s", "connections", "room_bytes"])
def test_a_shared_directory_refuses_the_options_of_a_cache(tmp_path: Path, option: str) -> None:
    spec = TierSpec(name="t", role="shared", url=tmp_path.as_uri(), options={option: "7"})
    with pytest.raises(ConfigError, match=f"no option '{option}': known are none"):
        open_tier(Place(spec, NodeTier(), "00" * 16))


@pytest.mark.parametrize("name", ["GLACIER", "DEEP_ARCHIVE"])
def test_a_shared_bucket_is_no_archive(name: str) -> None:
    spec = TierSpec(name="t", role="shared", url="s3://b/p", options={"storage_class": name})
    with pytest.raises(ConfigError, match="a shared tier is read at once"):
        open_tier(Place(spec, NodeTier(), "00" * 16))
