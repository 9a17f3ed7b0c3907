# SPDX-License-Identifier: Apache-2.0
"""What :class:`DVPTViTSegmenter` has of its own; what it has in common with the others is in ``test_networks.py``."""

from __future__ import annotations

import unittest

import numpy as np
import torch
from parameterized import parameterized
from scipy.ndimage import map_coordinates
from utils_data import temporary_folder
from utils_networks import changed, copy_of_state, randomise, small_image, small_network

from monai_dvpt.networks.adapter import (
    add_adapter,
    build_network,
    load_adapter,
    predict_adapters,
    save_adapter,
    set_adapter,
)
from monai_dvpt.networks.nets import DVPTViTSegmenter
from monai_dvpt.networks.parts import freeze_backbone
from monai_dvpt.utils import InputError

VIT = {"hidden_size": 24, "mlp_dim": 20, "num_layers": 2, "num_heads": 3, "method": "linear"}


def normalised(tokens: torch.Tensor, norm: torch.nn.LayerNorm) -> np.ndarray:
    """Tokens of shape (N, C) after a layer normalisation, in NumPy."""
    x = tokens.double().numpy()
    scale, shift = (tensor.detach().double().numpy() for tensor in (norm.weight, norm.bias))
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + norm.eps) * scale + shift


def interpolated(grid: np.ndarray, sides: tuple[int, ...]) -> np.ndarray:
    """Values of tokens at every voxel, linear between their centres and constant beyond the outer ones."""
    axes = [(np.arange(side) + 0.5) * count / side - 0.5 for side, count in zip(sides, grid.shape, strict=True)]
    return map_coordinates(grid, np.meshgrid(*axes, indexing="ij"), order=1, mode="nearest")


class TestDecoders(unittest.TestCase):
    @parameterized.expand([("segmenter_2d", {}), ("segmenter_2d", {"outputs": None}), ("segmenter_3d", {})])
    def test_linear_by_hand(self, case, arguments):
        net = small_network(case, **arguments).eval()
        image = small_image(net)
        with torch.no_grad():
            _, states = net.vit.forward_features(image)
            found = net(image)[0].numpy()
        layers = net.arguments["outputs"] or [4]
        tokens = np.concatenate([normalised(states[layer][0], net.vit.norm) for layer in layers], axis=1)
        grid = [side // step for side, step in zip(image.shape[2:], (14, 14, 1), strict=False)]
        tokens = tokens[-int(np.prod(grid)) :]  # (N, C), without a class token
        weight, bias = net.out.weight.detach().flatten(1).double().numpy(), net.out.bias.detach().double().numpy()
        self.assertEqual(weight.shape, (3, 24 * len(layers)))
        logits = (tokens @ weight.T + bias).T.reshape(3, *grid)
        expected = np.stack([interpolated(each, tuple(image.shape[2:])) for each in logits])
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)

    @parameterized.expand(
        [
            ((28, 42), 14, (8, 12)),
            ((32, 48), (16, 2), (8, 48)),  # the second axis doubles once
            ((4, 6), 1, (4, 6)),
            ((6, 9), 3, (4, 6)),  # from tokens of 3 pixels to 1.5, and no finer than the image
            ((28, 42, 3), (14, 14, 1), (8, 12, 3)),
            ((32, 16, 4), (16, 8, 2), (8, 8, 4)),
        ]
    )
    def test_no_grid_finer_than_the_image(self, img_size, patch_size, expected):
        net = DVPTViTSegmenter(
            2, 3, img_size, patch_size, **VIT, spatial_dims=len(img_size), decoder="conv", feature_size=4
        )
        shapes: list[tuple[int, ...]] = []
        net.out.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape)))
        self.assertEqual(net(torch.zeros(2, 2, *img_size)).shape, (2, 3, *img_size))
        self.assertEqual(shapes, [(2, 3, *expected)])

    def test_conv_reads_beyond_a_token(self):
        for case, others in (("segmenter_2d", False), ("segmenter_2d_conv", True)):
            net = small_network(case).eval()
            features = torch.zeros(1, net.arguments["hidden_size"] * len(net.vit.outputs), 4, 4)
            moved = features.clone()
            moved[..., 0, 0] += 1
            with torch.no_grad():
                moved, still = (net.out(net.decoder(each)) for each in (moved, features))
            size = still.shape[-1] // 4
            elsewhere = (moved != still)[..., size:, size:].any()
            self.assertEqual(bool(elsewhere), others)


class TestAdapters(unittest.TestCase):
    def test_adapters_with_different_decoders(self):
        net = freeze_backbone(small_network("segmenter_2d_conv")).eval()
        image, expected = small_image(net), {}
        for name, arguments in (
            ("default", {}),
            ("linear", {"decoder": "linear", "out_channels": 5}),
            ("wide", {"decoder": "conv", "feature_size": 6}),
        ):
            if arguments:
                randomise(add_adapter(net, name, **arguments).out, 7)
            with torch.no_grad():
                expected[name] = net(image)
        self.assertEqual(expected["linear"].shape[1], 5)
        for name in ("default", "linear", "wide", "linear", "default"):
            set_adapter(net, name)
            self.assertEqual(len(net.decoder) == 0, name == "linear")
            with torch.no_grad():
                self.assertTrue(torch.equal(net(image), expected[name]))
        with torch.no_grad():
            answers = predict_adapters(net, image)
        for name, answer in answers.items():
            torch.testing.assert_close(answer, expected[name], rtol=1e-5, atol=1e-5)
        with self.assertRaisesRegex(ValueError, r"arguments of an adapter must be of .*got \['outputs'\]"):
            add_adapter(net, "more", outputs=(1, 4))

    def test_file_of_another_decoder(self):
        net = small_network("segmenter_2d_conv").eval()
        path = save_adapter(add_adapter(net, "linear", decoder="linear"), temporary_folder(self) / "a.safetensors")
        self.assertEqual(len(build_network(path).decoder), 0)
        other = small_network("segmenter_2d_conv").eval()
        before = copy_of_state(other)
        with self.assertRaisesRegex(InputError, "decoder must be that of the network, conv, got linear"):
            load_adapter(other, path)
        self.assertEqual(changed(before, other), set())
        image = small_image(net)
        with torch.no_grad():
            self.assertTrue(torch.equal(load_adapter(other, path, name="linear")(image), net(image)))


if __name__ == "__main__":
    unittest.main()
