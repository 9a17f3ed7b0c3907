# SPDX-License-Identifier: Apache-2.0
"""The DVPT block: a bottleneck whose learnable prompts read the frozen tokens and are read back."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from monai_dvpt.utils import check_counts

__all__ = ["DVPTBlock", "DVPTList"]

KEEP_FROM = 2**18
"""Numbers in the tokens from which a block keeps its output alone; with fewer there is little to save."""
CHOICES = {
    "aggregation": ("read_back", "mean", "static", "prompts_only"),
    "norm": ("plain", "affine", "none"),
    "zero_init": ("up", "gate"),
}
"""Values of the arguments of a block that are words."""


class DVPTBlock(nn.Module):
    """
    Dynamic visual prompt tuning of the output of one frozen transformer block, based on:
    "He et al., DVPT: Dynamic Visual Prompt Tuning of Large Pre-trained Models for Medical Image Analysis
    <https://arxiv.org/abs/2307.09787>". One instance may serve several transformer blocks.

    With tokens ``X`` of shape (B, N, C), prompts ``P`` of shape (M, R) and ``norm`` a layer normalisation without
    parameters::

        Z = gelu(norm(X) W_down + b_down)       (B, N, R)  bottleneck
        D = softmax(P Z^T / sqrt(R)) Z          (B, M, R)  prompts read the sample
        S = softmax(Z D^T / sqrt(R)) D          (B, N, R)  tokens read the prompts back
        X' = X + (gate (Z + S)) W_up + b_up     (B, N, C)

    ``W_up`` and ``b_up`` start at zero, so a new block is the identity. The paper's abstract leaves open how the
    prompts are aggregated and where the gate sits; ``docs/explanation/dvpt.md`` gives the reasons for these choices.
    Cost is linear in ``N``, so the same block serves 2D and 3D token sequences.

    Args:
        hidden_size: token width ``C`` of the frozen transformer.
        bottleneck_size: width ``R`` of the down-projection, in ``[1, C)``.
        num_prompts: number ``M`` of learnable prompts; 0 leaves a plain bottleneck adapter (``S = 0``).
        aggregation: what of the prompts is added to the tokens: "read_back", as above; "mean", where every token gets
            the mean of ``D`` over the prompts as ``S``; "static", where ``P`` stands for ``D``, so that no sample
            changes the prompts; or "prompts_only", where ``S`` is projected in the place of ``Z + S``.
        norm: layer normalisation before the bottleneck: "plain", without parameters; "affine", with a trained scale
            and shift; or "none".
        zero_init: what starts at zero beside ``b_up``: the up-projection, "up", or the "gate".

    Raises:
        ValueError: if ``hidden_size`` is below 2, ``bottleneck_size`` outside ``[1, C)`` or ``num_prompts`` negative;
            if another argument is unknown; or if there are no prompts for another ``aggregation`` than "read_back".

    Examples::

        >>> DVPTBlock(768, 32, num_prompts=10)(torch.zeros(2, 197, 768)).shape
        torch.Size([2, 197, 768])

    """

    def __init__(
        self,
        hidden_size: int,
        bottleneck_size: int = 32,
        num_prompts: int = 10,
        aggregation: str = "read_back",
        norm: str = "plain",
        zero_init: str = "up",
    ) -> None:
        super().__init__()
        check_counts(2, hidden_size=hidden_size)
        check_counts(0, num_prompts=num_prompts)
        check_counts(bottleneck_size=bottleneck_size)
        if bottleneck_size >= hidden_size:
            raise ValueError(f"bottleneck_size must be in [1, hidden_size={hidden_size}), got {bottleneck_size}.")
        for name, value in (("aggregation", aggregation), ("norm", norm), ("zero_init", zero_init)):
            if value not in CHOICES[name]:
                raise ValueError(f"{name} must be one of {CHOICES[name]}, got {value}.")
        if aggregation != "read_back" and not num_prompts:
            raise ValueError(f'num_prompts must be at least 1 with aggregation="{aggregation}", got 0.')
        self.hidden_size = hidden_size
        self.num_prompts = num_prompts
        self.aggregation, self.norm_kind = aggregation, norm
        self.scale = 1.0 / math.sqrt(bottleneck_size)
        self.norm = nn.Identity() if norm == "none" else nn.LayerNorm(hidden_size, elementwise_affine=norm == "affine")
        self.down = nn.Linear(hidden_size, bottleneck_size)
        self.prompts = nn.Parameter(torch.randn(num_prompts, bottleneck_size))
        self.gate = nn.Parameter(torch.ones(1))
        self.up = nn.Linear(bottleneck_size, hidden_size)
        for tensor in (self.up.bias, self.gate if zero_init == "gate" else self.up.weight):
            nn.init.zeros_(tensor)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """
        Args:
            x: tokens of shape (B, N, C).

        Returns:
            adapted tokens of the same shape.
        """
        if not torch.jit.is_scripting():
            if _keeps_output(self, x):
                inner = (self.prompts, self.gate, self.down.weight, self.down.bias)
                return _KeepOutput.apply(x, *inner, self.up.weight, self.up.bias, self.scale)
        return x + self.up(self.change(x))

    def change(self, x: torch.Tensor) -> torch.Tensor:
        """What tokens of shape (B, N, C) change by, in the bottleneck and gated, of shape (B, N, R)."""
        return self.gate * _aggregate(self.bottleneck(x), self.prompts, self.scale, self.aggregation)

    def bottleneck(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens of shape (B, N, C) in the bottleneck, of shape (B, N, R)."""
        return F.gelu(self.down(self.norm(x)))

    def read(self, z: torch.Tensor) -> torch.Tensor:
        """Attention of the prompts over tokens ``z`` in the bottleneck, of shape (B, M, N); each row sums to 1."""
        return _read(self.prompts, z, self.scale)


