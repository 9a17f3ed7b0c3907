# SPDX-License-Identifier: Apache-2.0
"""Layouts of timm, MAE, DINOv2, CLIP and Google: features equal those of plain functions on the source's tensors."""

from __future__ import annotations

import unittest
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from parameterized import parameterized
from utils_data import temporary_folder
from utils_sources import (
    CLASSES,
    HEADS,
    WIDTH,
    clip_state,
    clip_tokens,
    google_arrays,
    google_tokens,
    noise,
    save,
    timm_state,
    timm_tokens,
    tokens_of,
    vit,
)

from monai_dvpt.networks.nets import DVPTViT
from monai_dvpt.networks.pretrained import PretrainedReport, load_pretrained
from monai_dvpt.utils import InputError

TOLERANCE = {"rtol": 0, "atol": 1e-5}


class TestLayouts(unittest.TestCase):
    def setUp(self):
        self.folder = temporary_folder(self)
        self.image = noise(2, 3, 48, 48)

    def check(self, net: DVPTViT, path: Path, tokens: torch.Tensor, **options) -> PretrainedReport:
        """The features of ``net`` with weights of ``path`` are ``tokens``, and nothing of it stays random."""
        report = load_pretrained(net, path, verbose=False, **options)
        self.assertIs(report.network, net)
        image = noise(2, net.arguments["in_channels"], *net.img_size)
        torch.testing.assert_close(tokens_of(net, image), tokens, **TOLERANCE)
        self.assertTrue(all(name.startswith(net.HEAD) for name in report.initialised), report.initialised)
        self.assertEqual(net.backbone_file, path.name)
        return report

    def check_logits(self, net: DVPTViT, tokens: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> None:
        with torch.no_grad():
            torch.testing.assert_close(net(self.image), F.linear(tokens[:, 0], weight, bias), **TOLERANCE)

    @parameterized.expand([(".safetensors",), (".pt",), (".pth",), (".bin",)])
    def test_timm(self, suffix):
        state, net = timm_state(), vit()
        tokens = timm_tokens(state, self.image)
        report = self.check(net, save(self.folder / f"weights{suffix}", state), tokens)
        self.check_logits(net, tokens, state["head.weight"], state["head.bias"])
        self.assertEqual(set(report.converted), {"cls_token"})
        self.assertEqual((report.initialised, report.unused, report.interpolated), ([], [], {}))
        self.assertIn("ViT", report.kind)

    @parameterized.expand(
        [
            ({"cls_token": False}, {"class_token": False, "pooling": "mean"}),
            ({"cls_position": False}, {}),
            ({"qkv_bias": False}, {"qkv_bias": False}),
            ({"qkv_bias": False}, {"qkv_bias": True}),
            ({"layer_scale": True}, {}),
            ({"norm_pre": True}, {}),
            ({"norm_pre": True, "cls_position": False}, {}),
            ({"grid": (2, 3)}, {"img_size": (32, 48)}),
            ({"patch": (8, 24), "grid": (6, 2)}, {"patch_size": (8, 24)}),
        ]
    )
    def test_variants_of_timm(self, variant, arguments):
        state, net = timm_state(**variant), vit(**arguments)
        tokens = timm_tokens(state, noise(2, 3, *net.img_size), eps=1e-5 if "norm_pre" in variant else 1e-6)
        report = self.check(net, save(self.folder / "model.safetensors", state), tokens)
        self.assertEqual(report.initialised, [])

    def test_positions_that_could_be_a_square(self):  # 1 x 15 and the class token's, or 4 x 4
        state, net = timm_state(grid=(1, 15)), vit(img_size=(16, 240))
        with self.assertRaisesRegex(InputError, "16 positions, of 16 tokens in a square, or of 15 as in the network"):
            load_pretrained(net, save(self.folder / "model.safetensors", state), verbose=False)
        config = {"pretrained_cfg": {"input_size": [3, 16, 240]}}
        path = save(self.folder / "told" / "model.safetensors", state, config)
        self.check(net, path, timm_tokens(state, noise(2, 3, *net.img_size)))

    def test_network_without_class_token(self):
        state, net = timm_state(), vit(class_token=False, pooling="mean")
        report = load_pretrained(net, save(self.folder / "weights.pt", state), verbose=False)
        self.assertEqual(report.unused, ["cls_token", "head.weight", "head.bias"])
        self.assertEqual(report.initialised, ["classification_head.weight", "classification_head.bias"])
        with torch.no_grad():  # the image's tokens, not yet mixed with the class token
            embedded = F.conv2d(self.image, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], 16)
            expected = embedded.flatten(2).mT + state["pos_embed"][:, 1:]
            torch.testing.assert_close(net.patch_embedding(self.image), expected, **TOLERANCE)

    @parameterized.expand([("model",), ("state_dict",), ("teacher",), ("model_state_dict",)])
    def test_checkpoint_around_it(self, key):
        state, net = timm_state(), vit()
        content = {"epoch": torch.tensor(3), "score": torch.tensor(0.5), key: state, "optimizer": {"lr": 0.1}}
        self.check(net, save(self.folder / "weights.pth", content), timm_tokens(state, self.image))

    @parameterized.expand([("module.",), ("backbone.",), ("encoder.model.",)])
    def test_prefix(self, prefix):
        state, net = timm_state(), vit()
        content = {prefix + name: tensor for name, tensor in state.items()}
        self.check(net, save(self.folder / "weights.pth", content), timm_tokens(state, self.image))

    def test_half_precision(self):
        state = {name: tensor.half() for name, tensor in timm_state(layer_scale=True).items()}
        net = vit()
        tokens = timm_tokens({name: tensor.float() for name, tensor in state.items()}, self.image)
        self.check(net, save(self.folder / "weights.safetensors", state), tokens)
        self.assertEqual({tensor.dtype for tensor in net.state_dict().values()}, {torch.float32})

    def test_mae(self):
        state = timm_state()
        del state["head.weight"], state["head.bias"]
        decoder = {"mask_token": noise(1, 1, 14), "decoder_embed.weight": noise(14, WIDTH)}
        decoder |= {"decoder_pos_embed": noise(1, 10, 14), "decoder_blocks.0.attn.qkv.weight": noise(42, 14)}
        decoder |= {"decoder_norm.weight": noise(14), "decoder_pred.weight": noise(9, 14)}
        path = save(self.folder / "mae.pth", {"model": state | decoder})
        report = self.check(vit(), path, timm_tokens(state, self.image))
        self.assertEqual(set(report.unused), set(decoder))

    def test_dinov2(self):
        state = timm_state(layer_scale=True)
        del state["head.weight"], state["head.bias"]
        path = save(self.folder / "dinov2.pth", state | {"mask_token": noise(1, WIDTH)})
        report = self.check(vit(), path, timm_tokens(state, self.image))
        self.assertEqual(report.converted["blocks.1.attn.out_proj.bias"], "times the layer scale")
        self.assertEqual(report.unused, ["mask_token"])

    @parameterized.expand([("visual.",), ("",), ("module.visual.",)])
    def test_clip(self, prefix):
        state, net = clip_state(prefix=prefix), vit()
        path = save(self.folder / "clip.pt", {"state_dict": state})
        report = self.check(net, path, clip_tokens(state, self.image, prefix))
        self.assertIn(prefix + "proj", report.unused)
        self.assertEqual(report.initialised, ["classification_head.weight", "classification_head.bias"])
        self.assertTrue(net.arguments["pre_norm"])
        self.assertEqual((net.arguments["layer_norm_eps"], net.arguments["activation"]), (1e-5, "quick_gelu"))
        self.assertIn("patch_embedding.dropout.0.weight", report.matched)
        self.assertIn("zeros", report.converted["patch_embedding.patch_embeddings.bias"])

    def test_clip_trained_with_gelu(self):
        state, net = clip_state(), vit()
        path = save(self.folder / "clip.pt", state)
        self.check(net, path, clip_tokens(state, self.image, activation=F.gelu), activation="gelu")

    def test_clip_in_half_precision(self):
        state, net = {name: tensor.half() for name, tensor in clip_state().items()}, vit()
        tokens = clip_tokens({name: tensor.float() for name, tensor in state.items()}, self.image)
        self.check(net, save(self.folder / "clip.pt", state), tokens)

    def test_google(self):
        arrays, net = google_arrays(), vit()
        tokens = google_tokens(arrays, self.image)
        report = self.check(net, save(self.folder / "google.npz", arrays), tokens)
        head = [torch.from_numpy(arrays[name]) for name in ("head/kernel", "head/bias")]
        self.check_logits(net, tokens, head[0].T, head[1])
        self.assertEqual(report.initialised, [])
        self.assertFalse(any("num_heads" in fact for fact in report.facts))  # the file says it

    def test_classifier_behind_another_layer_is_left_out(self):
        arrays = google_arrays()
        more = {"pre_logits/kernel": noise(WIDTH, WIDTH).numpy(), "pre_logits/bias": noise(WIDTH).numpy()}
        path = save(self.folder / "google.npz", arrays | more)
        report = self.check(vit(), path, google_tokens(arrays, self.image))
        self.assertEqual(set(report.unused), {"head/kernel", "head/bias", *more})
        self.assertEqual(len(report.initialised), 2)

    def test_heads_are_the_networks_where_the_file_does_not_say(self):
        state = timm_state()
        path = save(self.folder / "weights.safetensors", state)
        net = vit(num_heads=3)
        report = self.check(net, path, timm_tokens(state, self.image, num_heads=3))
        self.assertTrue(any("num_heads 3 (8 wide) as in the network" in fact for fact in report.facts), report.facts)

    def test_twice_is_once(self):
        net = vit()
        for state in (clip_state(), timm_state()):  # what CLIP brought is gone again
            path = save(self.folder / "weights.pt", state)
            tokens = clip_tokens(state, self.image) if "visual.proj" in state else timm_tokens(state, self.image)
            self.check(net, path, tokens)
            self.check(net, path, tokens)
        self.assertFalse(net.arguments["pre_norm"])
        self.assertIsInstance(net.patch_embedding.dropout, nn.Dropout)


