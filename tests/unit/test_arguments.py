"""A wrong argument is a UsageError that says what to give instead."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tierstore
from tierstore.errors import NotFound, TensorMissing, UsageError


@pytest.fixture
def store(tmp_path: Path) -> Iterator[tierstore.Store]:
    with tierstore.init(tmp_path / "store", chunk_size=1 << 20) as opened:
        opened.save("ranker", {"w": np.zeros((3, 2), "<f4"), "v": np.zeros(3, "<f4")})
        yield opened


class Module:
    """What torch, keras and others call a module: it has its weights, and is not them."""

    def state_dict(self) -> dict[str, Any]:
        return {"w": np.ones((3, 2), "<f4")}


OTHER = "save takes a path or tensors by name, "


@pytest.mark.parametrize(("source", "says"), [
    (Module(), OTHER + "not a value of type Module: give its state_dict()"),
    (np.zeros(3), OTHER + "not a value of type ndarray: give it a name, {'weight': …}"),
    (12, OTHER + "{'weight': array}, not a value of type int"),
    (None, OTHER + "{'weight': array}, not a value of type NoneType"),
    (b"model", OTHER + "{'weight': array}, not a value of type bytes"),
    ([np.zeros(3)], OTHER + "{'weight': array}, not a value of type list"),
])  # fmt: skip
def test_what_cannot_be_saved(store: tierstore.Store, source: Any, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        store.save("ranker", source)
    assert str(caught.value) == says
    assert [version.number for version in store.versions("ranker")] == [1]


def test_what_a_module_has_can_be_saved(store: tierstore.Store) -> None:
    assert store.save("ranker", Module().state_dict()).number == 2


@pytest.mark.parametrize(("ref", "says"), [
    (12, "12 alone is no reference: name the model as well, such as 'ranker@12'"),
    (None, "not None"),
    (Path("ranker"), "Store.save make a version of a path"),
    (["ranker"], "not a value of type list"),
])  # fmt: skip
def test_what_is_no_reference(store: tierstore.Store, ref: Any, says: str) -> None:
    for call in (
        store.load, store.resolve, store.variants, store.fold, store.rebase, store.warmup,
        store.admin.lineage, store.releases.get,
        lambda ref: store.diff(ref, "ranker"), lambda ref: store.diff("ranker", ref),
        lambda ref: store.patch(ref, {}), lambda ref: list(store.patches(since=ref)),
        lambda ref: store.alias("ranker", "prod", ref),
        lambda ref: store.derive(ref, {"cast": "bf16"}),
        lambda ref: store.save("n", {"w": np.zeros(3)}, distilled_from=ref) if ref else
        store.resolve(ref),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=says):
            call(ref)


@pytest.mark.parametrize(
    ("alias", "says"),
    [(["a"], "not a list of them"), (12, "not 12"), ("12", "reads as a version")],
)
def test_what_is_no_alias(store: tierstore.Store, alias: Any, says: str) -> None:
    for call in (
        lambda: store.save("ranker", {"w": np.ones(3, "<f4")}, alias=alias),
        lambda: store.patch("ranker", {"v": tierstore.Dense(np.ones(3, "<f4"))}, alias=alias),
        lambda: store.alias("ranker", alias, "ranker@1"),
        lambda: store.rollback("ranker", alias),
        lambda: store.releases.create("search", ["ranker@1"], alias=alias),
    ):
        with pytest.raises(UsageError, match=says):
            call()
    assert [version.number for version in store.versions("ranker")] == [1], "nothing is published"
    assert store.models() == ["ranker"]


@pytest.mark.parametrize("model", [12, None, ["ranker"], Path("ranker")])
def test_what_is_no_name_of_a_model(store: tierstore.Store, model: Any) -> None:
    for call in (
        lambda: store.save(model, {"w": np.ones(3, "<f4")}), lambda: store.versions(model),
        lambda: store.aliases(model), lambda: list(store.history(model)),
        lambda: store.all_variants(model), lambda: store.rollouts.status(model, "prod"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=r"model takes (a|one) name"):
            call()


def test_one_name_where_names_are_meant(store: tierstore.Store, tmp_path: Path) -> None:
    """The letters of a text would be taken for names."""
    model = store.load("ranker")
    approximated = store.load(store.derive("ranker", {"cast": "bf16"}), dequantize=True)
    calls: tuple[Any, ...] = (
        model.load, model.to_torch, approximated.load, approximated.to_torch,
        lambda names: model.export_tensors(names, tmp_path / "some.safetensors"),
    )  # fmt: skip
    for call in calls:
        with pytest.raises(UsageError) as caught:
            call("w*")
        assert str(caught.value) == (
            "names takes a list, such as ['w*'], not 'w*'; for those that fit a pattern choose "
            "from keys(), for example with fnmatch.filter(model.keys(), pattern)"
        )
        with pytest.raises(UsageError, match=r"^names takes a list, such as \['w'\], not 12$"):
            call(12)
    assert list(model.load(["w"])) == ["w"]
    assert list(model.load({"w": 1})) == ["w"]


def test_one_pattern_where_patterns_are_meant(store: tierstore.Store, tmp_path: Path) -> None:
    """The letters of ``secret.txt`` are patterns that exclude nothing: it would be published."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("weights.txt", "secret.txt"):
        (folder / name).write_text(name)
    with pytest.raises(UsageError) as caught:
        store.save("notes", folder, exclude="secret.txt")
    assert str(caught.value) == "exclude takes a list, such as ['secret.txt'], not 'secret.txt'"
    assert store.models() == ["ranker"]
    store.save("notes", folder, exclude=("secret.*", "*.bin"), allow_no_tensors=True)
    assert [file.path for file in store.load("notes").files] == ["weights.txt"]


