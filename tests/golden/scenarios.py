"""The command lines whose ``--json`` output is recorded in ``commands/``.

A scenario begins in an empty directory with the files that it names, and runs its command lines in
order; ``store`` is the store where none is named. The weights are random bits wherever stored
sizes are recorded, as these are stored raw by every encoder and every version of zstd.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

import tierstore
from tests.golden.content import Tensor, bf16, file_of, stream, weights
from tierstore import Dense, Elements, Rows

Step = str | Callable[[Path], None]
"""A command line, or a change of the directory that it is given."""


@dataclass(frozen=True)
class Scenario:
    """Command lines that belong together.

    Attributes:
        steps: what is run, in order, without ``--json``.
        files: what lies in the directory before, by path.
        compressed: fields of which the values depend on the encoder, and so are not recorded.
    """

    steps: tuple[Step, ...]
    files: Mapping[str, bytes]
    compressed: Collection[str] = ()


def ranker(seed: str) -> dict[str, bytes]:
    """A model of 1.2 MB: ``emb.weight`` is the same whatever the seed, the layer is not."""
    tensors = {
        "emb.weight": Tensor("F32", (300, 1000), stream("emb", 1_200_000)),
        "layer.weight": Tensor("BF16", (64, 64), stream(f"layer {seed}", 8192)),
        "layer.bias": Tensor("I8", (77,), stream(f"bias {seed}", 77)),
    }
    return {
        f"{seed}/model.safetensors": file_of(tensors, {"format": "pt"}),
        f"{seed}/config.json": b'{"layers": 1}',
    }


def small(seed: str) -> dict[str, bytes]:
    """A model in one file that takes one small chunk."""
    tensors = {"w": Tensor("F32", (30, 10), stream(seed, 1200))}
    return {f"{seed}.safetensors": file_of(tensors, None)}


def smooth(name: str, values: npt.NDArray[np.float32]) -> dict[str, bytes]:
    """A model of weights as trained ones are, in float32 and bfloat16."""
    count = len(values)
    tensors = {
        "a.weight": Tensor("F32", (count // 100, 100), values.tobytes()),
        "b.weight": Tensor("BF16", (count // 100, 100), bf16(values)),
    }
    return {f"{name}.safetensors": file_of(tensors, None)}


def lines(text: str) -> tuple[str, ...]:
    """One command line each, empty ones left out."""
    return tuple(" ".join(line.split()) for line in text.splitlines() if line.strip())


def aged(*tiers: str) -> Callable[[Path], None]:
    """Make everything in these directories 100 days old."""

    def age(folder: Path) -> None:
        old = time.time() - 100 * 86_400
        for path in (path for tier in tiers for path in (folder / tier).rglob("*")):
            os.utime(path, (old, old))

    return age


def allow_removal(folder: Path) -> None:
    """Allow that versions of the store are removed, at once."""
    with tierstore.open(folder / "store") as store:
        store.reclaim.enable(wait_s=0)


def seen_once(folder: Path) -> None:
    """Let the store know a node that runs no agent any more."""
    heat = folder / "store" / "heat"
    heat.mkdir(exist_ok=True)
    (heat / "retired").write_bytes(b"")


def lose(*parts: str) -> Callable[[Path], None]:
    """Lose all that lies in these directories of the store."""

    def delete(folder: Path) -> None:
        for part in parts:
            shutil.rmtree(folder / "store" / part)

    return delete


def lose_newest_pack(folder: Path) -> None:
    """Lose the pack that was written last."""
    packs = [path for path in (folder / "store" / "packs").rglob("*") if path.is_file()]
    max(packs, key=lambda path: path.stat().st_mtime_ns).unlink()


def damage(folder: Path) -> None:
    """Change one byte in the middle of the largest pack, and lose the other one."""
    packs = [path for path in (folder / "store" / "packs").rglob("*") if path.is_file()]
    lost, large = sorted(packs, key=lambda path: path.stat().st_size)
    data = bytearray(large.read_bytes())
    data[len(data) // 2] ^= 1
    large.chmod(0o600)
    large.write_bytes(data)
    lost.unlink()


COMPRESSED = frozenset({
    "bytes_fetched", "codec_saved_bytes", "cost_before", "delta_saved_bytes", "delta_stored_bytes",
    "overhead_bytes", "pack_bytes", "ratio", "stored_bytes", "used_bytes",
})  # fmt: skip
"""What the sizes of compressed chunks enter into."""
WEIGHTS = weights("smooth", 60_000)

STORES: tuple[Step, ...] = (
    *lines("""
    init --chunk-size 1MiB
    init
    init other --chunk-size 3MiB
    init other --hot cache --hot-size 64MiB --warm warm --warm-size 2TB \
            --cold cold --cold-size 3GiB --price cold.gb_month=0.0125 --option warm.ttl_s=1000
    tier ls --store other
    init third --warm-size 1GB
    init third --redis http://host
    init third --warm memory://x
    init third --warm other/warm
    init third --cold s3://bucket/prefix?secret_key=sesame
    ls
    log
    du
    check
    save ranker one --alias prod -m first
    save ranker two
    du
    du ranker
    du nobody
    check
    check --read-data
    check --subset 100%
    check --max-time 0
    check --subset 0%
    version
    doctor
    doctor --store other
    doctor --store missing
    ls --store missing
    nonsense
    save
    """),
    damage,
    *lines("""
        check
        check --read-data
        load ranker@1 --to out
        load ranker@2 --to out
    """),
)

MODELS = lines("""
    init --chunk-size 1MiB
    save ranker one --alias prod -m first
    save ranker two --alias prod --exclude *.json -m second
    save ranker one --base none --distilled-from ranker@2 -m again
    save org/other one/model.safetensors
    save ranker nowhere
    save bad@name one
    save ranker one --base nobody@1
    save ranker one --alias 7
    ls
    ls ranker
    ls nobody
    stat ranker@prod
    stat ranker
    stat ranker@9
    stat ranker@b3:00000000
    stat ranker@@
    tensors ranker@1
    tensors ranker --filter layer.* --filter emb*
    tensors ranker --filter none*
    diff ranker@1 ranker@prod
    diff ranker@1 ranker@3
    diff ranker@1 org/other
    load ranker@prod --to out
    load ranker@1 --to some --tensors layer.*
    load ranker@1 --to some --tensors none*
    load ranker@1 --to full --profile full
    lineage ranker@3
    log ranker
    check --read-data
