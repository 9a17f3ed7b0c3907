# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import itertools
import unittest
from typing import Any

import nibabel as nib
import numpy as np
import torch
import torch.nn as nn
from matplotlib.backends.backend_agg import FigureCanvasAgg
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from monai.transforms import Flip
from parameterized import parameterized
from scipy.ndimage import map_coordinates
from scipy.special import erf, softmax
from utils_data import AFFINE_RAS
from utils_networks import NETWORKS, changed, copy_of_state, new_network, small_image, small_network

from monai_dvpt.inferers import AutocastInferer
from monai_dvpt.networks.adapter import disable_adapter
from monai_dvpt.networks.parts import freeze_backbone, tune
from monai_dvpt.visualize import PromptAttention, plot_prompt_attention, prompt_attention_maps

CASES = [(name,) for name in NETWORKS]
ONE_OF_EACH = [("vit_both_2d",), ("unetr_2d",), ("swin_unetr_2d",), ("swin_classifier_2d",)]


def transformer_layers(net: Any) -> list[nn.Module]:
    """The transformer layers, in order."""
    if hasattr(net, "swinViT"):
        stages = (getattr(net.swinViT, f"layers{stage}")[0] for stage in (1, 2, 3, 4))
        return [block for stage in stages for block in stage.blocks]
    roots = [getattr(net, name) for name in ("vit", "image_encoder") if hasattr(net, name)]
    return list((roots or [net])[0].blocks)


def by_hand(net: Any, image: torch.Tensor, layer: int) -> np.ndarray:
    """Attention over the output of MONAI's layer, of shape (B, M, N), in NumPy."""
    seen: list[torch.Tensor] = []
    hook = transformer_layers(net)[layer].register_forward_hook(lambda *args: seen.append(args[2]))
    with torch.no_grad():
        net.eval()(image)
    hook.remove()
    x = seen[0].flatten(1, -2).double().numpy()  # (B, N, C)
    if net.method.name == "dvpt":
        block = net.encoder().dvpt[net.encoder().dvpt_of_layer[layer]]
    else:
        block = net.classification_head.readers[[0, 2, 4].index(layer)]
    weight, bias, prompts = (t.detach().double().numpy() for t in (block.down.weight, block.down.bias, block.prompts))
    x = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-5)
    z = x @ weight.T + bias
    z = z * (1 + erf(z / np.sqrt(2))) / 2  # (B, N, R)
    return softmax(prompts @ z.transpose(0, 2, 1) / np.sqrt(z.shape[-1]), axis=-1)


def interpolate(tokens: np.ndarray, size: list[int], spatial: torch.Size) -> np.ndarray:
    """Values of one map of tokens at every voxel, linear between their centres and constant beyond the outer ones."""
    axes = [(np.arange(side) + 0.5) / step - 0.5 for side, step in zip(spatial, size, strict=True)]
    return map_coordinates(tokens, np.meshgrid(*axes, indexing="ij"), order=1, mode="nearest")


