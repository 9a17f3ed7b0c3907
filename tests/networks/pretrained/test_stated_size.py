# SPDX-License-Identifier: Apache-2.0
"""A 3D backbone whose ``config.json`` states the sides of its images fits networks for other sides."""

from __future__ import annotations

import json
import shutil
import unittest

import numpy as np
from parameterized import parameterized
from safetensors.torch import load_file
from scipy.ndimage import map_coordinates
from utils_data import temporary_folder

from monai_dvpt.networks.nets import DVPTUNETR
from monai_dvpt.networks.pretrained import MRI_VIT_TINY, load_pretrained
from monai_dvpt.utils import InputError

POSITIONS = "patch_embedding.position_embeddings"


def network(size: tuple[int, int, int]) -> DVPTUNETR:
    return DVPTUNETR(1, 2, size, feature_size=4, hidden_size=192, mlp_dim=768, num_heads=3, patch_size=8)


class TestStatedSize(unittest.TestCase):
    def copy(self, config: object | None) -> str:
        folder = temporary_folder(self)
        shutil.copy(MRI_VIT_TINY, folder / "backbone.safetensors")
        if config is not None:
            (folder / "config.json").write_text(json.dumps(config))
        return str(folder / "backbone.safetensors")

    def test_shipped_weights_on_another_grid(self):
        net = network((48, 40, 24))
        load_pretrained(net, MRI_VIT_TINY, verbose=False)
        source = load_file(MRI_VIT_TINY)[POSITIONS][0].double().numpy().reshape(5, 7, 5, 192)
        at = [(np.arange(new) + 0.5) * old / new - 0.5 for new, old in zip((6, 5, 3), (5, 7, 5), strict=True)]
        grid = np.meshgrid(*at, indexing="ij")
        expected = [map_coordinates(source[..., k], grid, order=1, mode="nearest").ravel() for k in range(192)]
        found = net.vit.patch_embedding.position_embeddings.detach()[0].numpy()
        np.testing.assert_allclose(found, np.stack(expected, axis=1), atol=1e-5)

    def test_without_a_statement_the_grid_must_be_that_of_the_network(self):
        path = self.copy(None)
        load_pretrained(network((40, 56, 40)), path, verbose=False)
        with self.assertRaisesRegex(InputError, "175 tokens must be of a grid of equal sides, or config.json .* state"):
            load_pretrained(network((48, 40, 24)), path, verbose=False)

    @parameterized.expand(
        [
            ("other number of tokens", [40, 56, 48], "of 175 tokens"),
            ("too few axes", [40, 56], "of 175 tokens"),
            ("text", ["40", 56, 40], "image_size must be numbers above 0"),
            ("none", [], "image_size must be numbers above 0"),
        ]
    )
    def test_wrong_statement(self, _, size, message):
        with self.assertRaisesRegex(InputError, message):
            load_pretrained(network((40, 56, 40)), self.copy({"image_size": size}), verbose=False)


if __name__ == "__main__":
    unittest.main()
