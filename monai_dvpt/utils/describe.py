# SPDX-License-Identifier: Apache-2.0
"""Settings of an object as JSON."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

__all__ = ["describe"]

PACKAGES = ("monai", "monai_dvpt")
"""Objects of these are described by attributes, all others by their class."""
UNIMPORTANT = ("output_dir", "path", "R")


def describe(item: Any, _inside: tuple[int, ...] = ()) -> Any:
    """
    Settings of an object and of the objects in it, by their public attributes: equal settings have equal descriptions.
    Networks, and objects of neither MONAI nor this package, are described by their class alone; paths of results and
    random states are left out.

    Args:
        item: transform, inferer, handler, a list of these, or a value.

    Returns:
        a JSON-serialisable value.
    """
    if item is None or isinstance(item, (bool, int, float, str)):
        return item
    if isinstance(item, (np.generic, os.PathLike, np.dtype, torch.dtype, torch.device)):
        return str(item)
    if isinstance(item, (np.ndarray, torch.Tensor)):
        return hashlib.sha256(np.ascontiguousarray(torch.as_tensor(item).cpu().numpy()).tobytes()).hexdigest()
    if id(item) in _inside or isinstance(item, torch.nn.Module):
        return type(item).__name__
    inside = (*_inside, id(item))
    if isinstance(item, Mapping):
        return {str(key): describe(value, inside) for key, value in item.items()}
    if isinstance(item, (set, frozenset)):
        return sorted(str(describe(value, inside)) for value in item)
    if isinstance(item, (list, tuple)):
        return [describe(value, inside) for value in item]
    if isinstance(item, type) or type(item).__module__.split(".")[0] not in PACKAGES:
        return getattr(item, "__qualname__", type(item).__qualname__)
    public = {key: value for key, value in vars(item).items() if key[0] != "_" and key not in UNIMPORTANT}
    return {"type": type(item).__qualname__, **describe(public, inside)}