class TestPromptAttention(unittest.TestCase):
    @parameterized.expand(CASES)
    def test_by_hand_after_every_layer(self, name):
        net = small_network(name)
        image = small_image(net, batch=2)
        for layer in range(len(net.encoder().dvpt_of_layer)):
            maps = PromptAttention(net, layer)(image)
            self.assertEqual((tuple(maps.shape), maps.dtype), ((2, 7, *image.shape[2:]), torch.float32))
            size = net.encoder().token_size(layer)
            grid = [side // step for side, step in zip(image.shape[2:], size, strict=True)]
            attention = by_hand(net, image, layer)
            relative = attention * attention.shape[-1]
            names = ("cls_token", "register_tokens")
            others = sum(getattr(net.encoder(), each).shape[1] for each in names if hasattr(net.encoder(), each))
            self.assertEqual(attention.shape[-1] - np.prod(grid), others)
            for case, prompt in np.ndindex(2, 7):
                tokens = relative[case, prompt, -np.prod(grid) :].reshape(grid)  # without class and register tokens
                expected = interpolate(tokens, size, image.shape[2:])
                np.testing.assert_allclose(maps[case, prompt].numpy(), expected, rtol=1e-4)
            if not others:
                np.testing.assert_allclose(maps.flatten(2).mean(dim=-1).numpy(), 1, atol=1e-4)
            self.assertGreater(np.ptp(maps.numpy()), 0.01)
        torch.testing.assert_close(PromptAttention(net)(image), maps)  # the last layer

    def test_prompts_of_the_head_by_hand(self):
        net = tune(small_network("vit_prompts_2d"), "linear")  # every second of five layers, up to the last
        image = small_image(net, batch=2)
        for layer in (0, 2, 4):
            relative = by_hand(net, image, layer) * 7  # six tokens and the class token
            maps = PromptAttention(net, layer)(image)
            for case, prompt in np.ndindex(2, 4):
                expected = interpolate(relative[case, prompt, 1:].reshape(2, 3), [16, 16], image.shape[2:])
                np.testing.assert_allclose(maps[case, prompt].numpy(), expected, rtol=1e-4)
        with self.assertRaisesRegex(ValueError, r"^layer must be one of \[0, 2, 4\], .*, got 3\.$"):
            PromptAttention(net, 3)

    def test_negative_layers_and_one_block_for_several(self):
        net = small_network("unetr_2d")  # 12 layers, 3 to a block
        image = small_image(net)
        maps = [PromptAttention(net, layer)(image) for layer in range(12)]
        for layer in range(12):
            torch.testing.assert_close(PromptAttention(net, layer - 12)(image), maps[layer])
        for a, b in itertools.combinations(maps, 2):
            self.assertFalse(torch.equal(a, b))

    def test_tokens_beyond_the_edge(self):
        """Swin pads an odd grid: the last token stands for what lies outside too."""
        net = small_network("swin_classifier_2d", patch_size=3, window_size=4)
        image = torch.randn(1, 2, 243, 243, generator=torch.Generator().manual_seed(0))
        attention = by_hand(net, image, 5)[0, 0].reshape(21, 21) * 21**2  # third stage: 81 tokens, 41, 21
        maps = PromptAttention(net, 5)(image)
        self.assertEqual((net.encoder().token_size(5), tuple(maps.shape)), ([12, 12], (1, 7, 243, 243)))
        expected = interpolate(attention, [12, 12], image.shape[2:])
        np.testing.assert_allclose(maps[0, 0].numpy(), expected, rtol=1e-4)

    @parameterized.expand(ONE_OF_EACH)
    def test_network_is_unchanged(self, name):
        net = freeze_backbone(small_network(name)).train()
        net.encoder().dvpt[0].eval()  # a mode that no call of train() would restore
        image = small_image(net)
        state, modes = copy_of_state(net), [module.training for module in net.modules()]
        attributes = {key: value for key, value in vars(net).items() if not key.startswith("_")}
        hooks = [dict(module._forward_pre_hooks) | dict(module._forward_hooks) for module in net.modules()]
        maps = PromptAttention(net)(image)
        self.assertFalse(maps.requires_grad)
        torch.testing.assert_close(PromptAttention(net)(image), maps)  # eval mode: no dropout
        broken = small_image(net)[:, :1]
        with self.assertRaises((RuntimeError, ValueError)):
            PromptAttention(net)(broken)
        self.assertEqual(changed(state, net), set())
        self.assertEqual([module.training for module in net.modules()], modes)
        self.assertEqual({key: value for key, value in vars(net).items() if not key.startswith("_")}, attributes)
        self.assertEqual([{**m._forward_pre_hooks, **m._forward_hooks} for m in net.modules()], hooks)
        net(image).sum().backward()  # and it can be trained

    @parameterized.expand(ONE_OF_EACH)
    def test_autocast_inference_mode_and_checkpointing(self, name):
        net = small_network(name)
        image = small_image(net)
        maps = PromptAttention(net)(image)
        checkpointed = small_network(name, use_checkpoint=True)
        torch.testing.assert_close(PromptAttention(checkpointed)(image), maps)
        with torch.inference_mode():
            torch.testing.assert_close(PromptAttention(net)(image), maps)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = PromptAttention(net)(image)
        self.assertEqual(mixed.dtype, torch.float32)
        torch.testing.assert_close(mixed, maps, atol=0.1, rtol=0.05)

    def test_other_number_types(self):
        net = small_network("unetr_2d")
        image = small_image(net)
        maps = PromptAttention(net)(image)
        for dtype, tolerance in ((torch.float64, 1e-4), (torch.bfloat16, 0.1)):
            found = PromptAttention(copy.deepcopy(net).to(dtype))(image.to(dtype))
            self.assertEqual(found.dtype, torch.float32)
            torch.testing.assert_close(found, maps, atol=tolerance, rtol=tolerance)

    def test_refusals(self):
        net = new_network("unetr_2d", start_layer=4)
        for layer, message in (
            (12, r"layer must be in \[-12, 12\), got 12"),
            (-13, r"layer must be in \[-12, 12\), got -13"),
            (3, "layer must be followed by a DVPT block, so from 4 on, got 3"),
            (-9, "layer must be followed by a DVPT block, so from 4 on, got 3"),
        ):
            with self.assertRaisesRegex(ValueError, message):
                PromptAttention(net, layer)
        PromptAttention(net, 4)
        with self.assertRaisesRegex(ValueError, "num_prompts must be at least 1 .*, got 0"):
            PromptAttention(new_network("unetr_2d", num_prompts=0))
        attention = PromptAttention(net)
        refused = (lambda: PromptAttention(net), lambda: attention(small_image(net)))
        words = '^the network must be tuned by "dvpt" .*, got "{}'
        with disable_adapter(net):
            for call in refused:
                self.assertRaisesRegex(ValueError, words.format("None"), call)
        tune(net, "lora")
        for call in refused:
            self.assertRaisesRegex(ValueError, words.format("LoRA"), call)


class TestPromptAttentionMaps(unittest.TestCase):
    def test_image_as_it_is(self):
        net = small_network("unetr_3d_patch_8")
        image = small_image(net, batch=2)
        maps = prompt_attention_maps(net, image)
        self.assertIs(type(maps), torch.Tensor)
        torch.testing.assert_close(maps, PromptAttention(net)(image))
        with self.assertRaisesRegex(ValueError, "input must have the spatial size"):
            prompt_attention_maps(net, image[..., 1:])

    def test_windows(self):
        """Each window has maps of its own in the same unit; here the windows do not overlap."""
        net = small_network("unetr_3d_patch_8")
        image = torch.randn(1, 2, 16, 24, 32, generator=torch.Generator().manual_seed(3))
        maps = prompt_attention_maps(net, image, 2, SlidingWindowInferer((8, 24, 16), overlap=0))
        self.assertEqual(tuple(maps.shape), (1, 7, 16, 24, 32))
        for x, z in itertools.product((0, 8), (0, 16)):
            window = (..., slice(x, x + 8), slice(None), slice(z, z + 16))
            torch.testing.assert_close(maps[window], PromptAttention(net, 2)(image[window]))

    def test_meta_tensor(self):
        net = small_network("unetr_3d_patch_8")
        image = MetaTensor(torch.randn(2, 10, 30, 20, generator=torch.Generator().manual_seed(3)), affine=AFFINE_RAS)
        image = Flip(spatial_axis=1)(image)
        inferer = AutocastInferer(SlidingWindowInferer((8, 24, 16), mode="gaussian"), enabled=False)
        maps = prompt_attention_maps(net, image[None], inferer=inferer)
        self.assertEqual((tuple(maps.shape), maps.dtype), ((1, 7, 10, 30, 20), torch.float32))
        np.testing.assert_array_equal(maps.affine.numpy(), image.affine.numpy())
        self.assertEqual([step["class"] for step in maps.applied_operations], ["Flip"])
        plain = prompt_attention_maps(net, image.as_tensor()[None], inferer=inferer)
        torch.testing.assert_close(maps.as_tensor(), plain)


def draw(*args: Any) -> tuple[np.ndarray, list]:
    """Pixels (rows from the top, columns, RGB) of the figure, and its panels without the colour bar."""
    figure = plot_prompt_attention(*args)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(int), figure.axes[:-1]


def crop(pixels: np.ndarray, panel: Any) -> np.ndarray:
    """The pixels of one panel."""
    box = panel.get_window_extent()
    top, bottom = pixels.shape[0] - box.y1, pixels.shape[0] - box.y0
    return pixels[round(top) : round(bottom), round(box.x0) : round(box.x1)]


def centre_of_colour(pixels: np.ndarray) -> np.ndarray:
    """Row and column, in parts of the size, of what is coloured."""
    return np.argwhere(np.ptp(pixels, axis=-1) > 50).mean(axis=0) / pixels.shape[:2]


class TestPlotPromptAttention(unittest.TestCase):
    SHAPE = (18, 14, 10)

    @parameterized.expand(
        [
            ("left-handed, anisotropic", AFFINE_RAS),
            ("axes permuted", np.array([[0, 0, -2, 4], [1.5, 0, 0, 5], [0, 3, 0, 6], [0, 0, 0, 1.0]])),
        ]
    )
    def test_volume(self, _, affine):
        """Attention right, front and top in the patient is where a radiologist expects it, the highest peak first."""
        points = nib.affines.apply_affine(affine, np.moveaxis(np.indices(self.SHAPE), 0, -1))
        towards = (points - points.mean(axis=(0, 1, 2))) / np.ptp(points, axis=(0, 1, 2))
        image = MetaTensor(np.random.default_rng(0).normal(size=(1, *self.SHAPE)).astype(np.float32), affine=affine)
        maps = np.ones((8, *self.SHAPE), np.float32)
        for prompt in range(8):
            corner = (towards > 0.1).all(axis=-1) if prompt == 3 else (towards < -0.1).all(axis=-1)
            maps[prompt][corner] = 5 if prompt == 3 else 2 + prompt / 10
        pixels, panels = draw(image, MetaTensor(maps, affine=affine), "scan_$x^$")
        titles = [panel.get_title() for panel in panels]
        order = [3, 7, 6, 5, 4, 2]
        self.assertEqual(titles, [f"prompt {p}, {plane}" for p in order for plane in ("axial", "coronal", "sagittal")])
        for panel, (right, up) in zip(panels, ((0, 1), (0, 1), (1, 1)), strict=False):
            row, column = centre_of_colour(crop(pixels, panel))
            self.assertEqual((column > 0.5, row < 0.5), (bool(right), bool(up)), panel.get_title())
        volume = nib.as_closest_canonical(nib.Nifti1Image(np.zeros(self.SHAPE, np.uint8), affine))
        x, y, z = np.array(volume.shape) * volume.header.get_zooms()
        for panel, (across, up) in zip(panels, ((x, y), (x, z), (y, z)), strict=False):
            box = panel.get_window_extent()
            self.assertAlmostEqual(box.width / box.height, across / up, delta=0.04 * across / up)

    @parameterized.expand([("grey", 1), ("red, green, blue", 3), ("two channels", 2)])
    def test_picture(self, _, channels):
        image = torch.rand(channels, 30, 20, generator=torch.Generator().manual_seed(0))
        maps = torch.ones(7, 30, 20)
        maps[0, 20:, :5] = 4  # right, top
        maps[6, :10, 15:] = 4  # left, bottom
        pixels, panels = draw(image * 0.01, maps, "case")
        self.assertEqual([panel.get_title() for panel in panels], [f"prompt {prompt}" for prompt in range(7)])
        for panel, (row, column) in ((panels[0], (0.125, 0.83)), (panels[6], (0.875, 0.17))):
            inner = crop(pixels, panel)
            red, _, blue = inner[round(row * inner.shape[0]), round(column * inner.shape[1])]
            self.assertGreater(red - blue, 25)
        for panel in panels[1:6]:
            self.assertLess(np.ptp(crop(pixels, panel), axis=-1).max(), 30)

    def test_uniform_attention_and_constant_image(self):
        draw(torch.zeros(1, 6, 5), torch.ones(2, 6, 5), "case")
        draw(torch.zeros(1, 6, 5, 4), torch.ones(2, 6, 5, 4), "case")

    def test_refusals(self):
        for image, maps in ((torch.zeros(1, 6, 5), torch.zeros(2, 5, 6)), (torch.zeros(1, 6), torch.zeros(2, 6))):
            with self.assertRaisesRegex(ValueError, "maps must be on the image's grid"):
                plot_prompt_attention(image, maps, "case")


if __name__ == "__main__":
    unittest.main()
