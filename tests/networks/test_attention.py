# SPDX-License-Identifier: Apache-2.0
"""Fused attention is MONAI's own up to rounding, keeps less for the backward pass, and finds its masks once."""

from __future__ import annotations

import copy
import pickle
import unittest
from collections.abc import Callable

import torch
import torch.nn as nn
from monai.networks.blocks import SABlock, TransformerBlock
from monai.networks.nets.swin_unetr import SwinTransformerBlock, WindowAttention, compute_mask, get_window_size
from parameterized import parameterized
from torch.autograd.graph import saved_tensors_hooks
from utils_networks import randomise, small_image, small_network

from monai_dvpt.networks.blocks import FusedSABlock, FusedWindowAttention, attention, fuse_attention, group_windows
from monai_dvpt.networks.parts import freeze_backbone

ROUNDING = {"rtol": 1e-5, "atol": 1e-5}
GRADIENT_ROUNDING = {"rtol": 1e-4, "atol": 1e-7}
CPU = torch.device("cpu")
C, HEADS = 12, 3
WINDOW = (3, 4, 2)
# sides of a grid of tokens; the number of windows that share each mask
GRIDS = [
    ("2d_padded", (7, 10), (4, 2, 2, 1)),
    ("3d_padded", (5, 8, 5), (2, 2, 2, 2, 1, 1, 1, 1)),
    ("3d_two_shifted_axes", (9, 4, 6), (4, 2, 2, 1)),
    ("3d_one_shifted_axis", (2, 9, 1), (2, 1)),
    ("3d_one_window", (3, 2, 2), (1,)),
]


def fused_copy(plain: nn.Module) -> nn.Module:
    """A fused copy."""
    fused = copy.deepcopy(plain)
    fuse_attention(fused)
    return fused


def values(module: nn.Module, x: torch.Tensor, mask: object) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Output, and the gradients of its weighted mean by the input and by everything that is trained."""
    module.zero_grad()
    x = x.clone().requires_grad_()
    output = module(x, attn_mask=mask) if isinstance(module, TransformerBlock) else module(x, mask)
    (output * torch.linspace(-1, 1, output.numel()).view_as(output)).mean().backward()
    gradients = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    return output.detach(), {"x": x.grad, **gradients}


def assert_same(found: tuple, expected: tuple) -> None:
    """Of what ``values`` returns."""
    torch.testing.assert_close(found[0], expected[0], **ROUNDING)
    torch.testing.assert_close(found[1], expected[1], **GRADIENT_ROUNDING)


def saved_bytes(run: Callable[[], torch.Tensor], module: nn.Module) -> int:
    """What a forward pass keeps for the backward pass, beside the module's own tensors."""
    own = {tensor.untyped_storage().data_ptr() for tensor in module.state_dict().values()}
    kept = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(storage.nbytes() for pointer, storage in kept.items() if pointer not in own)


