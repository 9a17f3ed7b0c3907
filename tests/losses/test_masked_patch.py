# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import unittest

import numpy as np
import torch
from monai.networks.blocks import PatchEmbeddingBlock
from monai.networks.nets import MaskedAutoEncoderViT
from parameterized import parameterized

from monai_dvpt.losses import MaskedPatchLoss

CASES = [((4, 6), (2, 3)), ((6, 4), (3, 2)), ((2, 3, 4), (3, 4, 2)), ((4, 1, 3), (2, 5, 3))]  # patch, grid
BATCH, CHANNELS = 2, 3


def patches_of(image: np.ndarray, patch: tuple[int, ...], grid: tuple[int, ...]) -> np.ndarray:
    """(B, N, patch volume x channels): patches, and voxels within one, in C order; channels last."""
    out = []
    for sample in image:
        for index in np.ndindex(*grid):
            window = tuple(slice(i * side, (i + 1) * side) for i, side in zip(index, patch, strict=True))
            out.append(np.moveaxis(sample[(slice(None), *window)], 0, -1).ravel())
    return np.array(out).reshape(len(image), np.prod(grid), -1)


def example(patch: tuple[int, ...], grid: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Image, prediction and mask."""
    torch.manual_seed(0)
    image = torch.randn(BATCH, CHANNELS, *(p * g for p, g in zip(patch, grid, strict=True)), dtype=torch.float64)
    patches = torch.randn(BATCH, int(np.prod(grid)), int(np.prod(patch)) * CHANNELS, dtype=torch.float64)
    mask = torch.arange(BATCH * patches.shape[1]).reshape(BATCH, -1) % 3 > 0
    return 5 * image + 2, patches, mask.int()


class TestMaskedPatchLoss(unittest.TestCase):
    @parameterized.expand([(*case, floor) for case in CASES for floor in (1e-2, 0.5)])
    def test_equals_numpy(self, patch, grid, variance_floor):
        image, patches, mask = example(patch, grid)
        target = patches_of(image.numpy(), patch, grid)
        target = target - target.mean(-1, keepdims=True)
        target /= np.sqrt((target**2).mean(-1, keepdims=True) + variance_floor)
        expected = ((patches.numpy() - target) ** 2).mean(-1)[mask.numpy() == 1].mean()
        loss = MaskedPatchLoss(patch, variance_floor)((patches, mask), image)
        self.assertAlmostEqual(loss.item(), expected, places=12)

    @parameterized.expand(CASES)
    def test_order_is_that_of_patch_embedding(self, patch, grid):
        image, _, mask = example(patch, grid)
        embedding = PatchEmbeddingBlock(CHANNELS, image.shape[2:], patch, 6, 2, "perceptron", spatial_dims=len(patch))
        target = embedding.patch_embeddings[0](image)
        variance, mean = torch.var_mean(target, dim=-1, keepdim=True, correction=0)
        loss = MaskedPatchLoss(patch, variance_floor=0.0)(((target - mean) / variance.sqrt(), mask), image)
        self.assertLess(loss.item(), 1e-24)

    def test_visible_patches_do_not_count(self):
        image, patches, mask = example(*CASES[2])
        loss = MaskedPatchLoss(CASES[2][0])
        expected = loss((patches, mask), image)
        self.assertEqual(loss((patches + 9 * (1 - mask)[..., None], mask), image), expected)
        self.assertNotEqual(loss((patches + 9 * mask[..., None], mask), image), expected)

    def test_brightness_and_contrast_do_not_count(self):
        image, patches, mask = example(*CASES[2])
        loss = MaskedPatchLoss(CASES[2][0], variance_floor=0.0)
        self.assertAlmostEqual(loss((patches, mask), 3 * image - 7).item(), loss((patches, mask), image).item(), 10)

    def test_flat_image(self):
        image, patches, mask = example(*CASES[2])
        loss = MaskedPatchLoss(CASES[2][0])((patches, mask), torch.full_like(image, 4.0))
        self.assertAlmostEqual(loss.item(), patches[mask == 1].square().mean().item(), 12)

    def test_output_of_masked_autoencoder(self):
        torch.manual_seed(0)
        sizes = {"hidden_size": 12, "mlp_dim": 10, "num_layers": 2, "num_heads": 3}
        decoder = {"decoder_hidden_size": 18, "decoder_mlp_dim": 14, "decoder_num_layers": 1, "decoder_num_heads": 2}
        net = MaskedAutoEncoderViT(2, (8, 18, 8), (4, 6, 2), **sizes, **decoder)
        loss = MaskedPatchLoss((4, 6, 2))(net(torch.randn(1, 2, 8, 18, 8)), torch.randn(1, 2, 8, 18, 8))
        loss.backward()
        self.assertTrue(torch.isfinite(loss))
        self.assertGreater(net.patch_embedding.patch_embeddings.weight.grad.abs().max(), 0)

    @parameterized.expand([((4,),), ((2, 2, 2, 2),), ((),)])
    def test_bad_patch_size(self, patch):
        with self.assertRaises(ValueError) as caught:
            MaskedPatchLoss(patch)
        self.assertEqual(str(caught.exception), f"patch_size must have 2 or 3 sides, got {patch}.")


if __name__ == "__main__":
    unittest.main()
