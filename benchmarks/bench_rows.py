"""Rows that move and families of fine-tunes: bytes that a new version takes, against real peers.

The vocabulary of all-MiniLM-L6-v2 is edited (its word embedding is half of the model) and the whole
model is published again; each peer has the base already:

* 64 rows appended; one row inserted; one deleted; rows inserted in five places; the same tensors
  over three files. New rows are means of two old ones.

``hf_xet`` is the real package, in its own environment, with a local store: content-defined chunks.
Its bytes are those of the new xorbs and shards; ours are those of every new object of the store.

Then ten fine-tunes of one base (``finetune.py``), each published under a name of its own: bytes in
all, base included, of ours, ours with ``base=None``, hf_xet, restic (its defaults), zipnn on every
file alone, and zipnn's own delta of every file against the base.

Run: ``python -m benchmarks.bench_rows [--only rows|family] [--dtypes f32 bf16]``
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

import tierstore
from benchmarks.bench_codec import LARGEST, ZipNN
from benchmarks.common import HERE, run_child, show, target, write_results
from benchmarks.data import WORDS, Array, bench_dir, dataset, write_file
from benchmarks.finetune import tuned
from tierstore.format.dtypes import name_of

XET_PYTHON = HERE / ".envs" / "xet" / "bin" / "python"
AT_MOST = 1.1
MEMBERS = range(10)
CODECS = {"f32": "F32", "bf16": "BF16"}

Edit = Callable[[Array], Array]


def means(rows: Array, count: int) -> Array:
    """New rows as vocabularies get them: each the mean of two old ones."""
    picked = np.random.default_rng(1).integers(0, len(rows), (2, count))
    both = rows[picked].astype(np.float32)
    return both.mean(0).astype(rows.dtype)


def inserted(rows: Array, places: list[int]) -> Array:
    new = means(rows, len(places))
    parts = np.split(rows, places)
    between = [part for at, part in enumerate(parts[:-1]) for part in (part, new[at : at + 1])]
    return np.concatenate([*between, parts[-1]])


EDITS: dict[str, Edit] = {
    "64 rows appended": lambda rows: np.concatenate([rows, means(rows, 64)]),
    "one row inserted": lambda rows: inserted(rows, [7_000]),
    "one row deleted": lambda rows: np.delete(rows, 7_000, 0),
    "rows inserted in five places": lambda rows: inserted(
        rows, [100, 6_000, 12_345, 20_000, 30_000]
    ),
}


def tensors_of(path: Path) -> dict[str, Array]:
    with safe_open(path, "np") as model:
        return {name: model.get_tensor(name) for name in model.keys()}  # noqa: SIM118


def write(path: Path, tensors: dict[str, Array]) -> None:
    described = [(name, name_of(a.dtype), a.shape) for name, a in tensors.items()]
    write_file(path, described, lambda name: [tensors[name]])


def resharded(folder: Path, tensors: dict[str, Array]) -> list[Path]:
    """The same tensors in three files of about the same size, in the same order."""
    total = sum(array.nbytes for array in tensors.values())
    shards: list[dict[str, Array]] = [{}, {}, {}]
    done = 0
    for name, array in tensors.items():
        shards[min(2, 3 * done // total)][name] = array
        done += array.nbytes
    paths = [folder / f"model-{n}-of-3.safetensors" for n in (1, 2, 3)]
    for path, shard in zip(paths, shards, strict=True):
        write(path, shard)
    return paths


def versions(dtype: str, folder: Path) -> dict[str, list[Path]]:
    """The files of every edited version."""
    base = tensors_of(dataset(f"minilm-{dtype}"))
    made: dict[str, list[Path]] = {}
    for name, edit in EDITS.items():
        path = folder / name.replace(" ", "-") / "model.safetensors"
        path.parent.mkdir()
        write(path, {**base, WORDS: edit(base[WORDS])})
        made[name] = [path]
    (folder / "shards").mkdir()
    made["three files"] = resharded(folder / "shards", base)
    return made


def size_of(root: Path) -> int:
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


def ours(root: Path, base: Path, others: dict[str, list[Path]], **options: Any) -> dict[str, int]:
    """Bytes that each publish adds to a store, which has nothing but the base before it."""
    found = {}
    for name, files in others.items():
        shutil.rmtree(root, ignore_errors=True)
        with tierstore.init(root) as store:
            store.save("minilm", base)
            before = size_of(root)
            source = files[0].parent if len(files) > 1 else files[0]
            store.save("minilm", source, **options)
            found[name] = size_of(root) - before
            check(store.load("minilm"), files)
    return found


def check(model: tierstore.Model, files: Iterable[Path]) -> None:
    """What was stored is what was saved."""
    for path in files:
        with safe_open(path, "np") as saved:
            for name in saved.keys():  # noqa: SIM118
                assert model[name].tobytes() == saved.get_tensor(name).tobytes(), name


def xet(root: Path, groups: list[list[Path]]) -> list[dict[str, int]]:
    """What each commit adds, one after the other."""
    root.mkdir()
    argv = [json.dumps([str(path) for path in group]) for group in groups]
    env = {"HF_XET_CACHE": str(root / "cache"), "HF_HUB_OFFLINE": "1"}
    _, out = run_child([str(XET_PYTHON), str(HERE / "xet_worker.py"), str(root), *argv], env)
    return [json.loads(line) for line in out.splitlines()]


def rows(dtype: str, work: Path) -> dict[str, Any]:
    base = dataset(f"minilm-{dtype}")
    edited = work / f"edited-{dtype}"
    edited.mkdir()
    others = versions(dtype, edited)
    mine = ours(work / "store", base, others)
    theirs = {
        name: xet(work / f"xet-{dtype}-{number}", [[base], files])[1]
        for number, (name, files) in enumerate(others.items())
    }
    results = {
        name: {
            "ours": mine[name],
            "hf_xet": theirs[name]["stored"],
            "hf_xet_xorbs": theirs[name]["xorb_bytes"],
            "of_hf_xet": mine[name] / theirs[name]["stored"],
        }
        for name in others
    }
    show(
        f"{dtype}: bytes that the version takes, of {base.stat().st_size / 1e6:.0f} MB",
        ("edit", "ours", "hf_xet", "of that xorbs", "ours / hf_xet"),
        [
            (name, row["ours"], row["hf_xet"], row["hf_xet_xorbs"],
             target(row["of_hf_xet"], "<=", AT_MOST))
            for name, row in results.items()
        ],
    )  # fmt: skip
    return results


def restic(root: Path, files: list[Path]) -> int:
    env = {**os.environ, "RESTIC_PASSWORD": "bench", "RESTIC_CACHE_DIR": str(root / "cache")}
    repo = root / "repo"
    for command in (["init"], *(["backup", str(path)] for path in files)):
        argv = ["restic", "-r", str(repo), "-q", *command]
        subprocess.run(argv, env=env, check=True, stdout=subprocess.DEVNULL)
    return size_of(repo)


def zipnn(files: list[Path], dtype: str, base: Path | None) -> int:
    worker = ZipNN(LARGEST)
    total = 0
    for path in files:
        size = path.stat().st_size
        part = (path, 0, size, CODECS[dtype])
        if base is None:
            worker.load(part)
        else:
            assert base.stat().st_size == size
            worker.load_against(part, (base, 0, size, CODECS[dtype]))
        total += worker.encode()[1]
        worker.decode()  # compares
    return total


def family_in_store(root: Path, files: list[Path], base: str | None) -> int:
    shutil.rmtree(root, ignore_errors=True)
    with tierstore.init(root) as store:
        store.save("minilm", files[0], base=base)
        for number, path in enumerate(files[1:]):
            store.save(f"tuned-{number}", path, base=base)
            check(store.load(f"tuned-{number}"), [path])
    return size_of(root)


def family(dtype: str, work: Path) -> dict[str, int]:
    base = dataset(f"minilm-{dtype}")
    files = [base, *(tuned(f"family-{k}", dtype) for k in MEMBERS)]
    work = work / f"family-{dtype}"
    work.mkdir()
    stored = {
        "plain files": sum(path.stat().st_size for path in files),
        "ours": family_in_store(work / "store", files, "auto"),
        "ours, base=None": family_in_store(work / "store", files, None),
        "hf_xet": sum(one["stored"] for one in xet(work / "xet", [[path] for path in files])),
        "restic": restic(work / "restic", files),
        "zipnn per file": zipnn(files, dtype, None),
        "zipnn delta per file": zipnn(files[:1], dtype, None) + zipnn(files[1:], dtype, base),
    }
    show(
        f"{dtype}: one base and {len(MEMBERS)} fine-tunes",
        ("contestant", "MB", "of plain", "times ours"),
        [
            (name, size / 1e6, size / stored["plain files"], size / stored["ours"])
            for name, size in stored.items()
        ],
    )
    return stored


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("rows", "family"))
    parser.add_argument("--dtypes", nargs="+", choices=tuple(CODECS), default=list(CODECS))
    args = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=bench_dir()) as folder:
        work = Path(folder)
        os.environ["TIERSTORE_CACHE_DIR"] = str(work / "cache")
        for dtype in args.dtypes:
            if args.only != "family":
                results[f"rows-{dtype}"] = rows(dtype, work)
            if args.only != "rows":
                results[f"family-{dtype}"] = family(dtype, work)
    write_results("rows", results)


if __name__ == "__main__":
    main()
