# SPDX-License-Identifier: Apache-2.0
"""Networks wrapped by ``torch.compile`` or for data-parallel training."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch.nn as nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

__all__ = ["on_network", "unwrap"]

logger = logging.getLogger(__name__)

Function = TypeVar("Function", bound=Callable[..., Any])


def unwrap(net: nn.Module) -> Any:
    """The network inside ``torch.compile(net)``, ``DataParallel(net)`` and ``DistributedDataParallel(net)``."""
    while True:
        if isinstance(net, (DataParallel, DistributedDataParallel)):
            net = net.module
        elif "_orig_mod" in net._modules:  # as torch.compile names it
            net = net._modules["_orig_mod"]  # type: ignore[assignment]
        else:
            return net


def on_network(function: Function) -> Function:
    """
    Decorator of a function on a network: it unwraps a wrapped network, and returns the wrapped one where the function
    returns the network. Warns if the function changes which parameters a ``DistributedDataParallel`` should train.
    """

    @functools.wraps(function)
    def unwrapped(net: nn.Module, *args: Any, **kwargs: Any) -> Any:
        inner = unwrap(net)
        if inner is net:
            return function(net, *args, **kwargs)
        before = _trained(inner)
        result = function(inner, *args, **kwargs)
        distributed = any(isinstance(module, DistributedDataParallel) for module in net.modules())
        if distributed and _trained(inner) != before:
            logger.warning(
                "DistributedDataParallel still updates the formerly trained parameters: wrap the inner network again."
            )
        return net if result is inner else result

    return unwrapped  # type: ignore[return-value]


def _trained(net: nn.Module) -> set[int]:
    return {id(parameter) for parameter in net.parameters() if parameter.requires_grad}