@pytest.mark.parametrize(("refs", "says"), [
    ("ranker@1", "refs takes a list, such as ['ranker@1'], not 'ranker@1'"),
    ({"ranker": 1}, "refs takes a list of references, such as ['ranker@1'], not a dict"),
    (None, "refs takes a list, such as ['ranker@1', 'retriever@prod'], not None"),
    ([1], "1 alone is no reference: name the model as well, such as 'ranker@1'"),
])  # fmt: skip
def test_what_are_no_members(store: tierstore.Store, refs: Any, says: str) -> None:
    store.save("ranker", {"w": np.ones(3, "<f4")})
    with pytest.raises(UsageError) as caught:
        store.releases.create("search", refs)
    assert str(caught.value) == says
    assert store.models() == ["ranker"]


@pytest.mark.parametrize("name", [12, None, ("w",)])
def test_no_text_is_no_tensor(store: tierstore.Store, name: Any) -> None:
    model = store.load("ranker")
    for call in (model.tensor, model.__getitem__, lambda name: model.load([name])):
        with pytest.raises(TensorMissing, match="ranker@1 has no tensor"):
            call(name)


@pytest.mark.parametrize(("message", "says"), [
    (7, "message takes text, or None for no message, not 7"),
    (["why"], "message takes text, or None for no message, not a value of type list"),
    (b"why", "message takes text, or None for no message, not a value of type bytes"),
    ("\udc80", "message holds a lone surrogate, which no text in a store can hold; leave it out"),
])  # fmt: skip
def test_what_is_no_message(
    store: tierstore.Store, tmp_path: Path, message: Any, says: str
) -> None:
    """An entry with such a message would never be read again, and its model with it."""
    change = {"v": tierstore.Dense(np.ones(3, "<f4"))}
    second = store.patch("ranker", change, alias="prod")
    warm = tierstore.TierSpec(name="warm", role="warm", url=(tmp_path / "warm").as_uri())
    objects = store._parts.home.blobs
    before = {info.key for info in objects.list("")}
    for call in (
        lambda: store.save("ranker", {"w": np.ones(3, "<f4")}, message=message),
        lambda: store.save("new", {"w": np.ones(3, "<f4")}, message=message),
        lambda: store.patch("ranker", change, message=message),
        lambda: store.alias("ranker", "prod", "ranker@1", message=message),
        lambda: store.remove_alias("ranker", "prod", message=message),
        lambda: store.rollback("ranker", "prod", message=message),
        lambda: store.derive("ranker", {"cast": "bf16"}, message=message),
        lambda: store.rollouts.start("ranker", "prod", store.resolve("ranker@1"), message=message),
        lambda: store.releases.create("search", ["ranker@1"], message=message),
        lambda: store.admin.tiers.add(warm, message=message),
    ):
        with pytest.raises(UsageError) as caught:
            call()
        assert str(caught.value) == says
    assert {info.key for info in objects.list("")} == before
    assert store.resolve("ranker@prod") == second


