"""A store that is open when its process forks: it works on both sides, or refuses in the child."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

import tierstore
from tests.integration.kit import MIB, ROOT, finished, python, tensors
from tests.servers.moto import Moto
from tests.servers.redis import RedisServer

pytestmark = pytest.mark.server
_names = itertools.count()
PATHS = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])


@pytest.fixture(params=["local", "hot", "s3", "redis", "fsspec"])
def url(
    request: pytest.FixtureRequest, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """The URL of a store with two versions of a model, of a kind that holds something else each."""
    name = f"forked-{next(_names)}"
    url, tiers = str(tmp_path / "store"), ""
    if request.param == "s3":
        moto: Moto = request.getfixturevalue("moto_server")
        for key, value in moto.environment.items():
            monkeypatch.setenv(key, value)
        moto.client().create_bucket(Bucket=name)
        url = f"s3://{name}/models"
    if request.param == "fsspec":
        url = f"fsspec+file://{tmp_path}/store"
    if request.param == "hot":
        tiers = f'[hot]\nurl = "{tmp_path}/hot"\nsize = "64MB"\n'
    if request.param == "redis":
        redis: RedisServer = request.getfixturevalue("redis_plain")
        spec = tierstore.TierSpec(name="near", role="shared", url=redis.url)
    config = tmp_path / "tierstore.toml"
    config.write_text(tiers)
    monkeypatch.setenv("TIERSTORE_CONFIG", str(config))
    made = [spec] if request.param == "redis" else []
    with tierstore.init(url, chunk_size=MIB, tiers=made) as store:
        store.save("m", tensors(1))
        changed = {name: array + array.dtype.type(1) for name, array in tensors(1).items()}
        store.save("m", changed)
    return url


BUSY = """
import sys, threading, numpy as np, tierstore
from tests.children import forked
from tests.integration.kit import equal, tensors
url = sys.argv[1]
store = tierstore.open(url)
model = store.load("m@1")
stop = threading.Event()
def read_once():
    equal(model.load(), tensors(1))
    model.tensor("emb")[[5, 250]]
    store.load("m@2")["bias"]
def read():
    while not stop.is_set():
        read_once()
read_once()  # Python itself hangs in a child that imports what a thread was importing at the fork
threads = [threading.Thread(target=read) for _ in range(2)]
for thread in threads: thread.start()
def reads():
    equal(model.load(), tensors(1))
    assert model.tensor("emb")[[7, 251]].tobytes() == tensors(1)["emb"][[7, 251]].tobytes()
    return "read"
def loads():
    equal(store.load("m@1").load(), tensors(1))
    return "loaded"
def opens():
    with tierstore.open(url) as own:
        equal(own.load("m@1").load(), tensors(1))
    return "opened"
def saves():
    version = store.save("n", tensors(3))
    equal(store.load(version).load(), tensors(3))
    store.close()
    return "saved"
def below():
    reads()
    return forked({"grandchild": reads})["grandchild"]
for _ in range(int(sys.argv[2])):
    found = forked({"reads": reads, "loads": loads, "opens": opens, "saves": saves, "below": below})
    print(*found.values(), sep="|")
stop.set()
for thread in threads: thread.join()
equal(store.load("m@1").load(), tensors(1))
store.save("m", tensors(4))
store.close()
"""


def test_children_of_a_busy_process_use_what_it_has_open(url: str) -> None:
    """As those of a server that loads before it forks its workers."""
    done = finished(python(BUSY, url, 2), timeout=400)
    assert done == "read|loaded|opened|saved|read\n" * 2


REFUSED = """
import os, sys, tierstore
from tests.children import forked
from tests.integration.kit import equal, tensors
model = tierstore.open(sys.argv[1]).load("m@1")
equal(model.load(), tensors(1))
def reads():
    del os.memfd_create
    model.load()
