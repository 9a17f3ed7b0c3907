# SPDX-License-Identifier: Apache-2.0
"""Time, memory and arithmetic of one training step and of one inference."""

from __future__ import annotations

import gc
import itertools
import random
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from contextlib import suppress
from ctypes import CDLL
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn as nn
import torch.nn.functional as F
from monai.losses import DiceCELoss
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from benchmarks.memory import process_memory

from .variants import Network

__all__ = ["Trial", "count_flops", "interleave", "peak_bytes", "saved_bytes"]

Key = TypeVar("Key", bound=Hashable)


class Trial:
    """
    A network in training, with random images and labels.

    Args:
        net: the network, on its device.
        network: what it is given.
        cached: whether the frozen layers before the first DVPT block are computed once, here.
        amp: whether it computes in bfloat16 where autocast does.
    """

    def __init__(self, net: nn.Module, network: Network, cached: bool = False, amp: bool = False) -> None:
        self.net, self.amp = net, amp
        self.device = next(net.parameters()).device
        generator = torch.Generator().manual_seed(1)
        shape = (network.batch, 1, *network.input_size[1:]) if network.segmentation else (network.batch,)
        image = torch.randn(network.batch, *network.input_size, generator=generator).to(self.device)
        self.label = torch.randint(network.num_classes, shape, generator=generator).to(self.device)
        self.loss = DiceCELoss(softmax=True, to_onehot_y=True) if network.segmentation else F.cross_entropy
        # with a learning rate of 0 all is computed and nothing changes, so that variants can share tensors
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
        """What is in memory between steps, without the optimiser's states."""
        return itertools.chain(self.net.parameters(), self.net.buffers(), self.inputs, [self.label])

    def share_states(self, pool: dict[Any, torch.Tensor]) -> None:
        """Makes the optimiser use the states in ``pool`` where it has them, and puts the others there."""
        for name, parameter in self.net.named_parameters():
            state = self.optimizer.state.get(parameter, {})
            for key, tensor in state.items():
                state[key] = pool.setdefault((name, key, tensor.shape), tensor)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp)


def saved_bytes(function: Callable[[], Any], held: Iterable[torch.Tensor] = ()) -> int:
    """
    Bytes of the distinct storages that autograd keeps for the backward pass.

    Args:
        function: the forward pass.
        held: tensors whose storages do not count.
    """
    known = {tensor.untyped_storage().data_ptr() for tensor in held}
    storages: dict[int, torch.UntypedStorage] = {}  # alive until counted, so that no address is used twice

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


def interleave(
    functions: Mapping[Key, Callable[[], Any]], rounds: int, device: torch.device, progress: tqdm | None = None
) -> dict[Key, list[float]]:
    """
    Seconds of every function in every round. A round runs each of them once, in an order of its own, so that what else
    the machine does meets all alike.

    Args:
        functions: by name.
        rounds: number of rounds.
        device: where they compute.
        progress: a bar to move on, by one for each run.
    """
    seconds: dict[Key, list[float]] = {name: [] for name in functions}
    order, names = random.Random(0), list(functions)
    for _ in range(rounds):
        order.shuffle(names)
        for name in names:
            _synchronize(device)
            started = time.perf_counter()
            functions[name]()
            _synchronize(device)
            seconds[name].append(time.perf_counter() - started)
            if progress is not None:
                progress.update()
    return seconds


def peak_bytes(trial: Trial) -> int | None:
    """
    By how much memory grows within a training step, gradients included: that of the GPU, or of the process, where the
    network should be alone. None where the system does not say.
    """
    trial.step()  # makes the optimiser's states, and loads libraries
    gc.collect()
    if trial.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(trial.device)
        before = torch.cuda.memory_allocated(trial.device)
        trial.step()
        return torch.cuda.max_memory_allocated(trial.device) - before
    with suppress(AttributeError):  # glibc: gives back what the first step freed
        CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: forgets the first step's peak
    except OSError:
        return None
    resident = process_memory("VmRSS")
    trial.step()
    peak = process_memory("VmHWM")
    return None if resident is None or peak is None else peak - resident


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