def test_none_is_no_message(store: tierstore.Store, tmp_path: Path) -> None:
    array = {"w": np.ones((3, 2), "<f4")}
    version = store.save("ranker", array, alias="prod", message=None)
    assert version.message == store.resolve("ranker").message == ""
    change = {"v": tierstore.Dense(np.ones(3, "<f4"))}
    assert store.patch("ranker@1", change, message=None).message == ""
    assert store.derive("ranker", {"cast": "bf16"}, message=None).message == ""
    assert store.releases.create("search", ["ranker@1"], message=None).version.message == ""
    assert store.rollouts.start("ranker", "prod", store.resolve("ranker@1"), message=None)
    store.rollouts.abort("ranker", "prod", message=None)
    store.alias("ranker", "prod", "ranker@1", message=None)
    store.rollback("ranker", "prod", message=None)
    store.remove_alias("ranker", "prod", message=None)
    assert {entry.message for entry in store.history("ranker", "prod")} == {""}
    warm = tierstore.TierSpec(name="warm", role="warm", url=(tmp_path / "warm").as_uri())
    store.admin.tiers.add(warm, message=None)
    assert store.admin.tiers.set("warm", high=90, message=None).high == 90


@pytest.mark.parametrize("progress", [1, "yes", []])
def test_what_is_no_progress(store: tierstore.Store, progress: Any, tmp_path: Path) -> None:
    model = store.load("ranker")
    for call in (
        lambda: store.save("ranker", {"w": np.ones(3, "<f4")}, progress=progress),
        lambda: model.load(progress=progress),
        lambda: model.export(tmp_path / "out", progress=progress),
        lambda: store.check(progress=progress),
    ):
        with pytest.raises(UsageError, match="progress is True for a bar, or a function"):
            call()
    assert [version.number for version in store.versions("ranker")] == [1]


def test_a_version_of_another_store(store: tierstore.Store, tmp_path: Path) -> None:
    with tierstore.init(tmp_path / "other", chunk_size=1 << 20) as other:
        foreign = other.save("ranker", {"w": np.ones(3, "<f4")})
        newer = other.save("ranker", {"w": np.ones(4, "<f4")})
    for version in (foreign, newer):
        with pytest.raises(UsageError) as caught:
            store.load(version)
        assert str(caught.value) == (
            f"{version} {version.digest.short} is no version of {store.url}: it may be another "
            f"store's; give a reference, such as '{version}'"
        )


def test_a_manifest_that_is_missing_is_no_wrong_argument(
    store: tierstore.Store, tmp_path: Path
) -> None:
    version = store.resolve("ranker")
    (tmp_path / "store" / "versions" / version.digest.hex).unlink()
    with pytest.raises(NotFound, match="run 'tierstore repair'"):
        store.load(version)


def test_a_version_is_as_good_as_its_reference(store: tierstore.Store) -> None:
    first = store.resolve("ranker@1")
    second = store.save("ranker", {"w": np.ones((3, 2), "<f4")}, base=first, distilled_from=first)
    assert store.resolve(first) is first
    assert second == store.resolve("ranker@2"), "what the save cost is no part of what it is"
    assert store.diff(first, second) == store.diff("ranker@1", "ranker@2")
    third = store.patch(second, {"w": tierstore.Dense(np.zeros((3, 2), "<f4"))})
    assert [str(patch.version) for patch in store.patches(second, third)] == ["ranker@3"]
    assert store.fold(third).version.number == 3
    assert store.alias("ranker", "prod", third).version.number == 3
    variant = store.derive(first, {"cast": "bf16"})
    assert store.variants(first) == [variant]
    assert [node.names for node in store.admin.lineage(second)] == [
        node.names for node in store.admin.lineage("ranker@2")
    ]
    assert store.releases.create("search", [third]).members["ranker"].number == 3
    assert store.rebase(second).chunks == 0