print(forked({"child": reads}, timeout_s=30)["child"])
equal(model.load(), tensors(1))
"""


@pytest.mark.parametrize("url", ["s3"], indirect=True)
def test_where_no_second_copy_can_be_loaded_the_child_is_refused(url: str) -> None:
    said = finished(python(REFUSED, url))
    assert said == (
        f"BackendError: {url} cannot be used in this process, which was forked from one that had "
        "it open (AttributeError): start processes by 'spawn' or 'forkserver', or open the store "
        "in the children alone\n"
    )


FOLLOWED = """
import sys, tierstore
from tests.children import forked
from tierstore.serving import follow
with follow("m", on_ready=lambda update: None, store=tierstore.open(sys.argv[1])) as follower:
    assert follower.wait(60)
    def closes():
        follower.close()
        return follower.closed
    asked = {"update": lambda: follower.update, "wait": follower.wait, "look": follower.look}
    for name, said in forked({**asked, "closes": closes}).items():
        print(name, said)
    print(follower.update.version, follower.closed)
"""


@pytest.mark.parametrize("url", ["local"], indirect=True)
def test_a_follower_follows_in_its_own_process_alone(url: str) -> None:
    refused = (
        "UsageError: m is followed by the process that this one was forked from: follow it in each "
        "process, or ask that one"
    )
    assert finished(python(FOLLOWED, url)).splitlines() == [
        f"update {refused}", f"wait {refused}", f"look {refused}", "closes True", "m@2 False",
    ]  # fmt: skip


SHARED = """
import multiprocessing, pickle, sys, numpy as np, tierstore
from tests.integration.kit import equal, tensors
from tierstore.serving.filesystem import TierstoreFileSystem

def child(how, store, model, tensor, view, fs, answers):
    try:
        equal(model.load(), tensors(1))
        assert str(model.version) == "m@1", model.version
        assert tensor[[7, 251]].tobytes() == tensors(1)["emb"][[7, 251]].tobytes()
        assert view.read(0, 8) == fs.cat_file("m@1/model.safetensors", 0, 8)
        assert store.models() == ["m"], store.models()
        answers.put(f"{how}: read")
    except BaseException as error:
        answers.put(f"{how}: {type(error).__name__}: {error}")

if __name__ == "__main__":
    url = sys.argv[1]
    store = tierstore.open(url)
    model = store.load("m@1")
    model["bias"]
    view = model.open_file("model.safetensors")
    fs = TierstoreFileSystem(url)
    fs.ls("m@1")
    for how in ("fork", "spawn", "forkserver"):
        context = multiprocessing.get_context(how)
        answers = context.Queue()
        about = (how, store, model, model.tensor("emb"), view, fs, answers)
        process = context.Process(target=child, args=about)
        process.start()
        print(answers.get(timeout=120), flush=True)
        process.join(60)
        assert process.exitcode == 0, process.exitcode
    equal(model.load(), tensors(1))
"""


def test_what_is_open_goes_to_processes_of_every_start_method(url: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"  # what spawn runs again
    program.write_text(SHARED)
    said = finished(started(program, url), timeout=400)
    assert said.splitlines() == ["fork: read", "spawn: read", "forkserver: read"]


LOADED = """
import sys, torch, tierstore
from tests.integration.kit import tensors
from torch.utils.data import DataLoader, Dataset

class Rows(Dataset):
    def __init__(self, model): self.model = model
    def __len__(self): return 24
    def __getitem__(self, row): return torch.from_numpy(self.model.tensor("emb")[[row]])

if __name__ == "__main__":
    rows = Rows(tierstore.open(sys.argv[1]).load("m@1"))
    rows[3]
    expected = tensors(1)["emb"][:24]
    for how in ("fork", "spawn", "forkserver"):
        loader = DataLoader(rows, 8, num_workers=2, multiprocessing_context=how, timeout=90)
        found = torch.cat(list(loader)).numpy().reshape(24, -1)
        print(how, found.tobytes() == expected.tobytes(), flush=True)
    assert rows[3].numpy().tobytes() == expected[3].tobytes()
"""


@pytest.mark.parametrize("url", ["hot", "s3"], indirect=True)
def test_workers_of_a_data_loader_read_the_model_of_their_parent(url: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(LOADED)
    said = finished(started(program, url), timeout=400)
    assert said.splitlines() == ["fork True", "spawn True", "forkserver True"]


def started(program: Path, *args: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(program), *map(str, args)], text=True, cwd=ROOT,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": PATHS},
    )  # fmt: skip
