# SPDX-License-Identifier: Apache-2.0
"""Numbers of trained parameters, by the definitions of the papers."""

from __future__ import annotations

import unittest

import torch
from parameterized import parameterized

from monai_dvpt.networks.nets import DVPTViT
from monai_dvpt.networks.parts import count_parameters, tune

LAYERS = 12
CLASSES = 100
IN_CHANNELS = 3
PATCH = 16
TOKENS = (224 // PATCH) ** 2
VITS = {"tiny": 192, "base": 768}  # widths


def formula(method: str, width: int) -> int:
    """Parameters that a method trains of a ViT, its head aside."""
    mlp = 4 * width
    biases = 3 * width + width + mlp + width + 2 * width  # of qkv, out_proj, linear1, linear2 and two norms
    outside = width + width  # channels of patch embedding and last norm
    weights = 3 * width**2 + width**2 + 2 * mlp * width + 2 * width  # of a layer, the norms' included
    embedding = IN_CHANNELS * PATCH**2 * width + (TOKENS + 1) * width  # projection, positions and class token
    return {
        "full": embedding + LAYERS * (weights + biases) + width + outside,
        "linear": 0,
        "bitfit": LAYERS * biases + outside,
        "vpt_shallow": 50 * width,
        "vpt_deep": LAYERS * 50 * width,
        "adaptformer": LAYERS * (2 * 64 * width + 64 + width),
        "lora": LAYERS * 2 * 2 * 8 * width,
        "ssf": 2 * (LAYERS * biases + outside),
    }[method]


# of ViT-B/16, in millions, head aside; "full" lacks the position of the class token, which MONAI does not have
MAGNITUDES = {
    "full": 85.798,
    "linear": 0.0,
    "bitfit": 0.103,
    "vpt_shallow": 0.038,
    "vpt_deep": 0.461,
    "adaptformer": 1.190,
    "lora": 0.295,
    "ssf": 0.206,  # 0.28 M with the head of 100 classes, as in the paper's table for CIFAR-100
}


def vit(width: int) -> DVPTViT:
    with torch.device("meta"):
        return DVPTViT(
            IN_CHANNELS,
            224,
            PATCH,
            hidden_size=width,
            mlp_dim=4 * width,
            num_layers=LAYERS,
            num_heads=width // 64,
            num_classes=CLASSES,
            spatial_dims=2,
        )


class TestCounts(unittest.TestCase):
    @parameterized.expand([(method, size) for method in MAGNITUDES for size in VITS])
    def test_vit(self, method, size):
        width = VITS[size]
        counts = count_parameters(tune(vit(width), method))
        head = CLASSES * (width + 1)
        self.assertEqual(counts["method"]["trainable"], formula(method, width))
        self.assertEqual(counts["backbone"]["trainable"], 0)
        self.assertEqual(counts["head"]["trainable"], head)
        self.assertEqual(counts["network"]["trainable"], formula(method, width) + head)
        if size == "base":
            self.assertAlmostEqual(counts["method"]["trainable"] / 1e6, MAGNITUDES[method], delta=6e-4)

    @parameterized.expand([("dvpt", 11), ("bottleneck", 0)])
    def test_dvpt(self, method, prompts):
        options = {"num_prompts": prompts} if method == "dvpt" else {}
        counts = count_parameters(tune(vit(768), method, bottleneck_size=32, share_every=3, **options))
        block = 768 * 32 + 32 + prompts * 32 + 1 + 32 * 768 + 768  # down, prompts, gate, up
        self.assertEqual(counts["method"]["trainable"], 4 * block)
        self.assertEqual(counts["backbone"]["trainable"], 0)

    def test_no_bias(self):
        """Without a bias of query, key and value, BitFit trains three widths less in every layer."""
        with torch.device("meta"):
            net = DVPTViT(1, 32, 16, hidden_size=48, mlp_dim=80, num_heads=3, num_layers=5, qkv_bias=False)
        counts = count_parameters(tune(net, "bitfit"))
        self.assertEqual(counts["method"]["trainable"], 5 * (48 + 80 + 48 + 2 * 48) + 2 * 48)


if __name__ == "__main__":
    unittest.main()