""")

DELTAS = lines("""
    init --chunk-size 1MiB
    save d one.safetensors
    save d two.safetensors --base d@1
    save d three.safetensors
    save d three.safetensors --base none
    save plain two.safetensors --base none
    stat d@2
    tensors d@2
    diff d@1 d@2
    du d
    load d@2 --to out
    rebase d@2 --above 1
    rebase d@2
    rebase d --above 0.1
    rebase nobody
    check --read-data
""")

ALIASES = lines("""
    init
    save m a.safetensors --alias prod -m first
    save m b.safetensors --alias prod -m second
    alias set m stable m@1 -m "holds for now"
    alias set m stable m@9
    alias set m 7 m@1
    alias set nobody x m@1
    alias ls m
    alias ls nobody
    rollback m prod -m "p99 rose"
    rollback m prod
    rollback m nothing
    alias rm m stable -m "not needed"
    alias rm m stable
    alias ls m
    alias
    log
    log --limit 2
    log m
    log m@prod
    log m@stable
    log m@1
    log nobody
""")

ROLLOUTS = lines("""
    init
    save m a.safetensors --alias prod
    save m b.safetensors
    save m c.safetensors
    rollout status
    rollout start m --to 2 --stages 0.5,25,100 --gate p99_ms<=12.5 --label region=eu -m nightly
    rollout start m --to 3
    rollout step m@prod
    report m@2 p99_ms=3 auc=0.75
    report m@2 p99_ms=4 --node b-node
    report m@2 p99_ms=fast
    report m@2 p99_ms
    rollout status
    rollout status m
    rollout step m
    rollout pause m -m wait
    rollout step m --force
    rollout resume m
    rollout step m --force
    rollout step m --force
    rollout step m
    rollout start m@prod --to m@3 --every 30m --window 22:00-06:00 --gate auc>=0.5
    rollout step m
    rollout abort m -m "worse than thought"
    rollout abort m
    rollout status m
    rollout start m --to 9
    rollout start m@none --to 2
    rollout start m --to 2
    rollout start m --to 1 --stages 5,1
    rollout start m --to 1 --every soon
    rollout start m --to 1 --gate p99
    rollout start m --to 1 --label eu
    rollout start m --to 1 --window 2-6
    rollout start m@2 --to 1
    log m@prod
