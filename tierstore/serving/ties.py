"""Tied weights: those that a module has under several names, such as embedding and output."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import torch
from torch.nn.parameter import is_lazy


def ties_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, list[str]]:
    """Return all names of each tensor that has several, by each of these names.

    Args:
        tensors: Parameters and buffers themselves, as from ``state_dict(keep_vars=True)``.
    """
    first: dict[Hashable, str] = {}
    groups: dict[str, list[str]] = {}
    for name, tensor in tensors.items():
        same = first.setdefault(_identity(tensor), name)
        if same != name:
            groups.setdefault(same, [same]).append(name)
    return {name: group for group in groups.values() for name in group}


def _identity(tensor: torch.Tensor) -> Hashable:
    """Return a value that is equal for views of the same memory in the same way."""
    if is_lazy(tensor) or tensor.is_meta or not tensor.numel():
        return id(tensor)
    return tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()


def bind_ties(module: torch.nn.Module, ties: Mapping[str, list[str]]) -> None:
    """Tie the names of each group to one tensor again, that of the first name."""
    for name, group in ties.items():
        if name == group[0]:
            for other in group[1:]:
                _bind(module, name, other)


def _bind(module: torch.nn.Module, name: str, other: str) -> None:
    source, _, leaf = name.rpartition(".")
    target, _, other_leaf = other.rpartition(".")
    owner, user = module.get_submodule(source), module.get_submodule(target)
    if leaf in owner._parameters:
        user._parameters[other_leaf] = owner._parameters[leaf]
    else:
        user._buffers[other_leaf] = owner._buffers[leaf]
