# SPDX-License-Identifier: Apache-2.0
"""Other image size, patch size, number of channels, one dimension more."""

from __future__ import annotations

import unittest

import torch
import torch.nn.functional as F
from parameterized import parameterized
from utils_data import temporary_folder
from utils_sources import HEADS, MLP, WIDTH, noise, save, timm_state, tokens_of, vit

from monai_dvpt.networks.nets import DVPTUNETR
from monai_dvpt.networks.pretrained import load_pretrained
from monai_dvpt.networks.pretrained.resize import (
    adapt_channels,
    inflate_kernel,
    resize_kernel,
    resize_positions,
    token_grid,
)

KERNEL = "patch_embedding.patch_embeddings.weight"
POSITIONS = "patch_embedding.position_embeddings"
EXACT = {"rtol": 1e-5, "atol": 1e-5}


class TestByHand(unittest.TestCase):
    def test_channels(self):
        kernel = torch.tensor([1.0, 2.0, 6.0]).view(1, 3, 1, 1)
        for channels, expected in (
            (1, [9]),
            (2, [1.5, 3]),
            (3, [1, 2, 6]),
            (4, [0.75, 1.5, 4.5, 0.75]),
            (6, [0.5, 1, 3, 0.5, 1, 3]),
        ):
            self.assertEqual(adapt_channels(kernel, channels).flatten().tolist(), expected)
        self.assertEqual(adapt_channels(torch.full((1, 1, 1, 1), 6.0), 3).flatten().tolist(), [2, 2, 2])

    @parameterized.expand(
        [(0, [[[1, 2], [3, 4]]] * 2), (1, [[[1, 2]] * 2, [[3, 4]] * 2]), (2, [[[1, 1], [2, 2]], [[3, 3], [4, 4]]])]
    )
    def test_inflation(self, axis, expected):
        kernel = torch.tensor([[2.0, 4.0], [6.0, 8.0]]).view(1, 1, 2, 2)
        self.assertEqual(inflate_kernel(kernel, 2, axis)[0, 0].tolist(), expected)

    def test_kernel_from_two_to_four(self):
        # rows of the resizing: 1 0, 3/4 1/4, 1/4 3/4, 0 1; of (3, 8) by its normal equations, times the rows
        basis = torch.tensor([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])
        weights = torch.linalg.solve(basis.T @ basis, torch.tensor([3.0, 8.0]))
        expected = basis @ weights
        found = resize_kernel(torch.tensor([3.0, 8.0]).view(1, 1, 1, 2), (1, 4))
        torch.testing.assert_close(found.flatten(), expected)
        torch.testing.assert_close(expected, torch.tensor([0.75, 1.75, 3.75, 4.75]))

    def test_kernel_from_four_to_two(self):
        found = resize_kernel(torch.tensor([1.0, 2, 3, 5]).view(1, 1, 1, 4), (1, 2))
        torch.testing.assert_close(found.flatten(), torch.tensor([3.0, 8.0]))  # sums, as one pixel stands for two

    def test_positions(self):
        source = torch.arange(4.0).view(1, 4, 1)  # rows 0 1 and 2 3
        self.assertEqual(resize_positions(source, [2, 2], [2, 2], 0).flatten().tolist(), [0, 1, 2, 3])
        self.assertEqual(resize_positions(source, [2, 2], [1, 1], 0).flatten().tolist(), [1.5])
        inflated = {axis: [2, 2] for axis in range(3)}
        for axis in inflated:
            inflated[axis].insert(axis, 3)
        for axis, grid in inflated.items():
            found = resize_positions(source, [2, 2], grid, axis).view(grid)
            for plane in found.unbind(axis):
                self.assertEqual(plane.flatten().tolist(), [0, 1, 2, 3])
        line = resize_positions(torch.tensor([0.0, 4.0]).view(1, 2, 1), [2, 1, 1], [4, 1, 1], 0)
        self.assertEqual(line.flatten().tolist(), [0, 1, 3, 4])  # linear, as in PyTorch without aligned corners

    def test_token_grid(self):
        self.assertEqual([token_grid(196, 2), token_grid(195, 2), token_grid(27, 3)], [[14, 14], None, [3, 3, 3]])