""")

COPYING = lines("""
    init
    init backup
    save ranker a.safetensors --alias prod -m "nightly"
    save ranker b.safetensors
    cp ranker prod backup
    cp ranker@prod backup
    cp ranker backup --as other
    cp ranker@7 backup
    cp ranker nowhere
    sync store backup --dry-run --aliases
    sync store backup --aliases
    sync store backup --models none
    sync store backup --versions first
    sync store backup --delete
    sync store store
    ls --store backup
""")

RELEASES = lines("""
    init
    save ranker a.safetensors
    save ranker b.safetensors
    save retrieval a.safetensors
    release ls
    release create search ranker@1 retrieval@1 --alias prod -m "the first"
    release create search ranker@2 --from search@prod
    release show search@2
    release show search@prod
    release ls
    release ls search
    ls
    stat ranker@release:search
    rollout start search --to 2 --stages 100
    rollout step search --force
    load ranker@release:search --to out
    rollback search prod -m "ctr fell"
    log search
    log search@prod
    release create s
    release create s ranker@7
    release create ranker retrieval
    release create s ranker@1 ranker@2
    release show ranker
    release ls none
    load ranker@release:none --to out
    pin search@1
    warmup search@1 --tier warm
    check
""")

PATCHES = lines("""
    patches m@1 --to files --store source
    init --chunk-size 1MiB
    save m one/model.safetensors --alias prod
    patch m@prod files/000000002.safetensors --alias prod -m why
    patch m@2 files/000000003.safetensors --no-fold
    patch m@1 files/000000003.safetensors
    patch m nowhere
    patch m one/model.safetensors
    patch m@9 files/000000002.safetensors
    stat m
    tensors m
    patches m@1
    patches m@1 --until m@2
    patches m@3
    patches m@9
    diff m@1 m@3
    du
    lineage m@2
    log m
    fold m --at-least 3
    fold m
    fold m
    stat m
    load m@2 --to out
    fold nobody
    check --read-data
""")

VARIANTS = lines("""
    init
    save m smooth.safetensors --alias prod
    variants m
    derive m@prod --cast bf16 --keep ^b
    derive m --int8 row --name cpu -m "for CPUs"
    derive m --int8 channel
    derive m --fp8 e4m3
    derive m --prune 2:4
    derive m --prune magnitude:0.5 --name half
    variants m@prod
    lineage m@1+cpu
    stat m@1+bf16
    tensors m@1+bf16
    tensors m@1+half
    load m@1+cpu --to out
    load m@prod --to out2 --profile tpu,bf16,full
    load m --to out3 --profile tpu
    save pupil a.safetensors --distilled-from m@prod
    save pupil a.safetensors --distilled-from m@7
    lineage pupil
    lineage m
    log m@+cpu
    log --limit 3
    derive m
    derive m --cast bf16 --fp8 e4m3
    derive m --cast bf15
    derive m@9 --cast bf16
    derive m --fp8 e4m3 --max-error 0.0001
    derive m --cast bf16 --name Full
    load m@1+none --to out
    variants nobody
    lineage nobody
