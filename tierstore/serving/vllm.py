"""vLLM plugin: ``vllm serve tierstore://ranker@prod``.

vLLM calls ``register`` in every process, through the entry point ``vllm.general_plugins``. It adds
the load format ``tierstore``, and makes ``EngineArgs`` accept a ``tierstore://`` URL as the model:
configuration and tokenizer are written to a local directory, which vLLM gets as its model, and
weights are read from the store. The version is resolved once, there, so that every worker and every
reload reads the same one.

Written against vLLM 0.10 and later: ``BaseModelLoader`` (``download_model``, ``load_weights``),
``get_all_weights``, which reloading after sleep uses, ``register_model_loader``, and
``EngineArgs.create_engine_config``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tierstore import config
from tierstore.errors import UsageError
from tierstore.modelstore.loading.model import Model
from tierstore.modelstore.loading.tensor import Tensor
from tierstore.modelstore.saving.kinds import shards_of
from tierstore.serving.location import SCHEME, STORE, Location, open_ref
from tierstore.serving.opened import open_shared
from tierstore.unfinished import TemporaryFolder

if TYPE_CHECKING:
    import torch

LOAD_FORMAT = "tierstore"
_INDEX = "model.safetensors.index.json"
_MARK = "_tierstore"


def register() -> None:
    """Add the load format to vLLM; calling it again changes nothing."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader import register_model_loader

    create = EngineArgs.create_engine_config
    if not hasattr(create, _MARK):
        register_model_loader(LOAD_FORMAT)(_loader_class())
        EngineArgs.create_engine_config = _understands_urls(create)


