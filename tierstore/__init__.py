"""A tiered, content-addressed store for model weights.

Examples in docstrings assume ``import numpy as np`` and ``import tierstore``, and make their store
in the current folder.

>>> store = tierstore.init("store")  # later: tierstore.open("store"), or TIERSTORE_STORE
>>> weights = {"emb.weight": np.zeros((1000, 4), np.float32), "bias": np.zeros(4, np.float32)}
>>> print(store.save("ranker", weights, alias="prod", message="nightly"))
ranker@1
>>> model = store.load("ranker@prod")
>>> model["bias"], model.tensor("emb.weight")[[3, 14]].shape
(array([0., 0., 0., 0.], dtype=float32), (2, 4))
>>> rows = tierstore.Rows([3], np.ones((1, 4), np.float32))
>>> print(store.patch("ranker@prod", {"emb.weight": rows}, alias="prod"))
ranker@2

Names are imported when they are first used, so that ``import tierstore`` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tierstore import errors
    from tierstore import safetensors as safetensors
    from tierstore.format.tiers import TierSpec
    from tierstore.ids import Digest, ModelRef
    from tierstore.modelstore.loading.model import LoadStats, Model
    from tierstore.modelstore.loading.tensor import Tensor
    from tierstore.modelstore.names.names import Alias
    from tierstore.modelstore.patches.changes import Dense, Elements, Rows
    from tierstore.modelstore.patches.fold import Folded
    from tierstore.modelstore.patches.patches import Patch
    from tierstore.modelstore.version import FileInfo, SaveStats, Version
    from tierstore.serving import follow
    from tierstore.serving.inplace import InPlace
    from tierstore.serving.observe import open_store
    from tierstore.serving.safetensors import load_file, safe_open
    from tierstore.store import Store
    from tierstore.store import init_store as init
    from tierstore.variants.derive import derive

    __version__: str
    open = open_store

__all__ = [
    "Alias",
    "Dense",
    "Digest",
    "Elements",
    "FileInfo",
    "Folded",
    "InPlace",
    "LoadStats",
    "Model",
    "ModelRef",
    "Patch",
    "Rows",
    "SaveStats",
    "Store",
    "Tensor",
    "TierSpec",
    "Version",
    "derive",
    "errors",
    "follow",
    "init",
    "load_file",
    "safe_open",
]
"""All public names but those that ``from tierstore import *`` would take from somebody else."""

_BESIDE = ("__version__", "open", "safetensors")

_HOMES = {
    "Alias": "tierstore.modelstore.names.names:Alias",
    "Dense": "tierstore.modelstore.patches.changes:Dense",
    "Digest": "tierstore.ids:Digest",
    "Elements": "tierstore.modelstore.patches.changes:Elements",
    "FileInfo": "tierstore.modelstore.version:FileInfo",
    "Folded": "tierstore.modelstore.patches.fold:Folded",
    "InPlace": "tierstore.serving.inplace:InPlace",
    "LoadStats": "tierstore.modelstore.loading.model:LoadStats",
    "Model": "tierstore.modelstore.loading.model:Model",
    "ModelRef": "tierstore.ids:ModelRef",
    "Patch": "tierstore.modelstore.patches.patches:Patch",
    "Rows": "tierstore.modelstore.patches.changes:Rows",
    "SaveStats": "tierstore.modelstore.version:SaveStats",
    "Store": "tierstore.store:Store",
    "Tensor": "tierstore.modelstore.loading.tensor:Tensor",
    "TierSpec": "tierstore.format.tiers:TierSpec",
    "Version": "tierstore.modelstore.version:Version",
    "derive": "tierstore.variants.derive:derive",
    "follow": "tierstore.serving:follow",
    "init": "tierstore.store:init_store",
    "load_file": "tierstore.serving.safetensors:load_file",
    "open": "tierstore.serving.observe:open_store",
    "safe_open": "tierstore.serving.safetensors:safe_open",
}


_MODULES = ("errors", "safetensors")


def __getattr__(name: str) -> object:
    if name in _HOMES:
        module, _, attribute = _HOMES[name].partition(":")
        value = getattr(import_module(module), attribute)
    elif name in _MODULES:
        value = import_module(f"tierstore.{name}")
    elif name == "__version__":
        value = _version()
    else:
        raise AttributeError(f"module 'tierstore' has no attribute {name!r}")
    globals()[name] = value
    return value


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("tierstore")
    except PackageNotFoundError:
        raise AttributeError("tierstore is not installed, so its version is not known") from None


def __dir__() -> list[str]:
    return sorted({*__all__, *_BESIDE})