""")

TIERS = lines("""
    init --warm warm --cold cold
    save m one
    tier ls
    tier add cache h --role hot --size 5GB -m nvme
    tier add more w --size 1GiB --high 80 --low 70 --timeout 500ms \
        --option ttl_s=60 --price list=s3-standard
    tier add warm w2
    tier add w2 warm
    tier add w2 store
    tier add W2 w2
    tier add w2 w2 --role tepid
    tier add r redis://:sesame@h:1
    tier add r redis://h --size 1GB
    tier add w2 s3://b/p --option secret_key=sesame
    tier add w2 w2 --option sesame
    tier add w2 w2 --high 50
    tier add w2 w2 --timeout soon
    tier add h2 h2 --role hot --size 1GB
    tier add c ftps://h/p
    tier ls
    tier ls cache
    tier ls cahce
    tier set cache --size 6GB --high 80 --low 70 --timeout 2s --price gb_month=0.1
    tier set cache --price gb_month= --price min_days=30
    tier set cache
    tier set cahce --high 90
    tier set cache --url s3://b/p
    tier set warm --size 1KB
    tier set warm --size 1KB --force
    tier set warm --size none
    tier set warm --url elsewhere
    df
    tier rm warm
    tier drain warm --dry-run
    tier drain warm --undo --dry-run
    tier drain warm -m "worn out"
    tier drain warm --undo
    tier drain warm --budget 1GB --share 0.5
    df
    tier rm warm -m "worn out"
    tier rm more --force
    tier drain more
    tier rm more
    tier rm nobody
    tier ls
    df
    doctor
    tier example
    store validate fresh
    store validate store
    store validate memory://x
    store validate fresh --as cold --option ttl_s=60
    store validate fresh --option nonsense=1
    store validate ftps://h/p
    load m --to out
    check --read-data
""")

PLACING: tuple[Step, ...] = (
    *lines("""
        init --chunk-size 1MiB --hot hot --hot-size 64MiB --warm warm --cold cold \
            --price warm.gb_month=300 --price cold.gb_month=20 --price cold.put_1000=5
        save m one --base none
        save m two --base none
        save m three --base none
        explain m@2
        top
        rebalance --dry-run
        mv m@1 --to cold --dry-run
        mv m@1 --to cold --budget 50MB --share 0.9
        mv "<pack 1>" --to warm
        mv m@1 --to ice
        mv m@9 --to cold
        mv m --to cold --budget fast
        restore m@1
        restore m@1 --check
        restore m@1 --speed fast
        restore m@9 --days 3
        pin m@3 --tier warm
        mv m@3 --to cold
    """),
    aged("warm", "cold"),
    *lines("""
        explain m@1
        explain m@3
        rebalance --dry-run
        rebalance
        rebalance
        load m@1 --to out
        explain "<pack 1>"
        explain m@9
        explain 0123456789
        top --count 2
        df
        unpin m@3
        save n a.safetensors
        rebalance --dry-run
        agent --every 1h --follow n
        warmup n --check
        agent --every soon
        agent --log xml
        agent --rewrite much
        agent --growth -1
        agent --follow m@@
        check --read-data
    """),
)

WARMING = lines("""
    init --chunk-size 1MiB --hot hot --hot-size 64MiB --warm warm --cold cold
    save m one
    save m two
    evict --all
    warmup m@1 --check
    warmup m@1
    warmup m@1 --check
    warmup m@2
    warmup m@2 --tier hot --wait --timeout 2s
    load m@1 --to out
    pin m@1 --until 2131-05-01
    pin m@2 --tier warm --until 7d
    pin m@1 --tier cold
    pin m@1 --until 2001-01-01
    pin m@1 --until tomorrow
    pin m@9
    pins
    df
    evict --all
    evict m@1
    evict
    evict m@1 --all
    evict m@9
    evict m@1 --tier warm
    unpin m@1
    unpin m@1
    evict m@1
    warmup m@1 --tier warm --check
    mv m@1 --to cold
    warmup m@1 --tier warm --check
    warmup m@1 --tier warm
    warmup m@1 --tier nowhere
    warmup nobody
    unpin m@2
    mv m@1 --to cold
    warmup m@1 --tier warm --check
    warmup m@1 --tier warm
    pins
    top
    init small --hot small-hot --hot-size 1MiB
    save m one --store small
    warmup m --store small
