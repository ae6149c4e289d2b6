"""What the plugin relies on in vLLM, in a few lines: vLLM itself needs CUDA and does not run here.

Names, signatures and the order of events are those of vLLM (0.10 and later) in these files:
``vllm/plugins/__init__.py``, ``vllm/engine/arg_utils.py``, ``vllm/config/load.py``,
``vllm/model_executor/model_loader/__init__.py`` and ``base_loader.py``,
``vllm/v1/worker/gpu_model_runner.py`` (``reload_weights``). Where vLLM would ask the Hugging Face
Hub for what is no local directory, this fails.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import sys
import types
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

log = logging.getLogger("vllm")


@dataclass
class LoadConfig:
    load_format: str = "auto"
    model_loader_extra_config: dict[str, Any] = field(default_factory=dict)


@dataclass
class ModelConfig:
    model: str
    tokenizer: str
    served_model_name: str | list[str] | None
    model_weights: str = ""
    revision: str | None = None

    def __post_init__(self) -> None:
        for path in (self.model, self.tokenizer):
            if not Path(path).is_dir():
                raise OSError(f"{path} is not a local folder and not a valid model identifier")
        self.hf_config = json.loads(Path(self.model, "config.json").read_text())


@dataclass
class VllmConfig:
    model_config: ModelConfig
    load_config: LoadConfig


class BaseModelLoader(ABC):
    def __init__(self, load_config: LoadConfig) -> None:
        self.load_config = load_config

    @abstractmethod
    def download_model(self, model_config: ModelConfig) -> None: ...

    @abstractmethod
    def load_weights(self, model: nn.Module, model_config: ModelConfig) -> None: ...

    def load_model(
        self, vllm_config: VllmConfig, model_config: ModelConfig, prefix: str = ""
    ) -> nn.Module:
        model = Network(model_config.hf_config)
        self.load_weights(model, model_config)
        return model.eval()


class Network(nn.Module):
    """As vLLM's models: it takes weights by name and fuses some of them."""

    def __init__(self, config: dict[str, int]) -> None:
        super().__init__()
        width = config["hidden_size"]
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def load_weights(self, weights: Iterator[tuple[str, torch.Tensor]]) -> set[str]:
        loaded = set()
        with torch.no_grad():
            for name, tensor in weights:
                if name == "out.weight":
                    self.out.weight.copy_(tensor)
                else:
                    at = ["q.weight", "k.weight", "v.weight"].index(name)
                    self.qkv.weight.chunk(3)[at].copy_(tensor)
                loaded.add(name)
        return loaded


class World:
    """The modules of one process of vLLM."""

    def __init__(self) -> None:
        world = self
        self.loaders: dict[str, type[BaseModelLoader]] = {}
        self.plugins_loaded = False

        @dataclass
        class EngineArgs:
            model: str
            tokenizer: str | None = None
            served_model_name: str | list[str] | None = None
            load_format: str = "auto"
            model_loader_extra_config: dict[str, Any] = field(default_factory=dict)

            def __post_init__(self) -> None:
                world.load_general_plugins()

            def create_engine_config(
                self, usage_context: Any = None, headless: bool = False
            ) -> VllmConfig:
                tokenizer = self.tokenizer if self.tokenizer is not None else self.model
                served = self.served_model_name if self.served_model_name else self.model
                return VllmConfig(
                    ModelConfig(self.model, tokenizer, served),
                    LoadConfig(self.load_format, self.model_loader_extra_config),
                )

        @dataclass
        class AsyncEngineArgs(EngineArgs):
            enable_log_requests: bool = False

        self.EngineArgs, self.AsyncEngineArgs = EngineArgs, AsyncEngineArgs

    def load_general_plugins(self) -> None:
        if self.plugins_loaded:
            return
        self.plugins_loaded = True
        for entry in importlib.metadata.entry_points(group="vllm.general_plugins"):
            entry.load()()

    def register_model_loader(self, load_format: str) -> Callable[[type], type]:
        def wrapper(loader: type) -> type:
            assert load_format not in self.loaders, "vLLM warns that it is overwritten"
            if not issubclass(loader, BaseModelLoader):
                raise ValueError("The model loader must be a subclass of `BaseModelLoader`.")
            self.loaders[load_format] = loader
            return loader

        return wrapper

    def get_model_loader(self, load_config: LoadConfig) -> BaseModelLoader:
        if load_config.load_format not in self.loaders:
            raise ValueError(f"Load format `{load_config.load_format}` is not supported")
        return self.loaders[load_config.load_format](load_config)

    def get_model(self, *, vllm_config: VllmConfig) -> nn.Module:
        loader = self.get_model_loader(vllm_config.load_config)
        return loader.load_model(vllm_config=vllm_config, model_config=vllm_config.model_config)

    def reload_weights(
        self, model: Any, vllm_config: VllmConfig, weights_path: str | None = None
    ) -> None:
        """As a worker's model runner does after sleeping, or for new weights."""
        loader = self.get_model_loader(vllm_config.load_config)
        if not hasattr(loader, "get_all_weights"):
            raise NotImplementedError(f"reloading with {vllm_config.load_config.load_format}")
        if weights_path is not None:
            vllm_config.model_config.model = weights_path
        model.load_weights(loader.get_all_weights(vllm_config.model_config, model))

    @contextmanager
    def importable(self) -> Iterator[World]:
        """``import vllm`` finds this one."""
        loader = {
            "register_model_loader": self.register_model_loader,
            "get_model_loader": self.get_model_loader,
            "BaseModelLoader": BaseModelLoader,
        }
        names: dict[str, dict[str, Any]] = {
            "vllm": {},
            "vllm.engine": {},
            "vllm.engine.arg_utils": {"EngineArgs": self.EngineArgs},
            "vllm.model_executor": {},
            "vllm.model_executor.model_loader": loader,
            "vllm.model_executor.model_loader.base_loader": {"BaseModelLoader": BaseModelLoader},
        }
        for name, members in names.items():
            module = types.ModuleType(name)
            module.__path__ = []
            vars(module).update(members)
            sys.modules[name] = module
        try:
            yield self
        finally:
            for name in names:
                del sys.modules[name]
