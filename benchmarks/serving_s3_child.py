"""One start of a serving process from S3; prints one line of JSON. Started by ``bench_serving_s3``.

``ours STORE MODEL FILE``: ``tierstore.torch.load_model``.
``hub URL MODEL FILE``: huggingface_hub's own download to a file, then ``safetensors``.
``runai URL MODEL FILE``: runai-model-streamer, whose environment ``RUNAI_PACKAGES`` names; it comes
behind this one, so that torch and all else are the same.

FILE is the local original: the module is made from its header. Seconds run from before the first
request to the first answer, imports done and the module made.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.load_child import peak_rss
from benchmarks.serving_child import by_library, first_inference, ours


def hub(url: str, model: str, file: str) -> dict[str, Any]:
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()

    def load(module: nn.Module) -> object:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.safetensors"
            with path.open("wb") as out:
                http_get(url, out, expected_size=Path(file).stat().st_size)
            return by_library(str(path))(module)

    return first_inference(model, file, load)


def runai(url: str, model: str, file: str) -> dict[str, Any]:
    sys.path.append(os.environ["RUNAI_PACKAGES"])
    from runai_model_streamer import SafetensorsStreamer

    def load(module: nn.Module) -> object:
        with SafetensorsStreamer() as streamer:
            streamer.stream_file(url)
            weights = dict(streamer.get_tensors())
            return module.load_state_dict(weights, strict=False, assign=True)

    return first_inference(model, file, load)


COMMANDS: dict[str, Callable[[str, str, str], dict[str, Any]]] = {
    "ours": ours, "hub": hub, "runai": runai,
}  # fmt: skip

if __name__ == "__main__":
    answer = COMMANDS[sys.argv[1]](*sys.argv[2:])
    print(json.dumps({**answer, "peak": peak_rss()}))
