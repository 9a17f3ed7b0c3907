# SPDX-License-Identifier: Apache-2.0
"""A really pretrained transformer, on photographs."""

from __future__ import annotations

import unittest

import skimage.data
import torch
import torch.nn.functional as F
from parameterized import parameterized
from safetensors.torch import load_file
from utils_data import shared_data
from utils_sources import timm_tokens

from monai_dvpt.networks.nets import DVPTUNETR, DVPTViT
from monai_dvpt.networks.pretrained import load_pretrained

TINY = {"hidden_size": 192, "mlp_dim": 768, "num_heads": 3, "qkv_bias": True}
CAT, ESPRESSO = 27, 183  # of the 200 classes of Tiny ImageNet


def photograph(name: str) -> torch.Tensor:
    """The central square of one of scikit-image's pictures, as the network was trained: (1, 3, 224, 224)."""
    image = torch.from_numpy(getattr(skimage.data, name)()).movedim(-1, 0)[None].float() / 255
    rows, columns = image.shape[2:]
    side = min(rows, columns)
    top, left = (rows - side) // 2, (columns - side) // 2
    image = image[..., top : top + side, left : left + side]
    return (F.interpolate(image, (224, 224), mode="bilinear", antialias=True) - 0.5) / 0.5


class TestViTTiny(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.path = shared_data("weights/vit_tiny_patch16_224_timm.safetensors")
        cls.state = load_file(cls.path)

    def network(self, **arguments) -> DVPTViT:
        net = DVPTViT(3, 224, 16, 192, 768, 12, 3, num_classes=200, spatial_dims=2, **arguments).eval()
        load_pretrained(net, self.path, verbose=False)
        return net

    @parameterized.expand([("chelsea", CAT, 0.85, 0.87), ("coffee", ESPRESSO, 0.99, 1.0)])
    @torch.no_grad()
    def test_photograph(self, name, label, lowest, highest):
        image, net = photograph(name), self.network()
        logits = net(image)
        for eps in (1e-6, 1e-12):
            tokens = timm_tokens(self.state, image, num_heads=3, eps=eps)
            expected = F.linear(tokens[:, 0], self.state["head.weight"], self.state["head.bias"])
            torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
        chance, best = logits.softmax(-1)[0].max(0)
        self.assertEqual(best.item(), label)
        self.assertTrue(lowest < chance.item() < highest, chance)

    @parameterized.expand([(0,), (1,), (2,), (-1,)])
    @torch.no_grad()
    def test_constant_volume_is_its_slice(self, axis):
        net, grey = self.network(), photograph("chelsea")[:, :1]
        sides = [224, 224]
        sides.insert(axis % 3, 32)  # two tokens
        volume = grey.unsqueeze(2 + axis % 3).expand(1, 1, *sides)
        unetr = DVPTUNETR(1, 2, sides, feature_size=4, **TINY).eval()
        report = load_pretrained(unetr, self.path, inflate_axis=axis, verbose=False)
        self.assertIn("cls_token", report.unused)
        # in double precision, as sums of 8192 values in another order differ by 5e-5 in single
        embedded = unetr.vit.patch_embedding.double()(volume.double())  # (1, N, C)
        grid = [side // 16 for side in sides]
        slices = embedded.view(1, *grid, -1).movedim(1 + axis % 3, 0).flatten(2, 3)  # (2, 1, 196, C)
        expected = net.patch_embedding.double()(grey.double().expand(-1, 3, -1, -1))
        for found in slices:
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)

    @torch.no_grad()
    def test_volume_of_one_token_layer_has_the_logits_of_its_slice(self):
        grey = photograph("coffee")[:, :1]
        net = DVPTViT(1, (224, 16, 224), 16, 192, 768, 12, 3, num_classes=200).eval()
        load_pretrained(net, self.path, inflate_axis=1, verbose=False)
        expected = self.network()(grey.expand(-1, 3, -1, -1))
        volume = grey.unsqueeze(3).expand(-1, -1, -1, 16, -1)
        torch.testing.assert_close(net(volume), expected, rtol=0, atol=1e-4)

    @parameterized.expand([(16, (64, 48, 32), "4x3x2"), (8, (32, 40, 24), "4x5x3")])
    @torch.no_grad()
    def test_unetr(self, patch_size, img_size, _):
        net = DVPTUNETR(1, 2, img_size, feature_size=4, patch_size=patch_size, **TINY).eval()
        report = load_pretrained(net, self.path, verbose=False)
        torch.manual_seed(5)
        logits = net(torch.randn(2, 1, *img_size))
        self.assertEqual(logits.shape, (2, 2, *img_size))
        self.assertTrue(torch.isfinite(logits).all())
        self.assertIn("vit.patch_embedding.position_embeddings", report.interpolated)
        self.assertTrue(all(not name.startswith("vit.") for name in report.initialised), report.initialised)

    @torch.no_grad()
    def test_other_image_size_sees_the_same(self):
        net = DVPTViT(3, 160, 16, 192, 768, 12, 3, num_classes=200, spatial_dims=2).eval()
        load_pretrained(net, self.path, verbose=False)
        image = F.interpolate(photograph("coffee"), (160, 160), mode="bilinear", antialias=True)
        self.assertEqual(net(image).argmax().item(), ESPRESSO)

    @torch.no_grad()
    def test_other_patch_size_sees_the_same(self):
        net = DVPTViT(3, 112, 8, 192, 768, 12, 3, num_classes=200, spatial_dims=2).eval()
        load_pretrained(net, self.path, verbose=False)
        image = F.interpolate(photograph("coffee"), (112, 112), mode="bilinear", antialias=True)
        self.assertEqual(net(image).argmax().item(), ESPRESSO)


if __name__ == "__main__":
    unittest.main()