def _keeps_output(block: DVPTBlock, x: torch.Tensor) -> bool:
    """
    Whether a block, one as the formulas have it, keeps its output alone for the backward pass: where autograd records,
    nothing but it looks on, the type of the tokens is precise enough to find them from the output, and there are enough
    of them to be worth it.
    """
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    parts = (block.down, block.up)
    plain = all(type(part) is nn.Linear and not any(getattr(part, name) for name in hooks) for part in parts)
    plain = plain and block.aggregation == "read_back" and block.norm_kind == "plain"
    traced = torch.jit.is_tracing() or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    precise = x.dtype in (torch.float32, torch.float64)
    return plain and not traced and torch.is_grad_enabled() and precise and x.numel() >= KEEP_FROM


def _read(prompts: torch.Tensor, z: torch.Tensor, scale: float) -> torch.Tensor:
    return (torch.matmul(prompts, z.transpose(1, 2)) * scale).softmax(dim=-1)


def _aggregate(z: torch.Tensor, prompts: torch.Tensor, scale: float, aggregation: str) -> torch.Tensor:
    """From tokens (B, N, R) and prompts (M, R) what they change by before the gate, (B, N, R)."""
    if aggregation != "static":
        prompts = torch.matmul(_read(prompts, z, scale), z)  # (B, M, R), now per sample
    if aggregation == "mean":
        return z + prompts.mean(dim=1, keepdim=True)
    back = torch.matmul(z, prompts.transpose(-2, -1)) * scale  # (B, N, M)
    taken = torch.matmul(back.softmax(dim=-1), prompts)  # M = 0 adds 0 and keeps prompts in the graph
    return taken if aggregation == "prompts_only" else z + taken