def _understands_urls(create: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(create)
    def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        localise(self)
        return create(self, *args, **kwargs)

    setattr(create_engine_config, _MARK, True)
    return create_engine_config


def localise(args: Any) -> None:
    """Replace a URL in ``EngineArgs`` by a local directory and the load format ``tierstore``.

    Raises:
        NotFound: There is no such model or version.
        UsageError: The URL names a file, or another load format was asked for.
    """
    url = args.model
    if not (isinstance(url, str) and url.startswith(SCHEME)):
        return
    if args.load_format not in {"auto", LOAD_FORMAT}:
        raise UsageError(
            f"{url[:200]} is read with --load-format {LOAD_FORMAT}, not {args.load_format}"
        )
    model, path = open_ref(url)
    if path:
        raise UsageError(f"{url[:200]} names the file {path[:200]!r}: leave it out")
    directory = str(local_files(model, Location.parse(url).store))
    if args.tokenizer in {None, url}:
        args.tokenizer = directory
    if args.served_model_name is None:
        args.served_model_name = url
    args.model, args.load_format = directory, LOAD_FORMAT
    settled = {"ref": _settled(url, model), "directory": directory}
    args.model_loader_extra_config = {**(args.model_loader_extra_config or {}), **settled}


def _settled(ref: str, model: Model) -> str:
    """Return a URL of the very version that ``ref`` was resolved to."""
    store = Location.parse(ref).store if ref.startswith(SCHEME) else None
    return f"{SCHEME}{model.version}" + (f"{STORE}{store}" if store else "")


def local_files(model: Model, store: str | None = None) -> Path:
    """Return a directory in the cache with all files of a version but its weights.

    It is written once.

    Args:
        model: The version.
        store: URL of its store; by default the configured one.
    """
    store_id = open_shared(store)._parts.home.config.store_id
    target = config.settings_from().cache_dir / store_id / "files" / model.version.digest.hex
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFolder(target.parent) as fresh:
            model._export(fresh, weights=False)
            try:
                fresh.rename(target)
            except OSError:  # somebody else was faster
                if not target.is_dir():
                    raise
    return target


def weights_of(ref: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the weights of a version: those in the files that its index lists.

    Without an index they are those in all safetensors files at its top.

    Raises:
        UsageError: It has no weights at its top, its index lists a tensor that none of these files
            has, or two of them have a tensor.
    """
    from tierstore.serving.torch import iter_weights

    model, _ = open_ref(ref)
    paths = {file.path for file in model._opened.manifest.files}
    top = {path for path in paths if path.endswith(".safetensors") and "/" not in path}
    listed: dict[str, str] = {}
    if _INDEX in paths:
        found = shards_of(model.read_file(_INDEX))
        if found is None:
            raise UsageError(f"{_INDEX} of {model.version} is not JSON with a 'weight_map'")
        listed = found
        top &= set(listed.values())
    if not top:
        raise UsageError(f"{model.version} has no safetensors file at its top level")
    tensors = [tensor for tensor in map(model.tensor, model) if tensor.file in top]
    short = {tensor.name: tensor.name_in_file for tensor in tensors}
    _check_one_each(model, tensors, listed)
    for name, tensor in iter_weights(_settled(ref, model), names=short):
        yield short[name], tensor


def _check_one_each(model: Model, tensors: Sequence[Tensor], listed: Iterable[str]) -> None:
    """Raise ``UsageError`` if a tensor is in no file, or in two."""
    files: dict[str, list[str]] = {}
    for tensor in tensors:
        files.setdefault(tensor.name_in_file, []).append(tensor.file)
    for name in listed:
        if name not in files:
            raise UsageError(
                f"{_INDEX} of {model.version} lists {name[:200]!r}, which none of its files has"
            )
    for name, among in files.items():
        if len(among) > 1:
            raise UsageError(
                f"{model.version} has {name[:200]!r} in {' and in '.join(sorted(among))}: save it "
                "without one of them (--exclude)"
            )


@functools.cache
def _loader_class() -> type[Any]:
    from vllm.model_executor.model_loader.base_loader import BaseModelLoader

    class TierstoreModelLoader(BaseModelLoader):  # type: ignore[misc]
        """Reads weights from a store.

        ``model_loader_extra_config`` may hold ``ref``, the version, and ``directory``, where vLLM
        looks for its other files.
        """

        def __init__(self, load_config: Any) -> None:
            super().__init__(load_config)
            extra = load_config.model_loader_extra_config or {}
            if not isinstance(extra, dict) or extra.keys() - {"ref", "directory"}:
                raise ValueError(
                    f"model_loader_extra_config of load format {LOAD_FORMAT} is a dict with "
                    f"'ref' and 'directory', not {extra!r}"
                )
            self._ref = extra.get("ref")
            if extra.get("directory"):  # made by another node's driver
                _make_directory(extra["ref"], extra["directory"])

        def download_model(self, model_config: Any) -> None:
            """Check that the version exists; its weights are read when they are loaded."""
            open_ref(self._ref_of(model_config))

        def load_weights(self, model: Any, model_config: Any) -> None:
            """Read the weights into a model."""
            model.load_weights(self.get_all_weights(model_config, model))

        def get_all_weights(self, model_config: Any, model: Any) -> Iterator[Any]:
            """Yield name and tensor of every weight, also when vLLM reloads after sleep."""
            more = [source.model_or_path for source in getattr(model, "secondary_weights", ())]
            if more:
                raise UsageError(
                    f"{type(model).__name__} needs weights of {', '.join(more)} besides: load "
                    f"format {LOAD_FORMAT} has those of one version only"
                )
            return weights_of(self._ref_of(model_config))

        def _ref_of(self, model_config: Any) -> str:
            """Return the model's URL (a reload may name another), or the resolved one."""
            for name in (model_config.model, getattr(model_config, "model_weights", "")):
                if isinstance(name, str) and name.startswith(SCHEME):
                    return name
            if self._ref is None:
                raise UsageError(
                    f"load format {LOAD_FORMAT} needs a model such as {SCHEME}ranker@prod, or "
                    "model_loader_extra_config={'ref': 'ranker@prod'} beside a local directory"
                )
            return str(self._ref)

    return TierstoreModelLoader


def _make_directory(ref: str, directory: str) -> None:
    if not Path(directory).is_dir():
        open_ref(ref)[0]._export(directory, weights=False)
