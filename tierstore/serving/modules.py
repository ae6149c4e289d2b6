"""What torch modules do in ``load_state_dict`` beside copying tensors to their own names."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn.modules.batchnorm import _NormBase

from tierstore.errors import UsageError

_ORDINARY = (torch.nn.Module._load_from_state_dict, _NormBase._load_from_state_dict)


def loads_itself(module: torch.nn.Module) -> bool:
    """Return whether a module, or one in it, may take other names than its own, or need fewer.

    It has hooks for loading, as lazy layers and parametrizations do, or methods of its own.
    """
    return type(module).load_state_dict is not torch.nn.Module.load_state_dict or any(
        one._load_state_dict_pre_hooks
        or one._load_state_dict_post_hooks
        or type(one)._load_from_state_dict not in _ORDINARY
        for one in module.modules()
    )


def counters(module: torch.nn.Module) -> set[str]:
    """Return the names that layers of normalisation set themselves where they are not stored."""
    return {
        f"{path}.num_batches_tracked" if path else "num_batches_tracked"
        for path, one in module.named_modules()
        if isinstance(one, _NormBase)
    }


def check_whole(own: Mapping[str, torch.Tensor]) -> None:
    """Raise ``UsageError`` if a module has only this rank's parts of its parameters."""
    for name, value in own.items():
        if callable(getattr(value, "full_tensor", None)):
            raise UsageError(
                f"{name!r} of the module is a {type(value).__name__}, of which every rank has a "
                "part: give tierstore.torch.state_dict(REF) to set_model_state_dict of "
                "torch.distributed.checkpoint.state_dict, with full_state_dict=True"
            )
