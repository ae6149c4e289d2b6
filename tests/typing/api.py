"""Uses of the public API as a user's strict mypy sees them; checked, never run."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, assert_type

import numpy as np
import numpy.typing as npt

import tierstore
from tierstore import (
    Alias,
    Dense,
    Digest,
    Elements,
    FileInfo,
    Folded,
    InPlace,
    LoadStats,
    Model,
    ModelRef,
    Patch,
    Rows,
    SaveStats,
    Store,
    Tensor,
    TierSpec,
    Version,
    errors,
)
from tierstore.admin.admin import Admin
from tierstore.admin.manage import Drained
from tierstore.serving.follower import Follower
from tierstore.variants.lineage import Node


def saves(path: Path, weights: Mapping[str, npt.NDArray[np.float32]]) -> Version:
    with tierstore.init(path, chunk_size=1 << 20) as store:
        assert_type(store, Store)
        version = store.save("ranker", weights, alias="prod", message="m", metadata={"a": "b"})
        assert_type(version, Version)
        assert_type(version.digest, Digest)
        assert_type(version.number, int)
        assert_type(version.stats, SaveStats | None)
        store.save("ranker", path, exclude=["*.tmp"], progress=lambda done, total: None)
        return store.save("ranker", "model_dir/")


def loads() -> npt.NDArray[Any]:
    store = tierstore.open("s3://bucket/prefix")
    assert_type(store, Store)
    model = store.load("ranker@prod")
    assert_type(model, Model)
    assert_type(model["w"], npt.NDArray[Any])
    assert_type(model.tensor("w"), Tensor)
    assert_type(model.tensor("w").shape, tuple[int, ...])
    assert_type(model.load(["w"]), dict[str, npt.NDArray[Any]])
    assert_type(model.files, list[FileInfo])
    assert_type(model.stats, LoadStats)
    assert_type(model.read_file("config.json"), bytes)
    model.load_into({"w": np.empty(3, np.float32)})
    return model.tensor("w")[[3, 14, 15]]


def files() -> None:
    with tierstore.safe_open("tierstore://ranker@prod/m.safetensors", framework="pt") as file:
        assert_type(file.keys(), list[str])
        assert_type(file.metadata(), dict[str, str] | None)
        assert_type(file.get_slice("w").get_shape(), list[int])
    assert_type(tierstore.load_file("m.safetensors", device="cpu"), dict[str, Any])
    assert_type(tierstore.safetensors.load_file("m.safetensors"), dict[str, Any])
    tierstore.safetensors.install()
    assert_type(tierstore.__version__, str)


def follows(live: Mapping[str, npt.NDArray[np.float32]], store: Store) -> None:
    apply = InPlace(live, threading.Lock())
    with tierstore.follow("ranker@prod", apply, store=store, poll_s=1.0) as follower:
        assert_type(follower, Follower)


def patches(store: Store, values: npt.NDArray[np.float32]) -> None:
    changes = {"emb": Rows([1, 2], values), "b": Dense(values), "w": Elements([0], values)}
    assert_type(store.patch("ranker@prod", changes, alias="prod", message="m"), Version)
    store.patch("ranker", Path("patch.safetensors"), fold=False)
    patch = Patch.of("b3:" + "00" * 32, {"b": Dense(values)}, {"b": (3,)})
    patch.save("patch.safetensors")
    store.patch("ranker", Patch.open("patch.safetensors"))
    for one in store.patches(since="ranker@1"):
        assert_type(one, Patch)
        assert_type(one.version, Version | None)
        one.apply_to({"emb": values})
    assert_type(store.fold("ranker", at_least=8), Folded)
    store.patch("ranker", 3)  # type: ignore[arg-type]


def names(store: Store) -> None:
    assert_type(store.models(), list[str])
    assert_type(store.versions("ranker", 3), list[Version])
    assert_type(store.aliases("ranker"), list[Alias])
    assert_type(store.alias("ranker", "prod", "ranker@2"), Alias)
    assert_type(store.rollback("ranker", "prod"), Alias)
    older = store.versions("ranker")[-1]
    assert_type(store.remove("ranker@1", older, force=True, message="m"), list[Version])
    assert_type(store.undelete("ranker@1"), Version)
    found = store.forget("ranker", keep_last=3, keep_within=timedelta(days=30), dry_run=True)
    assert_type(found.kept[0].reasons, tuple[str, ...])
    assert_type(store.deleted()[0].until, datetime)
    store.retention.set("ranker", keep_tag=["v*"], window=timedelta(0))
    store.remove(["ranker@1"])  # type: ignore[arg-type]
    store.forget("ranker", keep_within=30)  # type: ignore[arg-type]
    assert_type(ModelRef.parse("ranker@prod").alias, str | None)
    assert_type(Digest.from_hex("00" * 32).hex, str)
    try:
        store.resolve("ranker@nothing")
    except errors.NotFound as error:
        assert_type(error, errors.NotFound)
        assert_type(error.exit_code, int)


def tiers(path: Path) -> list[TierSpec]:
    warm = TierSpec(name="warm", role="warm", url="file:///mnt/ceph", size=50 << 30, high=90)
    prices = {"gb_month": "0.0125"}
    cold = TierSpec(name="cold", role="cold", url="s3://bucket/prefix", prices=prices)
    store = tierstore.init(path, tiers=[warm, cold])
    assert_type(store, Store)
    assert_type(store.tiers(), list[TierSpec])
    assert_type(warm.size, int | None)
    assert_type(warm.options, dict[str, str])
    return store.tiers()


def variants_and_switches(store: Store) -> None:
    assert_type(tierstore.derive(store, "ranker", {"int8": "row"}, max_error=0.01), Version)
    approximated = store.load("ranker@12+int8-row", dequantize=True)
    assert_type(approximated["w"], npt.NDArray[Any])
    assert_type(store.load("ranker@prod", profile="cpu-int8"), Model)
    assert_type(store.variants("ranker@prod"), list[Version])
    release = store.releases.create("search", ["ranker@1", "tokenizer@4"], alias="prod")
    assert_type(release.members, Mapping[str, Version])
    assert_type(store.rollouts.start("search", "prod", store.resolve("search@2")).percent, float)
    assert_type(store.rollouts.abort("search", "prod"), Version)
    assert_type(store.rebase("ranker@2", above=2).chunks, int)


def administration(store: Store) -> None:
    admin = store.admin
    assert_type(admin, Admin)
    assert_type(admin.tiers.list(), list[TierSpec])
    warm = TierSpec(name="warm", role="warm", url="file:///w")
    assert_type(admin.tiers.add(warm, message="m"), TierSpec)
    assert_type(admin.tiers.set("warm", size=None, high=90, options={"ttl_s": "60"}), TierSpec)
    drained = admin.tiers.drain("warm", dry_run=True, progress=lambda moved: None)
    assert_type(drained, Drained)
    assert_type(drained.left.used_bytes, int)
    assert_type(admin.tiers.undrain("warm"), Drained)
    assert_type(admin.tiers.remove("warm", force=True).spec, TierSpec)
    assert_type(admin.df()[0].used_bytes, int | None)
    assert_type(admin.top(3).hottest[0].versions, tuple[str, ...])
    assert_type(admin.lineage("ranker@1")[0].children, list[Node])
    assert_type(admin.validate("/mnt", "warm").examination.home, bool)
    assert_type(admin.doctor().problems, list[str])


def references(store: Store, version: Version) -> None:
    assert_type(store.resolve(version), Version)
    assert_type(store.derive(version, {"cast": "bf16"}, progress=True), Version)
    store.diff(version, "ranker@2")
    store.patch(version, {}, message="m")
    store.alias("ranker", "prod", version)
    store.releases.create("search", [version, "tokenizer@4"])


def bars(store: Store, path: Path) -> None:
    store.save("ranker", path, progress=True)
    model = store.load("ranker")
    assert_type(model.load(progress=True), dict[str, npt.NDArray[Any]])
    assert_type(model.export(path, progress=lambda done, total: None), list[FileInfo])
    store.check(progress=False)
    assert_type(store.diff("ranker@1", "ranker@2").changed[0].name, str)


def refused(store: Store) -> None:
    store.save("ranker", {}, alias=["prod"])  # type: ignore[arg-type]
    store.save("ranker", {}, progress="yes")  # type: ignore[arg-type]
    store.admin.tiers.set("warm", role="cold")  # type: ignore[call-arg]
    store.admin.tiers.set("warm", size="5GB")  # type: ignore[arg-type]
    store.resolve(12)  # type: ignore[arg-type]
    store.save("ranker", 3)  # type: ignore[arg-type]
    store.save("ranker", {}, alis="prod")  # type: ignore[call-arg]
    store.load(b"ranker")  # type: ignore[call-overload]
    tierstore.init("store", 1 << 20)  # type: ignore[call-arg]
    tierstore.init("store", tiers=["file:///mnt/ceph"])  # type: ignore[list-item]
    TierSpec(name="warm", role="tepid", url="file:///w")  # type: ignore[arg-type]
    store.tiers()[0].size = 3  # type: ignore[misc]
    store.load("ranker").tensor("w").dtype = "F32"  # type: ignore[misc]