class _KeepOutput(torch.autograd.Function):
    """
    A DVPT block that keeps its output for the backward pass, which the next frozen layer keeps anyway, and what it adds
    in the bottleneck, of width R. Its input is the difference, and the rest, of width C, is computed again from it. The
    difference is as precise as the output: where a block adds k times its input, its rounding is k times as large.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        prompts: torch.Tensor,
        gate: torch.Tensor,
        down: torch.Tensor,
        down_bias: torch.Tensor,
        up: torch.Tensor,
        up_bias: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        ctx.scale, ctx.device = scale, x.device.type
        ctx.autocast = torch.is_autocast_enabled(ctx.device), torch.get_autocast_dtype(ctx.device)
        with _same_autocast(ctx):
            change = _change(x, prompts, gate, down, down_bias, scale)
            output = x + F.linear(change, up, up_bias)
        ctx.save_for_backward(output, change, prompts, gate, down, down_bias, up, up_bias)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        output, change, *parameters = ctx.saved_tensors
        needed = ctx.needs_input_grad
        leaves = [p.detach().requires_grad_(need) for p, need in zip(parameters, needed[1:7], strict=True)]
        prompts, gate, down, down_bias, up, up_bias = leaves
        with torch.enable_grad(), _same_autocast(ctx):
            y = change.detach().requires_grad_()
            added = F.linear(y, up, up_bias)
            x = (output - added).detach().requires_grad_(needed[0])
            again = _change(x, prompts, gate, down, down_bias, ctx.scale)
        grad_y, *outer_grads = _gradients(added, [y, up, up_bias], grad)
        grad_x, *inner_grads = _gradients(again, [x, prompts, gate, down, down_bias], grad_y)
        return None if grad_x is None else grad_x + grad, *inner_grads, *outer_grads, None


def _same_autocast(ctx: Any) -> torch.autocast:
    """
    Autocast as the forward pass found it, but no cast is kept: nothing is recorded inside, and torch before 2.9 would
    give a weight that was cast here, without a gradient, to blocks that are recorded.
    """
    enabled, dtype = ctx.autocast
    return torch.autocast(ctx.device, dtype=dtype, enabled=enabled, cache_enabled=False)


def _change(
    x: torch.Tensor,
    prompts: torch.Tensor,
    gate: torch.Tensor,
    down: torch.Tensor,
    down_bias: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """As :meth:`DVPTBlock.change`."""
    z = F.gelu(F.linear(F.layer_norm(x, x.shape[-1:]), down, down_bias))
    return gate * _aggregate(z, prompts, scale, "read_back")


def _gradients(output: torch.Tensor, inputs: Sequence[torch.Tensor], grad: Any) -> list[torch.Tensor | None]:
    """Gradients of those inputs that need one, None for the others."""
    needed = [tensor for tensor in inputs if tensor.requires_grad]
    found = iter(torch.autograd.grad(output, needed, grad.to(output.dtype)) if needed else ())
    return [next(found) if tensor.requires_grad else None for tensor in inputs]


class DVPTList(nn.ModuleList):
    """
    The DVPT blocks of a transformer, each registered once and shared by up to ``share_every`` consecutive layers of the
    same width.

    Args:
        hidden_sizes: token width ``C`` of every transformer layer.
        bottleneck_size: see :class:`DVPTBlock`.
        num_prompts: see :class:`DVPTBlock`.
        share_every: number of consecutive layers that one block serves, at least 1.
        start_layer: index of the first layer followed by a block, in ``[0, number of layers)``. With a frozen
            transformer the layers before it run without a graph.
        aggregation: see :class:`DVPTBlock`, as for the next two.
        norm: see there.
        zero_init: see there.

    Attributes:
        block_of_layer: for every layer the index of the block that follows it, -1 where none does.

    Raises:
        ValueError: if ``share_every`` or ``start_layer`` is outside its range.

    Examples::

        >>> DVPTList([48, 48, 48, 96, 96], bottleneck_size=16, share_every=2).block_of_layer
        [0, 0, 1, 2, 2]

    """

    def __init__(
        self,
        hidden_sizes: Sequence[int],
        bottleneck_size: int = 32,
        num_prompts: int = 10,
        share_every: int = 3,
        start_layer: int = 0,
        aggregation: str = "read_back",
        norm: str = "plain",
        zero_init: str = "up",
    ) -> None:
        check_counts(share_every=share_every)
        check_counts(0, start_layer=start_layer)
        if start_layer >= len(hidden_sizes):
            raise ValueError(f"start_layer must be in [0, {len(hidden_sizes)}), got {start_layer}.")
        super().__init__()
        self.block_of_layer = [-1] * start_layer
        for hidden_size, layers in itertools.groupby(hidden_sizes[start_layer:]):
            for index, _ in enumerate(layers):
                if index % share_every == 0:
                    self.append(DVPTBlock(hidden_size, bottleneck_size, num_prompts, aggregation, norm, zero_init))
                self.block_of_layer.append(len(self) - 1)
