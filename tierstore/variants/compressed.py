"""The ``config.json`` of a checkpoint with approximated weights, as vLLM and transformers read it.

Quantised linear layers are described in the ``compressed-tensors`` format: ``quantization_config``
says which modules have quantised weights, with scales beside them. Activations stay as they are.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Literal

from tierstore.errors import SourceError
from tierstore.modelstore.saving.source import BytesFile, SourceFile

_CONFIG = "config.json"
_WEIGHT = ".weight"
_DTYPES = ("dtype", "torch_dtype")
"""The newer and the older key of the dtype."""


def with_quantization(
    files: list[SourceFile], kind: Literal["int8", "fp8"], kept: set[str]
) -> list[SourceFile]:
    """Return the files with a ``config.json`` that describes the quantisation, if there is one.

    Args:
        files: Files of the variant.
        kind: Kind of the weights: signed integers or F8_E4M3, with one scale per row.
        kept: Names of the matrices that were not quantised.
    """
    return _with_config(files, lambda data: _described(data, kind, kept))


def with_dtype(files: list[SourceFile], dtype: Literal["bf16", "f16", "f32"]) -> list[SourceFile]:
    """Return the files with the new dtype of the weights in ``config.json``, if it named one."""
    names = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}

    def described(data: bytes) -> bytes:
        try:
            config = json.loads(data)
        except ValueError:
            return data
        keys = [key for key in _DTYPES if isinstance(config, dict) and key in config]
        if not keys:
            return data
        return _encoded(config | dict.fromkeys(keys, names[dtype]))

    return _with_config(files, described)


def _with_config(files: list[SourceFile], described: Callable[[bytes], bytes]) -> list[SourceFile]:
    return [
        BytesFile(_CONFIG, described(file.data))
        if file.path == _CONFIG and isinstance(file, BytesFile)
        else file
        for file in files
    ]


def _encoded(config: dict[str, Any]) -> bytes:
    return json.dumps(config, indent=2).encode() + b"\n"


def _described(data: bytes, kind: Literal["int8", "fp8"], kept: set[str]) -> bytes:
    try:
        config = json.loads(data)
    except ValueError as error:
        raise SourceError(
            f"{_CONFIG} is not JSON, so the quantisation cannot be described in it: {error}"
        ) from None
    if not isinstance(config, dict) or "quantization_config" in config:
        raise SourceError(f"{_CONFIG} describes a quantised model; derive from the original")
    weights: dict[str, Any] = {
        "num_bits": 8,
        "type": "int" if kind == "int8" else "float",
        "symmetric": True,
        "strategy": "channel",
        "dynamic": False,
    }
    ignored = {name.removesuffix(_WEIGHT) for name in kept} | {"lm_head"}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized" if kind == "int8" else "float-quantized",
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "ignore": sorted(ignored),
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": weights,
                "input_activations": None,
                "output_activations": None,
            }
        },
    }
    return _encoded(config)
