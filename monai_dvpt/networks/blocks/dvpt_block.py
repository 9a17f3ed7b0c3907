# SPDX-License-Identifier: Apache-2.0
"""The DVPT block: learnable prompts in a bottleneck attend to the frozen tokens, and the tokens to the prompts."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn as nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from monai_dvpt.utils import check_counts

from .prompt_reader import PromptReader

__all__ = ["DVPTBlock", "DVPTList"]

KEEP_FROM = 2**18
"""Smallest size of the tokens at which a block keeps only its output; below, this saves little memory."""
CHOICES = {
    "aggregation": ("read_back", "mean", "static", "prompts_only"),
    "zero_init": ("up", "gate"),
}
"""Allowed values of a block's string arguments."""


class DVPTBlock(PromptReader):
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

    ``W_up`` and ``b_up`` start at zero, so a new block is the identity. The paper's abstract does not say how prompts
    are aggregated or where the gate is; ``docs/explanation/dvpt.md`` explains these choices. Cost is linear in ``N``,
    so the same block serves 2D and 3D token sequences.

    Args:
        hidden_size: token width ``C`` of the frozen transformer.
        bottleneck_size: width ``R`` of the down-projection, in ``[1, C)``.
        num_prompts: number ``M`` of learnable prompts; 0 leaves a plain bottleneck adapter (``S = 0``).
        aggregation: how the prompts change the tokens: "read_back", as above; "mean", where ``S`` is the mean of ``D``
            over the prompts for every token; "static", where ``P`` replaces ``D``, so that the prompts do not depend on
            the sample; or "prompts_only", where ``S`` replaces ``Z + S``.
        norm: layer normalisation before the bottleneck: "plain", without parameters; "affine", with a trained scale
            and shift; or "none".
        zero_init: what starts at zero besides ``b_up``: "up", the up-projection; or "gate".

    Raises:
        ValueError: if ``hidden_size`` is below 2, ``bottleneck_size`` outside ``[1, C)`` or ``num_prompts`` negative;
            if another argument is unknown; or if an ``aggregation`` other than "read_back" has no prompts.

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
        super().__init__(hidden_size, bottleneck_size, num_prompts, norm)
        for name, value in (("aggregation", aggregation), ("zero_init", zero_init)):
            if value not in CHOICES[name]:
                raise ValueError(f"{name} must be one of {CHOICES[name]}, got {value}.")
        if aggregation != "read_back" and not num_prompts:
            raise ValueError(f'num_prompts must be at least 1 with aggregation="{aggregation}", got 0.')
        self.aggregation = aggregation
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
            if self._keeps_output(x):
                return self._forward_keeping_output(x)
        return x + self.up(self.change(x))

    @torch.jit.unused
    def _keeps_output(self, x: torch.Tensor) -> bool:
        """
        Whether the block may choose what autograd keeps (it records the block's own parameters, without a trace or
        transform), and the tokens are precise enough to be recomputed from the output and large enough to be worth it.
        """
        traced = torch.jit.is_tracing() or torch.compiler.is_compiling() or not _hooks_are_allowed()
        own = all(isinstance(parameter, nn.Parameter) for parameter in (self.gate, *self.parameters()))
        precise = x.dtype in (torch.float32, torch.float64)
        return torch.is_grad_enabled() and not traced and own and precise and x.numel() >= KEEP_FROM

    @torch.jit.unused
    def _forward_keeping_output(self, x: torch.Tensor) -> torch.Tensor:
        """
        Keeps the output for the backward pass, which the next frozen layer keeps anyway, and the change, of width R.
        Their difference gives the tokens, from which the rest is recomputed. It is as precise as the output: if a block
        adds k times its input, rounding grows k times. Compared with autograd's choice a step of ViT-B/16 keeps 18 %
        less memory and one of ViT-Ti/16 21 % less, batch 8, float32:
        ``python -m benchmarks cost --networks vit_b16 vit_ti16 --batch 8 --methods dvpt dvpt_plain``.
        """
        kept: list[tuple[torch.Tensor, int]] = []
        shape, device = x.shape, x.device.type
        # no cached casts: nothing is recorded inside, so a weight cast here would have no gradient elsewhere
        enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        autocast = torch.autocast(device, dtype=dtype, enabled=enabled, cache_enabled=False)

        def tokens(packed: torch.Tensor | None) -> torch.Tensor:
            if packed is not None:
                return packed
            (output, _), (change, _), *parameters = kept
            own = zip(self.parameters(), parameters, strict=True)
            if any(t._version != version for t, version in kept) or any(p is not before for p, (before, _) in own):
                raise RuntimeError("a tensor of a DVPT block was modified by an inplace operation before backward.")
            with torch.no_grad(), autocast:
                return output - self.up(change)

        # the hooks live as long as the graph, so they must not refer to the tokens
        with saved_tensors_hooks(lambda tensor: None if tensor.shape == shape else tensor, tokens):
            change = checkpoint(self.change, x, use_reentrant=False, preserve_rng_state=False)
        output = x + self.up(change)
        kept += [(t, t._version) for t in (output.detach(), change.detach(), *self.parameters())]
        return output

    def change(self, x: torch.Tensor) -> torch.Tensor:
        """Change of tokens of shape (B, N, C) in the bottleneck, gated, of shape (B, N, R)."""
        z = self.bottleneck(x)
        prompts: torch.Tensor = self.prompts
        if self.aggregation != "static":
            prompts = torch.matmul(self.read(z), z)  # (B, M, R), now per sample
        if self.aggregation == "mean":
            return self.gate * (z + prompts.mean(dim=1, keepdim=True))
        back = torch.matmul(z, prompts.transpose(-2, -1)) * self.scale  # (B, N, M)
        taken = torch.matmul(back.softmax(dim=-1), prompts)  # M = 0 adds 0 and leaves the prompts in the graph
        return self.gate * (taken if self.aggregation == "prompts_only" else z + taken)


def _hooks_are_allowed() -> bool:
    """Whether this runs outside the transforms of ``torch.func``."""
    try:
        with saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
            return True
    except RuntimeError:
        return False


class DVPTList(nn.ModuleList):
    """
    The DVPT blocks of a transformer, each registered once and shared by up to ``share_every`` consecutive layers of the
    same width.

    Args:
        hidden_sizes: token width ``C`` of every transformer layer.
        share_every: number of consecutive layers that share a block, at least 1.
        start_layer: index of the first layer with a block, in ``[0, number of layers)``. The layers of a frozen
            transformer before it run without a graph.
        bottleneck_size, num_prompts, aggregation, norm, zero_init: see :class:`DVPTBlock`.

    Attributes:
        block_of_layer: for every layer the index of its block, -1 for none.

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