def swin_block(dims: int, shifted: bool = True, **dropout: float) -> SwinTransformerBlock:
    window = WINDOW[:dims]
    shift = tuple(side // 2 for side in window) if shifted else (0,) * dims
    return randomise(SwinTransformerBlock(C, HEADS, window, shift, qkv_bias=True, **dropout))


def padded_windows(grid: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Sides of the padded grid and of its windows, and their shift."""
    window, shift = get_window_size(grid, WINDOW[: len(grid)], [side // 2 for side in WINDOW[: len(grid)]])
    return tuple(-(-side // size) * size for side, size in zip(grid, window, strict=True)), window, shift


class TestViT(unittest.TestCase):
    @parameterized.expand([(False,), (True,)])
    def test_equals_monai(self, qkv_bias):
        plain = randomise(TransformerBlock(24, 20, 6, dropout_rate=0.4, qkv_bias=qkv_bias)).eval()
        fused, x = fused_copy(plain), torch.randn(2, 11, 24)
        self.assertIs(type(fused.attn), FusedSABlock)
        mask = torch.arange(11).expand(2, 11) < torch.tensor([[4], [9]])
        for train in (True, False):
            for block in (plain, fused):
                block.attn.requires_grad_(train)
            for attn_mask in (None, mask):
                assert_same(values(fused, x, attn_mask), values(plain, x, attn_mask))

    def test_script_with_and_without_mask(self):
        fused, x = fused_copy(TransformerBlock(24, 20, 6)).eval(), torch.randn(2, 11, 24)
        script = torch.jit.script(fused)
        for attn_mask in (None, torch.arange(11).expand(2, 11) % 3):
            torch.testing.assert_close(script(x, attn_mask=attn_mask), fused(x, attn_mask=attn_mask), rtol=0, atol=0)

    def test_dropout(self):
        attn = fused_copy(SABlock(24, 6, dropout_rate=0.4))
        attn.drop_output.p = 0.0
        x = torch.randn(2, 11, 24)
        expected = attn.eval()(x)
        torch.manual_seed(0)
        mean = torch.stack([attn.train()(x) for _ in range(1000)]).mean(0)
        self.assertGreater((attn(x) - expected).abs().max(), 0.01)
        torch.testing.assert_close(mean, expected, rtol=0, atol=0.05)  # the deviation of the mean is below 0.01
        attn.drop_weights.p = 1.0
        torch.testing.assert_close(attn(x), attn.out_proj.bias.expand_as(x))
        self.assertTrue(torch.equal(attn.eval()(x), expected))

    @parameterized.expand(
        [
            ({"save_attn": True},),
            ({"causal": True, "sequence_length": 11},),
            ({"rel_pos_embedding": "decomposed", "input_size": (3, 4)},),
            ({"attention_dtype": torch.float64},),
            ({"use_combined_linear": False},),
        ]
    )
    def test_other_attention_stays(self, arguments):
        self.assertIs(type(fused_copy(SABlock(24, 6, **arguments))), SABlock)


class TestWindows(unittest.TestCase):
    @parameterized.expand(GRIDS)
    def test_masks_are_those_of_monai(self, _, grid, sizes):
        arguments = padded_windows(grid)
        groups = group_windows(*arguments, CPU)
        self.assertEqual(groups.sizes, sizes)
        self.assertEqual(groups.masks.shape[0], len(sizes))
        self.assertTrue(torch.equal(groups.mask_of_windows(), compute_mask(*arguments, CPU)))

    @parameterized.expand([(*case[:2], batch, shifted) for case in GRIDS for batch, shifted in [(2, True), (1, False)]])
    def test_equals_monai(self, _, grid, batch, shifted):
        plain = swin_block(len(grid), shifted, attn_drop=0.4, drop=0.4, drop_path=0.4).eval()
        fused, x = fused_copy(plain), torch.randn(batch, *grid, C)
        self.assertIs(type(fused.attn), FusedWindowAttention)
        arguments = padded_windows(grid)
        groups, mask = group_windows(*arguments, CPU), compute_mask(*arguments, CPU)
        for trained in ("", "attn.qkv", "relative_position_bias_table"):
            for block in (fused, plain):
                for name, parameter in block.named_parameters():
                    parameter.requires_grad_(bool(trained) and trained in name)
            expected = values(plain, x, mask)
            self.assertEqual(len(expected[1]), {"": 1, "attn.qkv": 3, "relative_position_bias_table": 2}[trained])
            assert_same(values(fused, x, groups), expected)
        with torch.no_grad():
            torch.testing.assert_close(fused(x, groups), expected[0], **ROUNDING)
            torch.testing.assert_close(fused(x, mask), expected[0], **ROUNDING)  # as MONAI's own layers call it

    def test_batch_of_shifted_windows(self):
        _, grid, _ = GRIDS[1]
        fused, groups = fused_copy(swin_block(3)), group_windows(*padded_windows(grid), CPU)
        x = torch.randn(3, *grid, C)
        with torch.no_grad():
            one_by_one = torch.cat([fused(sample[None], groups) for sample in x])
            torch.testing.assert_close(fused(x, groups), one_by_one, **ROUNDING)

    def test_dropout(self):
        attn = fused_copy(randomise(WindowAttention(C, HEADS, (3, 4), attn_drop=0.4)))
        x = torch.randn(9, 12, C)
        groups = group_windows((9, 12), (3, 4), (1, 2), CPU)
        with torch.no_grad():
            for mask in (None, groups):
                expected = attn.eval()(x, mask)
                torch.manual_seed(0)
                mean = torch.stack([attn.train()(x, mask) for _ in range(1000)]).mean(0)
                self.assertGreater((attn(x, mask) - expected).abs().max(), 0.01)
                torch.testing.assert_close(mean, expected, rtol=0, atol=0.05)  # the mean's deviation is below 0.01
                self.assertTrue(torch.equal(attn.eval()(x, mask), expected))
            attn.attn_drop.p = 1.0
            torch.testing.assert_close(attn.train()(x, groups), attn.proj.bias.expand_as(x))

    def test_masks_made_in_inference_mode_serve_training(self):
        attention._kept_groups.cache_clear()
        net = freeze_backbone(small_network("swin_classifier_2d")).train()
        with torch.inference_mode():
            net(small_image(net))
        net(small_image(net)).sum().backward()

    def test_masks_are_made_once_and_not_in_an_export(self):
        attention._kept_groups.cache_clear()
        net = freeze_backbone(small_network("swin_classifier_2d")).eval()
        image = small_image(net)
        with torch.no_grad():
            program = torch.export.export(net, (image,))
        self.assertEqual(attention._kept_groups.cache_info().currsize, 0)
        torch.testing.assert_close(program.module()(image), net(image), **ROUNDING)
        made = attention._kept_groups.cache_info().misses
        self.assertGreater(made, 0)
        net(small_image(net, batch=2))
        self.assertEqual(attention._kept_groups.cache_info().misses, made)

    def test_pickle(self):
        net = small_network("swin_classifier_2d").eval()
        image = small_image(net)
        with torch.no_grad():
            self.assertTrue(torch.equal(pickle.loads(pickle.dumps(net))(image), net(image)))


class TestMemory(unittest.TestCase):
    def test_vit(self):
        plain = TransformerBlock(24, 20, 6).requires_grad_(False)
        x = torch.randn(2, 100, 24, requires_grad=True)
        found, expected = (saved_bytes(lambda b=block: b(x), block) for block in (fused_copy(plain), plain))
        self.assertLess(found, expected / 3)

    def test_swin(self):
        window, shift, grid = (5, 5, 5), (2, 2, 2), (15, 15, 15)
        plain = SwinTransformerBlock(C, HEADS, window, shift).requires_grad_(False)
        fused, x = fused_copy(plain), torch.randn(2, *grid, C, requires_grad=True)
        found = saved_bytes(lambda: fused(x, group_windows(grid, window, shift, CPU)), fused)
        self.assertLess(found, saved_bytes(lambda: plain(x, compute_mask(grid, window, shift, CPU)), plain) / 2)


if __name__ == "__main__":
    unittest.main()
