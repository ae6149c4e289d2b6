"""``config.json`` of a checkpoint with quantised linear layers, as vLLM and transformers read it.

The names are those of the ``compressed-tensors`` format: its ``quantization_config`` says which
modules have quantised weights, and scales beside them. Activations stay as they are.
"""

from __future__ import annotations

import json
from typing import Any, Literal

from tierstore.errors import SourceError
from tierstore.modelstore.source import BytesFile, SourceFile

_CONFIG = "config.json"
_WEIGHT = ".weight"


def with_quantization(
    files: list[SourceFile], kind: Literal["int8", "fp8"], kept: set[str]
) -> list[SourceFile]:
    """The files with a ``config.json`` that says what was quantised; without one, the same files.

    Args:
        files: of the variant.
        kind: of the weights: signed integers or F8_E4M3, one scale a row.
        kept: names of the matrices that were not quantised.
    """
    return [
        BytesFile(_CONFIG, _described(file.data, kind, kept))
        if file.path == _CONFIG and isinstance(file, BytesFile)
        else file
        for file in files
    ]


def _described(data: bytes, kind: Literal["int8", "fp8"], kept: set[str]) -> bytes:
    try:
        config = json.loads(data)
    except ValueError as error:
        raise SourceError(
            f"{_CONFIG} is no JSON, it cannot say what is quantised: {error}"
        ) from None
    if not isinstance(config, dict) or "quantization_config" in config:
        raise SourceError(f"{_CONFIG} describes a quantised model; derive from the original")
    weights: dict[str, Any] = {
        "num_bits": 8, "type": "int" if kind == "int8" else "float", "symmetric": True,
        "strategy": "channel", "dynamic": False,
    }  # fmt: skip
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
    return json.dumps(config, indent=2).encode() + b"\n"
