# SPDX-License-Identifier: Apache-2.0
"""Cost of one DVPT block against the number of tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from benchmarks.measuring import CPU, interleave, spread
from monai_dvpt.networks.blocks import DVPTBlock

from .measure import count_flops, saved_bytes

__all__ = ["BLOCK", "TOKENS", "fit_exponent", "measure_tokens"]

BLOCK = partial(DVPTBlock, 768, 32, 10)
TOKENS = (1_000, 2_500, 6_300, 16_000, 40_000, 100_000)
"""Numbers of tokens, evenly spaced on a logarithmic scale."""


def measure_tokens(
    build: Callable[[], DVPTBlock] = BLOCK,
    tokens: Sequence[int] = TOKENS,
    rounds: int = 7,
    device: torch.device = CPU,
    amp: bool = False,
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """
    Measures forward and backward pass of a block: time, FLOPs, and saved bytes, those of the next layer's normalisation
    included.

    Args:
        build: makes the block.
        tokens: numbers of tokens of one image, at least two.
        rounds: how often each is timed.
        device: where to compute.
        amp: whether to use bfloat16 autocast.

    Returns:
        for each number of tokens "tokens", "seconds", "seconds_min", "seconds_max", "flops", "saved_bytes"
        and "saved_bytes_per_token"; and the exponents with which "seconds", "flops" and "saved_bytes" grow.
    """
    with torch.random.fork_rng(devices=[]), tqdm(total=(rounds + 1) * len(tokens), unit="step") as progress:
        torch.manual_seed(0)
        block = build().to(device)
        inputs = {n: torch.randn(1, n, block.hidden_size).to(device).requires_grad_() for n in tokens}

        def forward(x: torch.Tensor) -> torch.Tensor:
            with torch.autocast(device.type, torch.bfloat16, enabled=amp):
                return block(x)

        def step(x: torch.Tensor, gradient: torch.Tensor) -> None:
            forward(x).backward(gradient)
            block.zero_grad(set_to_none=True)
            x.grad = None

        def into_layer(x: torch.Tensor) -> torch.Tensor:
            return F.layer_norm(forward(x), x.shape[-1:])

        saved = {n: saved_bytes(partial(into_layer, x), block.parameters()) for n, x in inputs.items()}
        steps = {n: partial(step, x, torch.ones_like(x)) for n, x in inputs.items()}
        flops = {n: count_flops(step) for n, step in steps.items()}
        interleave(steps, 1, progress, device)  # warms up
        seconds = interleave(steps, rounds, progress, device)
    results = [
        {
            "tokens": n,
            **spread("seconds", seconds[n]),
            "flops": flops[n],
            "saved_bytes": saved[n],
            "saved_bytes_per_token": saved[n] / n,
        }
        for n in tokens
    ]
    keys = ("seconds", "flops", "saved_bytes")
    return results, {key: fit_exponent(tokens, [row[key] for row in results]) for key in keys}


def fit_exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """The ``p`` of ``y = c x**p``, by least squares of the logarithms."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])
