# SPDX-License-Identifier: Apache-2.0
"""The report: every tensor in one place, and in words."""

from __future__ import annotations

import contextlib
import io
import unittest

import torch
from monai.networks.nets import UNETR
from parameterized import parameterized
from utils_data import temporary_folder
from utils_networks import UNETR_SIZES, changed, copy_of_state, new_network, randomise, small_unetr
from utils_sources import CLASSES, clip_state, encoder_and_rest, google_arrays, noise, save, timm_state, vit

from monai_dvpt.networks.pretrained import load_pretrained

CASES = {
    "timm": (timm_state, {}),
    "timm_without_bias": (lambda: timm_state(qkv_bias=False), {}),
    "other_labels": (timm_state, {"num_classes": 9}),
    "no_labels": (timm_state, {"num_classes": 0}),
    "both_poolings": (timm_state, {"pooling": "both"}),
    "mean": (timm_state, {"pooling": "mean"}),
    "layer_scale": (lambda: timm_state(layer_scale=True), {"img_size": (32, 64), "in_channels": 1}),
    "volume": (timm_state, {"img_size": (16, 24, 32), "patch_size": 8, "in_channels": 1, "spatial_dims": 3}),
    "clip": (clip_state, {"patch_size": 8, "img_size": 24}),
    "clip_into_pre_norm": (clip_state, {"pre_norm": True}),
    "timm_into_pre_norm": (timm_state, {"pre_norm": True}),
    "google": (google_arrays, {}),
}


class TestReport(unittest.TestCase):
    def setUp(self):
        self.folder = temporary_folder(self)

    def check(self, net, path, **options):
        """The report's names are those of the network's tensors, each once, and say what changed."""
        before = copy_of_state(net)
        report = load_pretrained(net, path, verbose=False, **options)
        places = [report.matched, [*report.converted], [*report.interpolated], report.initialised]
        names = [name for place in places for name in place]
        self.assertEqual(len(names), len(set(names)))
        never_used = {name for name in names if "norm_cross_attn" in name or "relative_position_index" in name}
        self.assertEqual(set(names) - never_used, encoder_and_rest(net))
        after = net.state_dict()
        touched = {name for name in after if name not in before or not torch.equal(after[name], before[name])}
        self.assertFalse(touched & set(report.initialised))
        self.assertLessEqual(touched, set(names))
        self.assertFalse(any("dvpt" in name.split(".") for name in names))
        return report

    @parameterized.expand([(case,) for case in CASES])
    def test_every_tensor_has_one_place(self, case):
        source, arguments = CASES[case]
        content = source()
        path = save(self.folder / ("weights.npz" if case == "google" else "weights.pt"), content)
        self.check(vit(**arguments), path)

    @parameterized.expand([("unetr_2d",), ("unetr_3d_patch_8",), ("swin_unetr_2d_norm",), ("swin_classifier_2d",)])
    def test_every_tensor_of_other_networks(self, case):
        net = new_network(case)
        path = save(self.folder / "weights.pt", randomise(new_network(case), 5).state_dict())
        report = self.check(net, path)
        self.assertEqual((report.initialised, report.converted, report.interpolated), ([], {}, {}))
        self.assertTrue(all("dvpt" in name.split(".") for name in report.unused))

    def test_classifier_that_fits(self):
        net = vit()
        state = timm_state()
        report = self.check(net, save(self.folder / "weights.pt", state))
        self.assertIn("classification_head.weight", report.matched)
        self.assertTrue(torch.equal(net.classification_head.bias, state["head.bias"]))

    @parameterized.expand(
        [({"num_classes": 9},), ({"num_classes": 0},), ({"pooling": "both"},), ({"pooling": "mean"},)]
    )
    def test_classifier_that_does_not_fit(self, arguments):
        net = vit(**arguments)
        report = self.check(net, save(self.folder / "weights.pt", timm_state()))
        own = ["classification_head.weight", "classification_head.bias"]
        self.assertEqual(report.initialised, own if arguments.get("num_classes") != 0 else [])
        self.assertEqual(report.unused, ["head.weight", "head.bias"])

    def test_decoder_as_a_whole(self):
        plain = randomise(UNETR(**UNETR_SIZES, img_size=(32, 48), spatial_dims=2), 3).state_dict()
        del plain["decoder3.transp_conv.conv.weight"]
        net = small_unetr()
        report = self.check(net, save(self.folder / "weights.pt", plain))
        decoder = {name for name in net.state_dict() if name.startswith(("encoder", "decoder"))}
        self.assertEqual(set(report.initialised), decoder)
        self.assertEqual(set(report.unused), decoder & set(plain))

    def test_text(self):
        net = vit(img_size=(32, 64), in_channels=1, num_classes=9)
        path = save(self.folder / "weights.pt", timm_state(layer_scale=True) | {"mask_token": noise(1, 24)})
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            report = load_pretrained(net, path)
        self.assertEqual(output.getvalue(), f"{report}\n")
        self.assertEqual(
            str(report).splitlines(),
            [
                "Pretrained weights of weights.pt, ViT (timm, MAE, DINOv2), in DVPTViT:",
                f"  matched       {len(report.matched)} tensors",
                "  converted     patch_embedding.patch_embeddings.weight: 3 to 1 input channels",
                "  converted     cls_token: with the position of the class token",
                "  converted     12 tensors: blocks.0.attn.out_proj.weight, blocks.0.mlp.linear2.weight, "
                "blocks.0.attn.out_proj.bias, ...: times the layer scale",
                "  interpolated  patch_embedding.position_embeddings: grid of 3x3 to 2x4 tokens",
                "  initialised   classification_head.weight, classification_head.bias",
                "  unused        mask_token, head.weight, head.bias",
                "  layer_norm_eps 1e-06, activation gelu",
                "  num_heads 6 (4 wide) as in the network; the file does not say it",
                "  images of 48 pixels in patches of 16; the file does not say how they were normalised",
            ],
        )
        self.assertEqual(len(report.matched), 3 * 12 - 12 + 3)  # without the layer scale; with patch bias and last norm

    def test_silent(self):
        output = io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            load_pretrained(vit(), save(self.folder / "weights.pt", timm_state()), verbose=False)
        self.assertEqual(output.getvalue(), "")

    def test_dvpt_is_not_touched(self):
        net = randomise(vit(), seed=7)
        before = copy_of_state(net.dvpt)
        self.check(net, save(self.folder / "weights.pt", timm_state()))
        self.assertEqual(changed(before, net.dvpt), set())

    def test_nothing_given_is_listed(self):
        net = vit(num_classes=CLASSES)
        state = {name: tensor for name, tensor in timm_state().items() if not name.startswith("head")}
        report = self.check(net, save(self.folder / "weights.pt", state))
        self.assertIn("unused        none", str(report))

    @parameterized.expand([(0.0,), (-0.5,), (1.01,)])
    def test_min_match_out_of_range(self, min_match):
        with self.assertRaisesRegex(ValueError, r"min_match must be in \(0, 1\]"):
            load_pretrained(vit(), "weights.pt", min_match=min_match)


if __name__ == "__main__":
    unittest.main()