class TestArithmetic(unittest.TestCase):
    def setUp(self):
        self.folder = temporary_folder(self)

    def load(self, state: dict[str, torch.Tensor], config=None, **options) -> DVPTViT:
        net = vit()
        self.report = load_pretrained(
            net, save(self.folder / "model.safetensors", state, config), verbose=False, **options
        )
        norms = [module for module in net.modules() if isinstance(module, nn.LayerNorm)]
        ours = [module for module in norms if not any(module is other for other in net.dvpt.modules())]
        self.assertEqual({module.eps for module in ours}, {net.arguments["layer_norm_eps"]})
        return net

    @parameterized.expand(
        [
            ("timm", timm_state, None, {}, 1e-6, "gelu", False),
            ("clip", clip_state, None, {}, 1e-5, "quick_gelu", True),
            ("timm_pre_norm", lambda: timm_state(norm_pre=True), None, {}, 1e-5, "gelu", True),
            ("config", timm_state, {"layer_norm_eps": 1e-3, "hidden_act": "gelu_new"}, {}, 1e-3, None, False),
            ("override", clip_state, None, {"layer_norm_eps": 0.02, "activation": "gelu"}, 0.02, "gelu", True),
            (
                "over_config",
                timm_state,
                {"layer_norm_eps": 1e-3, "hidden_act": "quick_gelu"},
                {"layer_norm_eps": 2e-3, "activation": "gelu_pytorch_tanh"},
                2e-3,
                "gelu_pytorch_tanh",
                False,
            ),
        ]
    )
    def test_is_the_sources(self, _, state, config, options, eps, activation, pre_norm):
        net = self.load(state(), config, **options)
        found = (net.arguments["layer_norm_eps"], net.arguments["activation"], net.arguments["pre_norm"])
        self.assertEqual(found, (eps, activation or "gelu_pytorch_tanh", pre_norm))
        self.assertIn(f"layer_norm_eps {eps}, activation {found[1]}", self.report.facts[0])
        self.assertEqual("normalised embedding" in self.report.facts[0], pre_norm)
        x = noise(7)
        expected = {
            "gelu": F.gelu,
            "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
            "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
        }[found[1]]
        for block in net.blocks:
            torch.testing.assert_close(block.mlp.fn(x), expected(x))

    def test_override_is_computed_with(self):
        state = timm_state()
        net = self.load(state, layer_norm_eps=0.3, activation="gelu_pytorch_tanh")
        image = noise(1, 3, 48, 48)
        expected = timm_tokens(state, image, eps=0.3, activation=lambda x: F.gelu(x, approximate="tanh"))
        torch.testing.assert_close(tokens_of(net, image), expected, **TOLERANCE)

    def test_class_token_is_normalised_too(self):
        state = clip_state()
        net = self.load(state)
        first = state["visual.class_embedding"] + state["visual.positional_embedding"][0]
        weight, bias = state["visual.ln_pre.weight"], state["visual.ln_pre.bias"]
        expected = (first - first.mean()) / (first.var(unbiased=False) + 1e-5).sqrt() * weight + bias
        torch.testing.assert_close(net.cls_token[0, 0], expected)

    def test_override_reaches_the_class_token(self):
        state = clip_state()
        state["visual.class_embedding"] *= 0.01
        state["visual.positional_embedding"][0] *= 0.01
        net = self.load(state, layer_norm_eps=0.1)
        first = state["visual.class_embedding"] + state["visual.positional_embedding"][0]
        expected = F.layer_norm(first, (WIDTH,), state["visual.ln_pre.weight"], state["visual.ln_pre.bias"], 0.1)
        torch.testing.assert_close(net.cls_token[0, 0], expected)

    def test_sizes_are_pairwise_different(self):
        sizes = [CLASSES, HEADS, WIDTH]
        self.assertEqual(len(set(sizes)), len(sizes))


if __name__ == "__main__":
    unittest.main()
