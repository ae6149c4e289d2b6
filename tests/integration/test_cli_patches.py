"""The commands patch, patches and fold of the real program."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import tierstore
from tierstore.cli.kit import app
from tierstore.cli.schemas import core as shown
from tierstore.cli.schemas import patches as schemas

Run = Callable[..., tuple[int, str, str]]
TABLE = np.random.default_rng(0).standard_normal((3000, 100), np.float32)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    with tierstore.init(tmp_path / "store", chunk_size=1 << 20) as store:
        store.save("m", {"emb": TABLE, "bias": TABLE[0]}, alias="prod")
    monkeypatch.setenv("TIERSTORE_STORE", str(tmp_path / "store"))

    def go(*argv: object) -> tuple[int, str, str]:
        code = app.run([str(word) for word in argv])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return go


def parsed(run: Run, schema: Any, *argv: object) -> Any:
    code, out, err = run(*argv, "--json")
    assert (code, err) == (0, "")
    return msgspec.json.decode(out.encode(), type=schema)


def patch_file(tmp_path: Path, base: str, seed: int) -> Path:
    values = np.full((3, 100), seed, np.float32)
    patch = tierstore.Patch.of(
        base,
        {"emb": tierstore.Rows([seed, 7, 9], values), "bias": tierstore.Dense(values[0])},
        {"emb": TABLE.shape, "bias": (100,)},
    )
    path = tmp_path / f"{seed}.safetensors"
    patch.save(path)
    return path


def test_patch_list_fold_and_load(run: Run, tmp_path: Path) -> None:
    digest = parsed(run, shown.Stat, "stat", "m").digest
    file = patch_file(tmp_path, digest, 1)
    made = parsed(run, schemas.Patched, "patch", "m@prod", file, "--alias", "prod", "-m", "why")
    assert (made.version, made.base, made.alias, made.tensors) == (2, "m@1", "prod", 2)
    assert (made.message, made.folded) == ("why", False)
    assert made.bytes == 3 * 408 + 400
    assert 0 < made.stored_bytes < made.bytes + 4096
    code, out, err = run("patch", "m@2", patch_file(tmp_path, made.digest, 2))
    assert (code, err) == (0, "")
    assert out.startswith("m@3: m@2 with 2 tensors patched, 1.6 KiB, stored ")

    stat = parsed(run, shown.Stat, "stat", "m")
    assert (stat.patches, [file.sha256 for file in stat.files]) == (2, [""])
    assert stat.logical_bytes > TABLE.nbytes
    assert "2; 'tierstore fold' stores it whole" in run("stat", "m")[1]
    assert parsed(run, shown.Tensors, "tensors", "m").tensors[1].bytes == TABLE.nbytes

    listed = parsed(run, schemas.Patches, "patches", "m@1", "--to", tmp_path / "out")
    assert (listed.since, listed.until) == ("m@1", "m@3")
    assert [one.version for one in listed.patches] == ["m@2", "m@3"]
    assert [tensor.kind for tensor in listed.patches[0].tensors] == ["dense", "rows"]
    assert Path(listed.patches[0].file).read_bytes() == file.read_bytes()
    assert run("patches", "m@1", "-q")[1] == "m@2\nm@3\n"
    assert run("patches", "m@1", "--until", "m@2")[1].split()[7:10] == ["m@2", "2", "3"]
    assert run("patches", "m@3")[1] == "m@3 and m@3 have the same content\n"

    assert run("fold", "m", "--at-least", "3")[1] == "m@3: nothing to fold\n"
    done = parsed(run, schemas.FoldJson, "fold", "m")
    assert (done.version, done.patches) == (3, 2)
    assert done.digest == stat.digest != done.full
    assert run("fold", "m")[1] == "m@3: nothing to fold\n"
    assert parsed(run, shown.Stat, "stat", "m").files[0].sha256
    assert run("check", "--read-data")[0] == 0

    from safetensors.numpy import load_file

    assert run("load", "m@2", "--to", tmp_path / "two")[0] == 0  # folds it
    got = load_file(tmp_path / "two" / "model.safetensors")
    table = TABLE.copy()
    table[[1, 7, 9]] = 1
    assert got["emb"].tobytes() == table.tobytes()
    assert parsed(run, shown.Stat, "stat", "m@2").patches == 0


def test_errors_have_their_exit_codes(run: Run, tmp_path: Path) -> None:
    digest = parsed(run, shown.Stat, "stat", "m").digest
    file = patch_file(tmp_path, digest, 1)
    (tmp_path / "none").write_bytes(b"no patch")
    for code, *argv in (
        (5, "patch", "m", tmp_path / "nowhere"),
        (1, "patch", "m", tmp_path / "none"),
        (5, "patch", "m@9", file),
        (5, "patches", "m@9"),
        (5, "fold", "x"),
        (2, "patch", "m"),
        (2, "fold", "m", "--at-least", "0"),
    ):
        assert run(*argv)[0] == code, argv
    assert run("patch", "m", file, "-q")[:2] == (0, "m@2\n")
    code, _, err = run("patch", "m", file)
    assert code == 6
    assert "but m@2 is b3:" in err
    code, _, err = run("patches", "m@2", "--until", "m@1")
    assert code == 6


def test_no_fold_leaves_it_to_cron(run: Run, tmp_path: Path) -> None:
    with tierstore.open(tmp_path / "store") as store:
        for number in range(16):
            store.patch("m", {"bias": tierstore.Dense(TABLE[number])}, fold=False)
        digest = store.resolve("m").digest
    file = patch_file(tmp_path, digest.hex, 3)
    code, _, err = run("patch", "m", file, "--no-fold")
    assert code == 6
    assert "'tierstore fold m@17'" in err
    assert run("fold", "m", "--at-least", "16")[1].startswith("m@17: 16 patches folded")
    assert run("patch", "m", file, "--no-fold")[0] == 0