""")


def patch_source(folder: Path) -> None:
    """Make a store that has two patches of the model, for their files."""
    with tierstore.init(folder / "source", chunk_size=1 << 20) as store:
        store.save("m", folder / "one" / "model.safetensors")
        values = np.frombuffer(stream("rows", 12_000), "<f4").reshape(3, 1000)
        bias = np.frombuffer(stream("patched bias", 77), np.int8)
        store.patch("m@1", {"emb.weight": Rows([7, 1, 299], values), "layer.bias": Dense(bias)})
        store.patch("m@2", {"layer.bias": Elements([76, 0], bias[:2])})


REMOVAL: tuple[Step, ...] = (
    *lines("""
    init
    save m a.safetensors --alias prod -m first
    save m b.safetensors -m second
    save m a.safetensors -m v1
    save m b.safetensors --alias prod -m fourth
    save n a.safetensors
    rm m@2
    forget m --keep-last 1
    forget m --keep-last 1 --dry-run
    undelete m@2
    ls --deleted
    """),
    allow_removal,
    *lines("""
    rm m@4
    rm m@4 --force
    rm m@2 m@9
    rm m@2 -m "a mistake"
    load m@2 --to out
    ls m
    ls --deleted
    ls --deleted m
    ls --deleted nobody
    log m --limit 2
    log --limit 2
    undelete m@2 -m "it was none"
    undelete m@2
    undelete m@9
    forget m --keep-last 1 --keep-tag v* --dry-run
    forget m n --keep-last 1
    forget m n --keep-last 1 --yes
    forget m
    forget m --keep-within soon
    forget nobody --keep-last 1
    retention set n --keep-last 1
    retention apply n
    retention apply n --yes --dry-run
    retention apply m
    retention rm n
    rm n --all
    rm n@1 --all
    rm m --all
    ls
    load n --to out
    retention ls
    retention set --window 1d --keep-last 10 --keep-within 30d -m "for all"
    retention set m --window 0 --keep-tag v* --keep-monthly 3 --alias-history 14d
    retention set m
    retention set nobody --keep-last 1
    retention ls
    ls --deleted
    retention rm m
    retention rm
    """),
)

PURGING: tuple[Step, ...] = (
    *lines("""
    init
    save m a.safetensors -m first
    save m b.safetensors -m second --base none
    save n b.safetensors -m "for customer 7"
    rm n@1 --purge --yes --force
    """),
    allow_removal,
    *lines("""
    rm m@1 --purge --dry-run
    rm n@1 --purge --dry-run
    rm m@1 --dry-run
    rm m@1 --purge
    rm m@2 --purge --yes
    rm m@1 --purge --yes -m "request 7"
    rm m@1 --purge --yes
    purge ls
    purge show nothing
    purge show m@1
    purge show m@2
    purge run
    purge gone another --reason "its disk was shredded"
    """),
    seen_once,
    *lines("""
    purge show m@1
    purge gone retired
    purge gone retired --reason "its disk was shredded"
    purge show m@1
    ls --deleted
    undelete m@1
    rm n --all --purge --yes
    rm n@1 --all --purge --yes
    rm m --all --purge --yes
    ls
    """),
)

COLLECTING = lines("""
    init
    save m a.safetensors -m first
    save m b.safetensors -m second --base none
    save m a.safetensors -m third
    gc
    gc --dry-run
    gc --enable
    gc --enable --dry-run
    gc --enable --yes --wait 0
    gc --enable --yes --wait 0
    gc
    rm m@2
    gc
    gc --window 0 --dry-run
    gc --window 0 --max-bytes 1
    gc --window 0
    gc --grace 0 --window 0 --max-time 30m
    gc --grace soon
    gc --explain
    df
    du
    du m
    undelete m@2
