# SPDX-License-Identifier: Apache-2.0
"""The head that sees what prompts read, against its formula in NumPy."""

from __future__ import annotations

import unittest

import numpy as np
import torch
from parameterized import parameterized

from monai_dvpt.networks.blocks import PromptHead
from monai_dvpt.networks.nets import DVPTViT
from monai_dvpt.networks.parts import freeze_backbone


def normalised(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def gelu(x: np.ndarray) -> np.ndarray:
    return np.vectorize(lambda v: v * 0.5 * (1 + torch.erf(torch.tensor(v / 2**0.5)).item()))(x)


class TestPromptHead(unittest.TestCase):
    @parameterized.expand([(0,), (1,), (3,)])
    def test_equals_formula(self, num_prompts):
        torch.manual_seed(0)
        head = PromptHead(12, 4, [6, 6], num_prompts, bottleneck_size=5).double()
        pooled, tokens = torch.randn(2, 12).double(), [torch.randn(2, 7, 6).double() for _ in range(2)]
        seen = [normalised(pooled.numpy())]
        for x, reader in zip(tokens, head.readers, strict=False):
            z = gelu(normalised(x.numpy()) @ reader.down.weight.detach().numpy().T + reader.down.bias.detach().numpy())
            scores = reader.prompts.detach().numpy() @ z.transpose(0, 2, 1) / 5**0.5
            weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
            seen.append(normalised(weights @ z).reshape(2, -1))
        expected = np.concatenate(seen, axis=1) @ head.weight.detach().numpy().T + head.bias.detach().numpy()
        np.testing.assert_allclose(head(pooled, tokens).detach().numpy(), expected, rtol=1e-6, atol=1e-9)

    def test_without_prompts_it_is_a_linear_head(self):
        """The fair probe: the same normalised features, and nothing else that is trained."""
        head = PromptHead(12, 4, [6, 6], num_prompts=0)
        shapes = {name: tuple(value.shape) for name, value in head.named_parameters()}
        self.assertEqual(shapes, {"weight": (4, 12), "bias": (4,)})

    def test_network_without_prompts_trains(self):
        sizes = {"img_size": 32, "patch_size": 16, "hidden_size": 24, "mlp_dim": 48, "num_layers": 3, "num_heads": 3}
        net = DVPTViT(
            3, num_classes=5, spatial_dims=2, pooling=("prompts", {"num_prompts": 0}), method="linear", **sizes
        )
        freeze_backbone(net, ["method", "head"])
        net(torch.randn(2, 3, 32, 32)).sum().backward()
        trained = {name for name, value in net.named_parameters() if value.requires_grad}
        self.assertEqual(trained, {"classification_head.weight", "classification_head.bias"})
        self.assertEqual(trained, {name for name, value in net.named_parameters() if value.grad is not None})

    @parameterized.expand([("num_prompts", -1), ("bottleneck_size", 1)])
    def test_bad_argument(self, name, value):
        with self.assertRaisesRegex(ValueError, f"{name} must be .*{value}"):
            PromptHead(12, 4, [6, 6], **{name: value})


if __name__ == "__main__":
    unittest.main()
