# SPDX-License-Identifier: Apache-2.0
"""Weights of a 2D transformer in :class:`DVPTViTSegmenter`, in 2D and in 3D with tokens whose sides differ."""

from __future__ import annotations

import unittest
from typing import Any

import torch
from monai.networks.nets import ViT
from parameterized import parameterized
from utils_data import shared_data, temporary_folder
from utils_networks import changed, copy_of_state, randomise
from utils_sources import HEADS, LAYERS, MLP, WIDTH, noise, save, timm_state, timm_tokens

from monai_dvpt.networks.nets import DVPTViTSegmenter
from monai_dvpt.networks.pretrained import load_pretrained

VIT = {"hidden_size": WIDTH, "mlp_dim": MLP, "num_layers": LAYERS, "num_heads": HEADS, "method": "linear"}


class TestPretrained(unittest.TestCase):
    def segmenter(self, img_size: tuple[int, ...], patch_size: Any, **arguments: Any) -> DVPTViTSegmenter:
        dims = len(img_size)
        arguments = {"in_channels": 3, "out_channels": 2, "spatial_dims": dims, **VIT, **arguments}
        return DVPTViTSegmenter(img_size=img_size, patch_size=patch_size, **arguments).eval()

    def test_patch_14(self):
        state = timm_state(grid=(2, 2), patch=(14, 14), layer_scale=True)
        path = save(temporary_folder(self) / "dino.safetensors", state)
        net, image = self.segmenter((28, 28), 14), noise(2, 3, 28, 28)
        report = load_pretrained(net, path, verbose=False)
        self.assertEqual(report.interpolated, {})
        self.assertCountEqual(report.unused, ["head.weight", "head.bias"])
        with torch.no_grad():
            torch.testing.assert_close(net.vit(image)[0], timm_tokens(state, image), rtol=1e-4, atol=1e-5)
        larger = self.segmenter((42, 56), 14)
        report = load_pretrained(larger, path, verbose=False)
        self.assertEqual(list(report.interpolated.values()), ["grid of 2x2 to 3x4 tokens"])

    @parameterized.expand([((14, 14, 1), 3, 2), ((14, 14, 2), 4, 2), ((1, 14, 14), 3, 0), ((14, 3, 14), 6, 1)])
    def test_volume_of_equal_slices_has_the_tokens_of_its_slice(self, patch_size, depth, axis):
        """Softmax over repeated tokens is that over one of each, so this holds after every layer."""
        state = timm_state(cls_token=False, grid=(2, 2), patch=(14, 14))
        path = save(temporary_folder(self) / "vit.safetensors", state)
        sides = [28, 28]
        sides.insert(axis, depth)
        net = self.segmenter(tuple(sides), patch_size, in_channels=1, class_token=False)
        load_pretrained(net, path, inflate_axis=axis, verbose=False)
        grey = noise(2, 1, 28, 28)
        expected = timm_tokens(state, grey.expand(-1, 3, -1, -1))  # (2, 4, C)
        with torch.no_grad():
            found = net.vit(grey.unsqueeze(2 + axis).expand(-1, -1, *sides))[0]
        planes = found.unflatten(1, net.vit.grid).movedim(1 + axis, 0).flatten(2, 3)  # (slices, 2, 4, C)
        self.assertEqual(len(planes), depth // patch_size[axis])
        for plane in planes:
            torch.testing.assert_close(plane, expected, rtol=1e-3, atol=1e-4)

    @parameterized.expand(
        [((16, 16, 1), "14x14 to 16x16"), ((16, 16, 2), "14x14 to 16x16"), ((14, 7, 1), "14x14 to 14x7")]
    )
    def test_other_patch_in_the_plane(self, patch_size, words):
        state = timm_state(grid=(2, 2), patch=(14, 14))
        path = save(temporary_folder(self) / "vit.safetensors", state)
        sides = tuple(side * count for side, count in zip(patch_size, (3, 2, 5), strict=True))
        report = load_pretrained(self.segmenter(sides, patch_size, in_channels=1), path, verbose=False)
        kernel = report.interpolated["vit.patch_embedding.patch_embeddings.weight"]
        self.assertEqual(kernel, f"patch of {words}, 3 to 1 input channels, 2D to 3D along axis 2")
        positions = report.interpolated["vit.patch_embedding.position_embeddings"]
        self.assertEqual(positions, "grid of 2x2 to 3x2 tokens, 2D to 3D along axis 2")
        self.assertCountEqual(report.initialised, ["out.weight", "out.bias"])

    def test_state_of_a_segmenter(self):
        source = randomise(self.segmenter((28, 28), 14, decoder="conv", feature_size=4))
        path = save(temporary_folder(self) / "whole.pt", source.state_dict())
        other = self.segmenter((28, 28), 14, decoder="conv", feature_size=4)
        report = load_pretrained(other, path, verbose=False)
        self.assertEqual((report.initialised, report.unused), ([], []))
        self.assertEqual(changed(copy_of_state(source), other), set())

    def test_of_monai(self):
        torch.manual_seed(0)
        sizes = {name: size for name, size in VIT.items() if name != "method"}
        plain = ViT(3, (28, 42), 14, **sizes, spatial_dims=2, classification=True, qkv_bias=True).eval()
        path = save(temporary_folder(self) / "monai.pt", plain.state_dict())
        net, image = self.segmenter((28, 42), 14), noise(2, 3, 28, 42)
        load_pretrained(net, path, verbose=False)
        with torch.no_grad():
            for found, expected in zip(net.vit(image)[1], plain(image)[1], strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


class TestDINOv2(unittest.TestCase):
    def test_thick_slices(self):
        path = shared_data("weights/dinov2_vits14_fp16.safetensors")
        sizes = {"hidden_size": 384, "mlp_dim": 1536, "num_heads": 6, "method": "linear"}
        net = DVPTViTSegmenter(1, 5, (70, 84, 3), (14, 14, 1), **sizes).eval()
        report = load_pretrained(net, path, verbose=False)
        self.assertCountEqual(report.initialised, ["out.weight", "out.bias"])
        with torch.no_grad():
            logits = net(noise(1, 1, 70, 84, 3))
        self.assertEqual(logits.shape, (1, 5, 70, 84, 3))
        self.assertTrue(torch.isfinite(logits).all())


if __name__ == "__main__":
    unittest.main()
