# SPDX-License-Identifier: Apache-2.0
"""One training step and one inference: memory and arithmetic."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from monai.losses import DiceCELoss
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measuring import memory_growth

from .variants import Network

__all__ = ["Trial", "count_flops", "peak_bytes", "saved_bytes"]


class Trial:
    """
    A network in training, with random images and labels.

    Args:
        net: the network, on its device.
        network: its sizes.
        cached: whether to compute the prefix once, here.
        amp: whether to use bfloat16 autocast.
    """

    def __init__(self, net: nn.Module, network: Network, cached: bool = False, amp: bool = False) -> None:
        self.net, self.amp = net, amp
        self.device = next(net.parameters()).device
        generator = torch.Generator().manual_seed(1)
        shape = (network.batch, 1, *network.input_size[1:]) if network.segmentation else (network.batch,)
        image = torch.randn(network.batch, *network.input_size, generator=generator).to(self.device)
        self.label = torch.randint(network.num_classes, shape, generator=generator).to(self.device)
        self.loss = DiceCELoss(softmax=True, to_onehot_y=True) if network.segmentation else F.cross_entropy
        # a learning rate of 0 changes nothing, so that variants can share tensors
        self.optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=0.0)
        self.inputs: tuple[torch.Tensor, ...] = (image,)
        if cached:
            with self._autocast():
                self.inputs = (image, net.forward_prefix(image))  # type: ignore[operator]

    def step(self) -> None:
        """A training step."""
        self.forward().backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def forward(self) -> torch.Tensor:
        """The loss."""
        return self.loss(self.infer().float(), self.label)

    def infer(self) -> torch.Tensor:
        """The logits."""
        with self._autocast():
            output = self.net(*self.inputs)
        return output[0] if isinstance(output, tuple) else output  # MONAI's ViT returns its hidden states too

    def held(self) -> Iterable[torch.Tensor]:
        """Tensors that stay in memory between steps, without the optimiser's states."""
        return itertools.chain(self.net.parameters(), self.net.buffers(), self.inputs, [self.label])

    def share_states(self, pool: dict[Any, torch.Tensor]) -> None:
        """Makes the optimiser use the states in ``pool``; adds those that are not there yet."""
        for name, parameter in self.net.named_parameters():
            state = self.optimizer.state.get(parameter, {})
            for key, tensor in state.items():
                state[key] = pool.setdefault((name, key, tensor.shape), tensor)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp)


def saved_bytes(function: Callable[[], Any], held: Iterable[torch.Tensor] = ()) -> int:
    """Bytes of the distinct storages that autograd keeps after the forward pass ``function``, without ``held`` ones."""
    known = {tensor.untyped_storage().data_ptr() for tensor in held}
    storages: dict[int, torch.UntypedStorage] = {}  # kept alive, so that no address is used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            storages[storage.data_ptr()] = storage
        return tensor.detach()

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return sum(storage.nbytes() for storage in storages.values())


def count_flops(function: Callable[[], Any]) -> int:
    """Floating-point operations of matrix products and convolutions; a multiplication and its addition are two."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def peak_bytes(trial: Trial) -> int | None:
    """See :func:`memory_growth`; of a training step, gradients included. On a CPU the trial needs its own process."""
    trial.step()  # makes the optimiser's states, and loads libraries
    return memory_growth(trial.step, trial.device)
