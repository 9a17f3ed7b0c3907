# SPDX-License-Identifier: Apache-2.0
"""Attentions with relative positions equal their formulas, pair by pair, and store no matrix of all pairs."""

from __future__ import annotations

import itertools
import math
import unittest

import torch
from parameterized import parameterized
from utils_networks import randomise

from monai_dvpt.networks.blocks import OffsetSABlock, RelativeSABlock
from monai_dvpt.networks.encoders.windows import join_windows, split_windows

WIDTH, HEADS = 12, 3


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def by_hand(block: torch.nn.Module, x: torch.Tensor, grid: tuple[int, ...]) -> torch.Tensor:
    """Attention with a bias for every pair of tokens, each from the definition."""
    answers = []
    places = list(itertools.product(*map(range, grid)))
    for tokens in x:
        q, k, v = (tokens @ block.qkv.weight.T + block.qkv.bias).reshape(len(tokens), 3, HEADS, -1).unbind(1)
        heads = []
        for head in range(HEADS):
            rows = []
            for i, at in enumerate(places):
                row = []
                for j, to in enumerate(places):
                    logit = q[i, head] @ k[j, head] / math.sqrt(q.shape[-1])
                    if isinstance(block, OffsetSABlock):
                        distance = abs(at[0] - to[0]) * grid[1] + abs(at[1] - to[1])
                        logit = logit + block.attention_biases[head, distance]
                    else:
                        for axis, name in enumerate("dhw"[-len(grid) :]):
                            table = getattr(block, f"rel_pos_{name}")
                            logit = logit + q[i, head] @ table[at[axis] - to[axis] + grid[axis] - 1]
                    row.append(logit)
                rows.append(torch.stack(row))
            heads.append(torch.stack(rows).softmax(-1) @ v[:, head])
        answers.append(torch.cat(heads, dim=-1) @ block.out_proj.weight.T + block.out_proj.bias)
    return torch.stack(answers)


class TestAttention(unittest.TestCase):
    @parameterized.expand(
        [
            ("2d", RelativeSABlock(WIDTH, HEADS, (2, 3)), (2, 3)),
            ("3d", RelativeSABlock(WIDTH, HEADS, (2, 1, 3)), (2, 1, 3)),
            ("offsets", OffsetSABlock(WIDTH, HEADS, 3), (3, 3)),
        ]
    )
    def test_values_and_gradients(self, _, block, grid):
        block, x = randomise(block).double(), noise(2, math.prod(grid), WIDTH).requires_grad_()
        weights = noise(2, math.prod(grid), WIDTH)
        inputs = [x, *block.parameters()]
        found, expected = block(x), by_hand(block, x, grid)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
        gradients = [torch.autograd.grad((y * weights).sum(), inputs) for y in (found, expected)]
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)

    def test_no_matrix_of_pairs_is_stored(self):
        block, saved = randomise(RelativeSABlock(WIDTH, HEADS, (20, 30))), [0]

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            saved.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            block(torch.randn(1, 600, WIDTH, requires_grad=True)).sum().backward()
        self.assertGreater(max(saved), 0)
        self.assertLess(max(saved), 600 * 600 / 2)


class TestWindows(unittest.TestCase):
    @parameterized.expand([((4, 6), 2), ((5, 7), 3), ((2, 3), 4), ((3, 4, 5), 2), ((2, 2, 2), 3)])
    def test_every_token_in_its_window(self, grid, window):
        tokens = noise(2, *grid, 5)
        windows = split_windows(tokens, window)
        counts = [-(-side // window) for side in grid]
        self.assertEqual(windows.shape, (2 * math.prod(counts), window ** len(grid), 5))
        for sample, *place in itertools.product(range(2), *map(range, grid)):
            index, inside = sample, 0
            for side, count in zip(place, counts, strict=True):
                index, inside = index * count + side // window, inside * window + side % window
            self.assertTrue(torch.equal(windows[index, inside], tokens[(sample, *place)]))
        torch.testing.assert_close(windows.abs().sum(), tokens.abs().sum())  # all else is zero
        self.assertTrue(torch.equal(join_windows(windows, window, list(grid)), tokens))


if __name__ == "__main__":
    unittest.main()
