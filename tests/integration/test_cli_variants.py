"""The commands derive, variants and lineage of the real program."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import save_file

import tierstore
from tierstore.cli.kit import app
from tierstore.cli.schemas import core as common
from tierstore.cli.schemas import variants as schemas
from tierstore.cli.schemas.deltas import DiffJson

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    with tierstore.init(tmp_path / "store") as store:
        weight = np.random.default_rng(0).standard_normal((64, 64), np.float32)
        store.save("m", {"a.weight": weight, "a.bias": weight[0]}, alias="prod")
    monkeypatch.setenv("TIERSTORE_STORE", str(tmp_path / "store"))

    def go(*argv: str) -> tuple[int, str, str]:
        code = app.run(argv)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return go


def parsed(run: Run, schema: Any, *argv: str) -> Any:
    code, out, err = run(*argv, "--json")
    assert (code, err) == (0, "")
    return msgspec.json.decode(out.encode(), type=schema)


def test_derive_list_and_draw(run: Run, tmp_path: Path) -> None:
    assert "has no variants" in run("variants", "m")[1]
    made = parsed(run, schemas.Derived, "derive", "m@prod", "--cast", "bf16", "--keep", "bias")
    assert (made.ref, made.variant, made.kept) == ("m@1+bf16", "bf16", "bias")
    assert [tensor.name for tensor in made.tensors] == ["a.weight"]
    assert 0 < made.error.relative_l2 < 2**-8
    code, out, _ = run("derive", "m", "--int8", "row", "--name", "cpu")
    assert code == 0
    assert out.startswith("m@1+cpu: ")
    assert "signal to noise" in out
    entries = parsed(run, common.Log, "log", "m@+cpu").entries
    assert [(entry.action, entry.version) for entry in entries] == [("derive", 1)]
    every = parsed(run, common.History, "log").entries
    assert [(entry.ref, entry.action) for entry in every] == [
        ("m@+cpu", "derive"), ("m@+bf16", "derive"), ("m@prod", "set"), ("m", "publish"),
    ]  # fmt: skip
    assert run("log", "--limit", "2", "-q")[1] == "m@1+cpu\nm@1+bf16\n"
    listed = parsed(run, schemas.Variants, "variants", "m@prod")
    assert [one.ref for one in listed.variants] == ["m@1+bf16", "m@1+cpu"]
    assert "int8 row" in run("variants", "m")[1]
    code, out, _ = run("lineage", "m@1+cpu")
    lines = out.splitlines()
    assert lines[0].startswith("m@1  b3:")
    assert "├─ m@1+cpu" in out or "└─ m@1+cpu" in out
    (here,) = (line for line in lines if line.endswith(", the one asked for"))
    assert "m@1+cpu" in here
    for variant, name in (("cpu", "m@1+cpu"), (None, "m@1")):
        stat = parsed(run, common.Stat, "stat", name)
        assert (stat.variant, stat.aliases) == (variant, [] if variant else ["prod"])
        assert run("stat", name)[1].splitlines()[0] == f"version  {name}"
        assert parsed(run, common.Tensors, "tensors", name).variant == variant
    assert parsed(run, DiffJson, "diff", "m@1", "m@1+cpu").new.variant == "cpu"
    again = parsed(run, schemas.Derived, "derive", "m", "--int8", "row", "--name", "cpu")
    assert (again.existed, again.stored_bytes, made.existed) == (True, 0, False)
    assert "nothing stored" in run("derive", "m", "--int8", "row", "--name", "cpu")[1]
    assert len(parsed(run, common.Log, "log", "m@+cpu").entries) == 1
    tree = parsed(run, schemas.LineageTree, "lineage", "m")
    assert tree.roots[0].asked
    save_file({"w": np.ones(3, np.float32)}, tmp_path / "pupil.safetensors")
    pupil = str(tmp_path / "pupil.safetensors")
    assert run("save", "pupil", pupil, "--distilled-from", "m@prod", "-q")[0] == 0
    assert "pupil@1" in run("lineage", "m")[1]
    assert "distilled-from" in run("lineage", "pupil")[1]
    assert run("save", "pupil", pupil, "--distilled-from", "m@7")[0] == 5
    assert run("load", "m@1+cpu", "--to", str(tmp_path / "out"), "-q")[0] == 0
    assert (tmp_path / "out" / "tierstore-variant.json").is_file()
    for profile, variant in (("tpu,cpu,full", "cpu"), ("tpu,full", None)):
        to = str(tmp_path / f"for-{variant}")
        loaded = parsed(run, common.Load, "load", "m@prod", "--to", to, "--profile", profile)
        assert (loaded.version, loaded.variant) == (1, variant)
    assert run("load", "m", "--to", str(tmp_path / "x"), "--profile", "tpu")[0] == 5


@pytest.mark.parametrize(
    ("argv", "code", "text"),
    [
        (["derive", "m"], 2, "exactly one"),
        (["derive", "m", "--cast", "bf16", "--fp8", "e4m3"], 2, "exactly one"),
        (["derive", "m", "--cast", "bf15"], 2, "is not a method"),
        (["derive", "m@9", "--cast", "bf16"], 5, "m@9 does not exist"),
        (["derive", "m", "--fp8", "e4m3", "--max-error", "0.0001"], 1, "nothing was published"),
        (["derive", "m", "--cast", "bf16", "--name", "Full"], 2, "not allowed"),
        (["load", "m@1+bf16", "--to", "x"], 5, "no variant 'bf16'"),
        (["lineage", "none"], 5, "no model"),
    ],
)  # fmt: skip
def test_mistakes(run: Run, argv: list[str], code: int, text: str) -> None:
    found, out, err = run(*argv)
    assert (found, out) == (code, "")
    assert text in err
    assert parsed(run, schemas.Variants, "variants", "m").variants == []
