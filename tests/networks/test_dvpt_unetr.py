# SPDX-License-Identifier: Apache-2.0
"""What :class:`DVPTUNETR` has of its own; what it has in common with the others is in ``test_networks.py``."""

from __future__ import annotations

import unittest
from contextlib import nullcontext

import torch
from parameterized import parameterized
from utils_networks import small_image, small_unetr

from monai_dvpt.networks.adapter import disable_adapter


class TestDVPTUNETR(unittest.TestCase):
    @parameterized.expand([(2, (24, 40), (3, 5)), (3, (8, 24, 16), (1, 3, 2))])
    def test_patch_size_8(self, spatial_dims, img_size, grid):
        net = small_unetr(spatial_dims=spatial_dims, img_size=img_size, patch_size=8)
        self.assertEqual(net(small_image(net, batch=2)).shape, (2, 3, *img_size))
        self.assertEqual(net.vit.patch_embedding(small_image(net)).shape, (1, torch.tensor(grid).prod(), 24))
        self.assertEqual(tuple(net.feat_size), grid)
        net(small_image(net)).sum().backward()
        unused = {name for name, parameter in net.named_parameters() if parameter.grad is None}
        self.assertTrue(all("norm_cross_attn" in name for name in unused), unused)

    @parameterized.expand([(2, (24, 40)), (3, (8, 24, 16))])
    def test_patch_size_8_token_sees_its_own_voxels(self, spatial_dims, img_size):
        net = small_unetr(spatial_dims=spatial_dims, img_size=img_size, patch_size=8)
        image = small_image(net)
        moved = image.clone()
        moved[..., 8:16] += 1  # the second token along the last axis
        before, after = (net.proj_feat(net.vit.patch_embedding(x)) for x in (image, moved))
        differs = (before != after).flatten(0, -2).any(dim=0)
        self.assertEqual(differs.nonzero().flatten().tolist(), [1])

    def test_torchscript_with_layers_that_have_no_dvpt(self):
        net = small_unetr(start_layer=2).eval()
        image, outputs = small_image(net), []
        with torch.no_grad():
            for enabled in (True, False):
                with nullcontext() if enabled else disable_adapter(net):
                    outputs.append(net(image))
                    self.assertTrue(torch.equal(torch.jit.script(net)(image), outputs[-1]))
        self.assertFalse(torch.equal(*outputs))


if __name__ == "__main__":
    unittest.main()