class TestKernel(unittest.TestCase):
    @parameterized.expand([((8, 8), (16, 16)), ((8, 8), (10, 16)), ((16, 16), (24, 17)), ((3, 4, 2), (6, 4, 5))])
    def test_enlarged_patch_has_the_same_token(self, old, new):
        kernel, patch = noise(7, 2, *old).double(), noise(5, 2, *old, seed=3).double()
        mode = {2: "bilinear", 3: "trilinear"}[len(old)]
        enlarged = F.interpolate(patch, new, mode=mode, align_corners=False)
        found = torch.einsum("bc...,oc...->bo", enlarged, resize_kernel(kernel, new))
        torch.testing.assert_close(found, torch.einsum("bc...,oc...->bo", patch, kernel), rtol=0, atol=1e-9)

    def test_halved_patch_has_the_token_of_the_repeated_image(self):
        kernel, patch = noise(7, 2, 16, 16).double(), noise(5, 2, 8, 8, seed=3).double()
        repeated = patch.repeat_interleave(2, 2).repeat_interleave(2, 3)
        found = torch.einsum("bchw,ochw->bo", patch, resize_kernel(kernel, (8, 8)))
        torch.testing.assert_close(found, torch.einsum("bchw,ochw->bo", repeated, kernel), rtol=0, atol=1e-9)

    def test_axes_may_be_resized_together(self):
        kernel, new = noise(2, 1, 4, 2, 3).double(), (2, 5, 4)
        basis = torch.eye(4 * 2 * 3, dtype=torch.float64).reshape(-1, 1, 4, 2, 3)
        resized = F.interpolate(basis, new, mode="trilinear", align_corners=False).flatten(1)  # (old, new)
        expected = kernel.flatten(2) @ torch.linalg.pinv(resized).T
        torch.testing.assert_close(resize_kernel(kernel, new).flatten(2), expected)

    def test_same_size_is_identity(self):
        kernel = noise(7, 3, 4, 5)
        torch.testing.assert_close(resize_kernel(kernel, (4, 5)), kernel)

    @parameterized.expand([(3, 6), (3, 9), (1, 3), (2, 4), (3, 1), (2, 1)])
    def test_equal_channels_stay_equal(self, old, new):
        kernel, patch = noise(7, old, 4, 5), noise(2, 1, 4, 5, seed=3)
        found = torch.einsum("bchw,ochw->bo", patch.expand(-1, new, -1, -1), adapt_channels(kernel, new))
        expected = torch.einsum("bchw,ochw->bo", patch.expand(-1, old, -1, -1), kernel)
        torch.testing.assert_close(found, expected)


