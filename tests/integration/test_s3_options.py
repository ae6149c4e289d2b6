"""How a bucket is reached: every option of a cold tier, with a real radosgw."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import msgspec
import obstore
import pytest
from obstore.store import S3Store

from tests.servers.ceph import ACCESS_KEY, SECRET_KEY, Ceph
from tierstore.blobs.base import RangeRead
from tierstore.blobs.objects.store import ObjectStore
from tierstore.config import NodeTier, node_config
from tierstore.errors import ConfigError, PermissionDenied, Unreachable
from tierstore.format.tiers import TierSpec
from tierstore.wiring.backends import Place, open_archive, open_blobs, open_tier

_MIB = 1 << 20


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_ENDPOINT_URL",
                 "AWS_REGION", "AWS_ALLOW_HTTP", "AWS_CA_BUNDLE"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)


def _tier(bucket: str, ca: Path | None = None, **options: str) -> Place:
    spec = TierSpec(name="cold", role="cold", url=f"s3://{bucket}/p", options=options)
    return Place(spec, NodeTier(ca=str(ca) if ca else None), "00" * 16)


def _works(place: Place) -> None:
    with open_tier(place) as store:
        store.put("k", b"what was put")
        assert store.get("k") == b"what was put"


@pytest.mark.usefixtures("keys")
def test_endpoint_region_and_path_style_are_options(ceph: Ceph) -> None:
    place = _tier(ceph.bucket(), endpoint=ceph.endpoint, region="us-east-1", path_style="true")
    _works(place)


@pytest.mark.parametrize(("path_style", "address"), [
    (True, "https://s3.example.org/bucket/p/k"), (False, "https://bucket.s3.example.org/p/k"),
])  # fmt: skip
@pytest.mark.usefixtures("keys")
def test_the_bucket_is_in_the_path_or_in_the_name_of_the_host(
    path_style: bool, address: str
) -> None:
    host = "s3.example.org" if path_style else "bucket.s3.example.org"
    store = ObjectStore("s3://bucket/p", endpoint=f"https://{host}", region="x",
                        path_style=path_style)  # fmt: skip
    assert isinstance(store._clients.reads, S3Store)
    signed = obstore.sign(store._clients.reads, "GET", "k", timedelta(seconds=9))
    assert signed.partition("?")[0] == address


@pytest.mark.usefixtures("keys")
def test_each_tier_has_its_storage_class(ceph: Ceph) -> None:
    bucket = ceph.bucket()
    big = [bytes(5 * _MIB), b"x" * (12 * _MIB + 1)]  # goes up in parts
    for name in ("STANDARD", "STANDARD_IA", "GLACIER_IR"):
        with open_tier(_tier(bucket, endpoint=ceph.endpoint, storage_class=name)) as store:
            store.put(f"{name}/put", b"x")
            assert store.put_if_absent(f"{name}/new", b"x")
            store.put(f"{name}/big", big)
        for key in ("put", "new", "big"):
            head = ceph.client().head_object(Bucket=bucket, Key=f"p/{name}/{key}")
            assert head.get("StorageClass", "STANDARD") == name, key


@pytest.mark.usefixtures("keys")
def test_a_large_blob_goes_up_in_parts_and_is_whole(ceph: Ceph) -> None:
    bucket, data = ceph.bucket(), [bytes([n]) * (3 * _MIB + n) for n in range(9)]
    with open_tier(_tier(bucket, endpoint=ceph.endpoint)) as store:
        store.put("k", data)
        assert store.get("k") == b"".join(data)
    etag = ceph.client().head_object(Bucket=bucket, Key="p/k")["ETag"]
    assert etag.strip('"').endswith("-6"), f"not 6 parts of 5 MiB: {etag}"
    assert "Uploads" not in ceph.client().list_multipart_uploads(Bucket=bucket)


@pytest.mark.usefixtures("keys")
def test_tls_with_an_authority_of_ones_own(ceph: Ceph, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = ceph.bucket()
    _works(_tier(bucket, ca=ceph.ca, endpoint=ceph.tls_endpoint))
    monkeypatch.setenv("AWS_CA_BUNDLE", str(ceph.ca))
    _works(_tier(bucket, endpoint=ceph.tls_endpoint))
    monkeypatch.delenv("AWS_CA_BUNDLE")
    with (
        ObjectStore(f"s3://{bucket}/p", endpoint=ceph.tls_endpoint, timeout_s=0.3) as store,
        pytest.raises(Unreachable, match="certificate is not trusted"),
    ):
        store.put("k", b"to a stranger")
    with pytest.raises(ConfigError, match="no-such-file"):
        open_tier(_tier(bucket, ca=Path("no-such-file"), endpoint=ceph.tls_endpoint))


def _profiles(tmp_path: Path, text: str) -> None:
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text(text)


def _credentials(name: str, secret: str = SECRET_KEY) -> str:
    return f"[{name}]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {secret}\n"


def test_credentials_of_a_profile(
    ceph: Ceph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _profiles(tmp_path, _credentials("models") + _credentials("other", "wrong"))
    bucket = ceph.bucket()
    _works(_tier(bucket, endpoint=ceph.endpoint, profile="models"))
    with (
        open_tier(_tier(bucket, endpoint=ceph.endpoint, profile="other")) as store,
        pytest.raises(PermissionDenied) as caught,
    ):
        store.get("k")
    assert ACCESS_KEY not in str(caught.value)
    monkeypatch.setenv("AWS_PROFILE", "models")
    monkeypatch.setenv("AWS_ENDPOINT_URL", ceph.endpoint)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    with open_blobs(f"s3://{bucket}/p") as store:
        assert store.get("k") == b"what was put"
    with pytest.raises(ConfigError, match="'nobody'"):
        open_tier(_tier(bucket, endpoint=ceph.endpoint, profile="nobody"))


def test_the_default_profile_is_used_as_other_tools_do(ceph: Ceph, tmp_path: Path) -> None:
    _profiles(tmp_path, _credentials("default"))
    _works(_tier(ceph.bucket(), endpoint=ceph.endpoint))


@pytest.mark.usefixtures("keys")
def test_the_environment_wins_over_a_default_profile(ceph: Ceph, tmp_path: Path) -> None:
    _profiles(tmp_path, _credentials("default", "wrong"))
    _works(_tier(ceph.bucket(), endpoint=ceph.endpoint))


def _node(tmp_path: Path, text: str, environ: dict[str, str]) -> NodeTier:
    file = tmp_path / "tierstore.toml"
    file.write_text("[tiers.cold]\n" + text)
    return node_config({"TIERSTORE_CONFIG": str(file), **environ}).tier("cold", "cold")


def test_the_nodes_file_names_an_access_key_for_one_tier(
    ceph: Ceph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f'username = "{ACCESS_KEY}"\npassword_env = "COLD_SECRET"\n'
    own = _node(tmp_path, text, {"COLD_SECRET": SECRET_KEY})
    # of other keys, for other tiers
    _profiles(tmp_path, _credentials("default", "wrong"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAOTHEROTHEROTHER")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "other")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "a token of the other key")
    bucket = ceph.bucket()
    place = replace(_tier(bucket, endpoint=ceph.endpoint), node=own)
    _works(place)
    frozen = msgspec.structs.replace(
        place.spec, options={**place.spec.options, "storage_class": "GLACIER"}
    )
    archive = open_archive(replace(place, spec=frozen))
    assert archive is not None
    assert archive.state("k") == ("readable", "")
    assert SECRET_KEY not in repr(place)
    wrong = _node(tmp_path, text, {"COLD_SECRET": "wrong"})
    with open_tier(replace(place, node=wrong)) as store, pytest.raises(PermissionDenied) as caught:
        store.get("k")
    assert ACCESS_KEY not in str(caught.value)


def test_half_an_access_key_is_none(tmp_path: Path) -> None:
    for text in ('username = "a"\n', 'password_env = "S"\n'):
        own = _node(tmp_path, text, {"S": "very-secret"})
        with pytest.raises(ConfigError, match="in two parts") as caught:
            open_tier(replace(_tier("bucket"), node=own))
        assert "very-secret" not in str(caught.value)
    spec = TierSpec(name="cold", role="cold", url="gs://bucket/p")
    own = NodeTier(username="a", password="very-secret")
    with pytest.raises(ConfigError, match="use the environment"):
        open_tier(Place(spec, own, "00" * 16))


@pytest.mark.usefixtures("keys")
def test_an_unknown_option_is_named() -> None:
    with pytest.raises(ConfigError, match="did you mean 'storage_class'"):
        open_tier(_tier("bucket", storage_clas="STANDARD"))
    spec = TierSpec(name="c", role="cold", url="gs://bucket/p", options={"region": "x"})
    with pytest.raises(ConfigError, match=r"region is for s3:// alone"):
        open_tier(Place(spec, NodeTier(), "00" * 16))


@pytest.fixture
def store(ceph: Ceph, keys: None) -> Iterator[ObjectStore]:
    bucket = ceph.bucket()
    with ObjectStore(f"s3://{bucket}/{uuid.uuid4().hex}", endpoint=ceph.endpoint) as store:
        yield store


def test_long_ranges_come_in_parallel_parts(store: ObjectStore) -> None:
    data = [bytes([n]) * _MIB for n in range(40)]
    store.put("k", data)
    outs = [bytearray(17 * _MIB), bytearray(20 * _MIB + 1)]
    views = [memoryview(out) for out in outs]
    store.get_ranges([RangeRead("k", 1, views[0]), RangeRead("k", 17 * _MIB + 1, views[1])])
    assert outs[0] + outs[1] == b"".join(data)[1 : 37 * _MIB + 2]