""")


def in_cold_too(folder: Path) -> None:
    """Copy every pack from warm to cold."""
    shutil.copytree(folder / "warm" / "packs", folder / "cold" / "packs", dirs_exist_ok=True)


def damaged(*tiers: str) -> Callable[[Path], None]:
    """Turn over a bit in the first frame of every pack of these tiers."""

    def damage(folder: Path) -> None:
        for path in (path for tier in tiers for path in (folder / tier / "packs").rglob("*")):
            if path.is_file():
                data = bytearray(path.read_bytes())
                data[5000] ^= 1
                path.chmod(0o600)
                path.write_bytes(data)

    return damage


def without_config(folder: Path) -> None:
    """Delete the config of the store."""
    (folder / "store" / "config.json").unlink()


REPAIR: tuple[Step, ...] = (
    *lines("""
    init --warm warm --cold cold
    save m one
    """),
    in_cold_too,
    *lines("""
    repair
    """),
    damaged("warm"),
    *lines("""
    repair --dry-run
    repair m@1
    repair m
    repair nobody
    """),
    damaged("warm", "cold"),
    *lines("""
    repair --dry-run
    repair
    save m one
    check --read-data
    repair
    repair --home
    repair --store-id 00
    """),
    without_config,
    *lines("""
    repair
    repair --home --dry-run
    repair --home --store-id mine
    repair --home
    """),
)

LOSSES: tuple[Step, ...] = (
    *lines("""
    init
    index rebuild
    layout rebuild --all
    save m a.safetensors -m first
    save m b.safetensors -m second --base none
    index rebuild
    layout rebuild
    layout rebuild m@1 --all
    layout rebuild m@9
    layout rebuild m@1 m@2
    """),
    lose("index", "layouts"),
    *lines("""
    check
    layout rebuild m@1
    layout rebuild --all
    layout rebuild --all
    index rebuild --from packs
    index rebuild --from nowhere
    """),
    lose("layouts"),
    lose_newest_pack,
    *lines("""
    layout rebuild --all
    index rebuild
    """),
)

SCENARIOS = {
    "stores": Scenario(STORES, ranker("one") | ranker("two")),
    "models": Scenario(MODELS, ranker("one") | ranker("two")),
    "deltas": Scenario(
        DELTAS,
        smooth("one", WEIGHTS)
        | smooth("two", WEIGHTS * np.float32(1 + 2**-12))
        | smooth("three", WEIGHTS * np.float32(1 + 2**-11)),
        compressed=COMPRESSED,
    ),
    "aliases": Scenario(ALIASES, small("a") | small("b")),
    "rollouts": Scenario(ROLLOUTS, small("a") | small("b") | small("c")),
    "removal": Scenario(REMOVAL, small("a") | small("b")),
    "purging": Scenario(
        PURGING,
        small("a") | small("b"),
        compressed=COMPRESSED | {"bytes", "deleted_bytes", "left_bytes", "rewritten_bytes"},
    ),
    "collecting": Scenario(
        COLLECTING,
        small("a") | small("b"),
        compressed=COMPRESSED | {"bytes", "deleted_bytes", "freed_bytes"},
    ),
    "losses": Scenario(LOSSES, small("a") | small("b"), compressed=COMPRESSED),
    "copying": Scenario(COPYING, small("a") | small("b"), compressed=COMPRESSED | {"sent_bytes"}),
    "releases": Scenario(RELEASES, small("a") | small("b")),
    "patches": Scenario((patch_source, *PATCHES), ranker("one")),
    "variants": Scenario(
        VARIANTS,
        smooth("smooth", WEIGHTS[:6400]) | small("a"),
        # a variant has a file of its errors, written with all digits that they have here
        compressed=COMPRESSED | {"logical_bytes"},
    ),
    "tiers": Scenario(TIERS, ranker("one") | {"fresh/file": b""}),
    "placing": Scenario(PLACING, ranker("one") | ranker("two") | ranker("three") | small("a")),
    "repair": Scenario(REPAIR, ranker("one")),
    "warming": Scenario(WARMING, ranker("one") | ranker("two")),
}
"""What runs with the core dependencies alone."""

HUB = lines("""
    init
    save m a.safetensors --alias prod
    serve hub --port 0
    serve hub --port 0 --tokens tokens.toml --spool spool
    serve hub --port 0 --tokens nowhere.toml
    serve hub --port 0 --key key.pem
    serve hub --port 0 --store missing
""")

TOKENS = b"""[[token]]
name = "ci"
sha256 = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"
write = ["m"]
"""

WITH_EXTRAS = {
    "hub": Scenario(HUB, small("a") | {"tokens.toml": TOKENS}),
    "metrics": Scenario(("init", "agent --metrics here"), {}),
    "demo": Scenario(("demo",), {}, compressed=COMPRESSED | {"codecs"}),
}
"""What needs optional packages: ``tierstore[hub,metrics,demo]``."""