class TestLoaded(unittest.TestCase):
    """The same through ``load_pretrained``, with networks around it."""

    def setUp(self):
        self.state = timm_state(grid=(3, 3))
        self.path = save(temporary_folder(self) / "weights.safetensors", self.state)

    def load(self, net, **options):
        return load_pretrained(net, self.path, verbose=False, **options)

    def test_equal_size_is_identity(self):
        net = vit()
        report = self.load(net)
        self.assertTrue(torch.equal(net.state_dict()[POSITIONS], self.state["pos_embed"][:, 1:]))
        self.assertTrue(torch.equal(net.state_dict()[KERNEL], self.state["patch_embed.proj.weight"]))
        self.assertEqual(report.interpolated, {})

    @parameterized.expand([((96, 96), "3x3 to 6x6"), ((32, 32), "3x3 to 2x2"), ((16, 80), "3x3 to 1x5")])
    def test_positions(self, img_size, words):
        net = vit(img_size=img_size)
        report = self.load(net)
        grid = [side // 16 for side in img_size]
        image = self.state["pos_embed"][:, 1:].transpose(1, 2).reshape(1, WIDTH, 3, 3)
        expected = F.interpolate(image, grid, mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
        torch.testing.assert_close(net.state_dict()[POSITIONS], expected)
        self.assertEqual(report.interpolated, {POSITIONS: f"grid of {words} tokens"})
        self.assertEqual(tokens_of(net, noise(1, 3, *img_size)).shape, (1, 1 + grid[0] * grid[1], WIDTH))

    def test_as_many_tokens_on_another_grid(self):
        net = vit(img_size=(16, 144))
        report = self.load(net)
        self.assertEqual(report.interpolated, {POSITIONS: "grid of 3x3 to 1x9 tokens"})

    def test_oblong_source_cannot_be_interpolated(self):
        self.state = timm_state(grid=(2, 3))
        save(self.path, self.state)
        with self.assertRaisesRegex(ValueError, "weights.safetensors: the position embeddings of 6 tokens"):
            self.load(vit())

    @parameterized.expand([(2,), (6,), (1,), (3,)])
    def test_channels(self, channels):
        net, source = vit(in_channels=channels), vit()
        self.load(source)
        report = self.load(net)
        if channels != 3:
            self.assertIn(f"3 to {channels} input channels", report.converted[KERNEL])
        if channels != 2:
            grey = noise(2, 1, 48, 48)
            found = tokens_of(net, grey.expand(-1, channels, -1, -1))
            torch.testing.assert_close(found, tokens_of(source, grey.expand(-1, 3, -1, -1)), **EXACT)

    def test_first_two_of_three_channels(self):
        net = vit(in_channels=2)
        self.load(net)
        torch.testing.assert_close(net.state_dict()[KERNEL], self.state["patch_embed.proj.weight"][:, :2] * 1.5)

    def test_larger_patch_on_enlarged_image(self):
        small, large = vit(), vit(img_size=96, patch_size=32)
        self.load(small)
        report = self.load(large)
        self.assertEqual(report.interpolated, {KERNEL: "patch of 16x16 to 32x32"})
        image = noise(2, 3, 48, 48)
        patches = image.reshape(2, 3, 3, 16, 3, 16).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)  # (18, 3, 16, 16)
        patches = F.interpolate(patches, (32, 32), mode="bilinear")
        enlarged = patches.reshape(2, 3, 3, 3, 32, 32).permute(0, 3, 1, 4, 2, 5).reshape(2, 3, 96, 96)
        torch.testing.assert_close(tokens_of(large, enlarged), tokens_of(small, image), **EXACT)

    def test_smaller_patch_on_reduced_image(self):
        net, half = vit(), vit(img_size=24, patch_size=8)
        self.load(net)
        self.load(half)
        image = noise(2, 3, 24, 24)
        repeated = image.repeat_interleave(2, 2).repeat_interleave(2, 3)
        torch.testing.assert_close(tokens_of(half, image), tokens_of(net, repeated), **EXACT)

    @parameterized.expand([(0,), (1,), (2,), (-1,), (-3,)])
    def test_volume_of_one_token_layer(self, axis):
        """Everything at once: 2D to 3D, three channels to one, patch 16 to 8 (10 along the new axis)."""
        sides, patch = [24, 24], [8, 8]
        sides.insert(axis % 3, 10)
        patch.insert(axis % 3, 10)
        plane, net = vit(), vit(in_channels=1, img_size=sides, patch_size=patch, spatial_dims=3)
        self.load(plane)
        report = self.load(net, inflate_axis=axis)
        grey = noise(2, 1, 24, 24)
        volume = grey.unsqueeze(2 + axis % 3).expand(-1, -1, *sides)
        repeated = grey.repeat_interleave(2, 2).repeat_interleave(2, 3).expand(-1, 3, -1, -1)
        torch.testing.assert_close(tokens_of(net, volume), tokens_of(plane, repeated), **EXACT)
        words = f"patch of 16x16 to 8x8, 3 to 1 input channels, 2D to 3D along axis {axis % 3}"
        self.assertEqual(report.interpolated, {KERNEL: words})
        self.assertEqual(report.converted[POSITIONS], f"2D to 3D along axis {axis % 3}")

    def test_last_axis_by_default(self):
        by_default, last = (vit(in_channels=1, img_size=(48, 48, 32), spatial_dims=3) for _ in range(2))
        self.load(by_default)
        self.load(last, inflate_axis=2)
        self.assertTrue(torch.equal(by_default.state_dict()[KERNEL], last.state_dict()[KERNEL]))
        positions = by_default.state_dict()[POSITIONS].view(3, 3, 2, WIDTH)
        self.assertTrue(torch.equal(positions[:, :, 0], positions[:, :, 1]))

    @parameterized.expand([(3,), (-4,)])
    def test_axis_out_of_range(self, axis):
        with self.assertRaisesRegex(ValueError, rf"inflate_axis must be in \[-3, 3\), got {axis}"):
            self.load(vit(in_channels=1, img_size=(48, 48, 32), spatial_dims=3), inflate_axis=axis)

    def test_volumes_to_volumes(self):
        net = vit(in_channels=1, img_size=(32, 32, 32), spatial_dims=3)
        path = save(self.path.with_name("volume.pt"), net.state_dict())
        other = vit(in_channels=1, img_size=(16, 16, 48), patch_size=(8, 16, 16), spatial_dims=3)
        report = load_pretrained(other, path, verbose=False)
        self.assertEqual(report.interpolated[POSITIONS], "grid of 2x2x2 to 2x1x3 tokens")
        self.assertEqual(report.interpolated[KERNEL], "patch of 16x16x16 to 8x16x16")
        image = net.state_dict()[POSITIONS].transpose(1, 2).reshape(1, WIDTH, 2, 2, 2)
        expected = F.interpolate(image, (2, 1, 3), mode="trilinear").flatten(2).transpose(1, 2)
        torch.testing.assert_close(other.state_dict()[POSITIONS], expected)

    def test_plane_cannot_take_a_volume(self):
        volume = vit(in_channels=1, img_size=(32, 32, 32), spatial_dims=3)
        path = save(self.path.with_name("volume.pt"), volume.state_dict())
        with self.assertRaisesRegex(ValueError, r"volume\.pt: spatial_dims must be 3, got 2"):
            load_pretrained(vit(), path)

    def test_unetr_of_patch_8(self):
        state = timm_state()
        block = {name: tensor for name, tensor in state.items() if name.startswith("blocks.0.")}
        for layer in range(12):
            state |= {name.replace("blocks.0.", f"blocks.{layer}."): tensor.clone() for name, tensor in block.items()}
        save(self.path, state)
        sizes = {"feature_size": 4, "hidden_size": WIDTH, "mlp_dim": MLP, "num_heads": HEADS, "qkv_bias": True}
        net = DVPTUNETR(1, 2, (24, 8, 24), **sizes, patch_size=8, bottleneck_size=5).eval()
        report = self.load(net, inflate_axis=1)
        grey = noise(2, 1, 24, 24)
        x = net.vit.patch_embedding.double()(grey.double().unsqueeze(3).expand(-1, -1, -1, 8, -1))
        repeated = grey.repeat_interleave(2, 2).repeat_interleave(2, 3).expand(-1, 3, -1, -1)
        kernel, bias, positions = (
            state[name].double() for name in ("patch_embed.proj.weight", "patch_embed.proj.bias", "pos_embed")
        )
        expected = F.conv2d(repeated.double(), kernel, bias, 16).flatten(2).mT + positions[:, 1:]
        torch.testing.assert_close(x, expected, **EXACT)
        self.assertEqual(set(report.unused), {"cls_token", "head.weight", "head.bias"})


if __name__ == "__main__":
    unittest.main()
