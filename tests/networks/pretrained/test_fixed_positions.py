# SPDX-License-Identifier: Apache-2.0
"""Fixed positions tell the grid that they are of, so that the shipped weights fit other windows."""

from __future__ import annotations

import unittest

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from scipy.ndimage import map_coordinates
from utils_data import temporary_folder

from monai_dvpt.networks.nets import DVPTUNETR
from monai_dvpt.networks.pretrained import MRI_VIT_TINY, load_pretrained
from monai_dvpt.utils import InputError

POSITIONS = "patch_embedding.position_embeddings"


def network(size: tuple[int, int, int]) -> DVPTUNETR:
    return DVPTUNETR(1, 2, size, feature_size=4, hidden_size=192, mlp_dim=768, num_heads=3, patch_size=8)


class TestGrid(unittest.TestCase):
    def test_shipped_weights_on_another_grid(self):
        net = network((48, 40, 24))
        load_pretrained(net, MRI_VIT_TINY, verbose=False)
        source = load_file(MRI_VIT_TINY)[POSITIONS][0].double().numpy().reshape(5, 7, 5, 192)
        at = [(np.arange(new) + 0.5) * old / new - 0.5 for new, old in zip((6, 5, 3), (5, 7, 5), strict=True)]
        grid = np.meshgrid(*at, indexing="ij")
        expected = [map_coordinates(source[..., k], grid, order=1, mode="nearest").ravel() for k in range(192)]
        found = net.vit.patch_embedding.position_embeddings.detach()[0].numpy()
        np.testing.assert_allclose(found, np.stack(expected, axis=1), atol=1e-5)

    def test_learned_positions_do_not_tell_their_grid(self):
        tensors = load_file(MRI_VIT_TINY)
        tensors[POSITIONS] = tensors[POSITIONS] + torch.randn_like(tensors[POSITIONS]) / 10
        path = temporary_folder(self) / "backbone.safetensors"
        save_file(tensors, path)
        load_pretrained(network((40, 56, 40)), path, verbose=False)
        with self.assertRaisesRegex(InputError, "175 tokens must be of a grid of equal sides, or sines and cosines"):
            load_pretrained(network((48, 40, 24)), path, verbose=False)


if __name__ == "__main__":
    unittest.main()
