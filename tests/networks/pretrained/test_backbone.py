# SPDX-License-Identifier: Apache-2.0
"""What a file of a ViT tells of its network and its images."""

from __future__ import annotations

import json
import unittest
import warnings
from pathlib import Path

import numpy as np
import torch
from monai.networks.nets import SwinUNETR
from parameterized import parameterized
from PIL import Image
from test_pretrained_transformers import model, saved
from utils_data import shared_data, temporary_folder
from utils_sources import HEADS, LAYERS, MLP, WIDTH, clip_state, google_arrays, noise, save, timm_state, vit

from monai_dvpt.networks.nets import DVPTViT
from monai_dvpt.networks.pretrained import load_pretrained, read_backbone
from monai_dvpt.utils import InputError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import CLIPImageProcessor, ViTImageProcessor

# as the families' own releases state them
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
CLIP = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
HALF = ([0.5] * 3, [0.5] * 3)
UNKNOWN = "image_mean and image_std must be given"


def dinov2_state(grid: int = 3, classifier: bool = False) -> dict[str, torch.Tensor]:
    state = timm_state(layer_scale=True, patch=(14, 14), grid=(grid, grid))
    return state if classifier else {name: tensor for name, tensor in state.items() if not name.startswith("head.")}


def with_classes(number: int) -> dict[str, torch.Tensor]:
    return {**timm_state(), "head.weight": noise(number, WIDTH), "head.bias": noise(number)}


class TestImages(unittest.TestCase):
    def setUp(self):
        self.folder = temporary_folder(self)

    def read(self, content, name: str = "weights.pt", config: dict | None = None):
        return read_backbone(save(self.folder / name, content, config))

    def check_unknown(self, backbone) -> None:
        self.assertEqual(backbone.family, "")
        for name in ("image_mean", "image_std"):
            with self.assertRaisesRegex(InputError, UNKNOWN):
                getattr(backbone, name)

    @parameterized.expand(
        [
            ("dinov2", dinov2_state, "weights.pt", "DINOv2", IMAGENET),
            ("dinov2_of_its_release", lambda: {**dinov2_state(), "mask_token": noise(1, WIDTH)}, "weights.pt")
            + ("DINOv2", IMAGENET),
            ("mae_with_decoder", lambda: {**timm_state(), "decoder_embed.weight": noise(7, WIDTH)}, "weights.pt")
            + ("MAE", IMAGENET),
            ("clip", clip_state, "weights.pt", "CLIP", CLIP),
            ("clip_of_timm", lambda: timm_state(norm_pre=True), "weights.pt", "CLIP", CLIP),
            ("google", google_arrays, "weights.npz", "Google ViT", HALF),
            ("imagenet_21k", lambda: with_classes(21843), "weights.pt", "Google ViT", HALF),
        ]
    )
    def test_family_that_the_file_proves(self, _, content, name, family, expected):
        backbone = self.read(content(), name)
        self.assertEqual((backbone.family, (backbone.image_mean, backbone.image_std)), (family, expected))
        self.assertIn(f"as {family} was trained; the file does not say it", str(backbone))

    @parameterized.expand(
        [
            ("dinov2", IMAGENET),
            ("dinov2_classifier", IMAGENET),
            ("mae", IMAGENET),
            ("clip", CLIP),
            ("clip_vision", CLIP),
        ]
    )
    def test_family_of_a_model_of_transformers(self, kind, expected):
        for form in ("without_config", "with_config", "memory"):
            backbone = read_backbone(saved(model(kind), self.folder, form))
            self.assertEqual((backbone.image_mean, backbone.image_std), expected)

    @parameterized.expand(
        [
            ("timm", timm_state),  # augreg and DeiT have the same names, and other numbers
            ("timm_1000_classes", lambda: with_classes(1000)),
            ("layer_scale_16", lambda: timm_state(layer_scale=True)),
            ("deit_3", lambda: dinov2_state(classifier=True)),
            ("mask_token", lambda: {**timm_state(), "mask_token": noise(1, WIDTH)}),
            ("monai", lambda: vit().state_dict()),
        ]
    )
    def test_file_that_proves_nothing(self, _, content):
        self.check_unknown(self.read(content()))

    def test_vit_of_transformers_proves_nothing(self):
        self.check_unknown(read_backbone(saved(model("vit"), self.folder, "with_config")))

    def test_config_of_timm(self):
        cfg = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "input_size": [3, 48, 48]}
        for config in ({"architecture": "vit_x", "pretrained_cfg": cfg}, cfg):  # timm's, and how it was before
            backbone = self.read(dinov2_state(), config=config)
            self.assertEqual((backbone.image_mean, backbone.image_std), ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6]))
            self.assertIn("(config.json)", str(backbone))

    @parameterized.expand(
        [
            ("vit", ViTImageProcessor, {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}),
            ("defaults", CLIPImageProcessor, {}),
            ("minus_one_to_one", ViTImageProcessor, {"do_normalize": False}),
            ("not_scaled", ViTImageProcessor, {"do_rescale": False, "image_mean": [99.0] * 3, "image_std": [9.0] * 3}),
            ("other_scale", ViTImageProcessor, {"rescale_factor": 1 / 100}),
        ]
    )
    def test_pictures_are_prepared_as_by_transformers(self, _, kind, options):
        """Of images in [0, 1]: with its mean and deviation a picture becomes what the library's processor makes."""
        processor = kind(**options)
        processor.save_pretrained(self.folder)
        backbone = self.read(dinov2_state())
        pixels = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
        expected = processor(Image.fromarray(pixels), return_tensors="np")["pixel_values"][0]
        mean, std = (np.array(values)[:, None, None] for values in (backbone.image_mean, backbone.image_std))
        np.testing.assert_allclose((pixels.transpose(2, 0, 1) / 255 - mean) / std, expected, atol=2e-5, rtol=1e-5)
        self.assertIn("(preprocessor_config.json)", str(backbone))

    @parameterized.expand(
        [
            ({"image_mean": 0.5, "image_std": [1.0]}, "image_mean must be a list of numbers"),
            ({"image_mean": [0.5], "image_std": ["1"]}, "image_std must be a list of numbers"),
            ({"image_mean": [0.5], "image_std": [0.0]}, "image_std must have a number above 0"),
            ({"image_mean": [0.5], "image_std": [1.0, 1.0]}, "image_std must have a number above 0 for each"),
            ({"image_mean": [0.5], "image_std": [1.0], "rescale_factor": -1}, "rescale_factor must be a number above"),
            ([], "must hold a JSON object"),
        ]
    )
    def test_impossible_numbers(self, content, why):
        (self.folder / "preprocessor_config.json").write_text(json.dumps(content))
        path = save(self.folder / "weights.pt", timm_state())
        backbone = read_backbone(path)
        for name in ("image_mean", "image_std"):
            with self.assertRaisesRegex(InputError, rf"preprocessor_config\.json: {why}"):
                getattr(backbone, name)
        report = load_pretrained(vit(), path, verbose=False)  # which needs no such number
        self.assertEqual(report.initialised, [])
        self.assertRegex(str(report), rf"is not known: .*preprocessor_config\.json: {why}")

    @parameterized.expand(
        [
            ("mean", {"image_mean": None, "image_std": None}, IMAGENET),
            ("deviation", {"image_mean": [0.1] * 3, "image_std": None}, IMAGENET),
            (
                "scale",
                {"image_mean": [0.1] * 3, "image_std": [0.2] * 3, "rescale_factor": None},
                ([0.1] * 3, [0.2] * 3),
            ),
        ]
    )
    def test_null_is_nothing_said(self, _, content, expected):
        (self.folder / "preprocessor_config.json").write_text(json.dumps({"size": 224, **content}))
        backbone = self.read(dinov2_state(), config={"mean": None, "std": None})
        np.testing.assert_allclose((backbone.image_mean, backbone.image_std), expected)


class TestSizes(unittest.TestCase):
    def setUp(self):
        self.folder = temporary_folder(self)

    def test_sizes_build_a_network_that_fits(self):
        path = save(self.folder / "weights.pt", dinov2_state(grid=4), {"num_attention_heads": HEADS})
        found = read_backbone(path)
        self.assertEqual((found.patch_size, found.img_size, found.in_channels, found.spatial_dims), (14, 56, 3, 2))
        sizes = {name: getattr(found, name) for name in ("hidden_size", "mlp_dim", "num_layers", "num_heads")}
        self.assertEqual(list(sizes.values()), [WIDTH, MLP, LAYERS, HEADS])
        net = DVPTViT(3, 56, found.patch_size, spatial_dims=2, method="linear", **sizes)
        report = load_pretrained(net, path, verbose=False)
        self.assertEqual(report.backbone, found)
        self.assertEqual(report.interpolated, {})
        self.assertIn(
            "images of 56 pixels in patches of 14, mean 0.485, 0.456, 0.406, standard deviation 0.229, 0.224, 0.225",
            str(report),
        )

    def test_heads(self):
        found = read_backbone(save(self.folder / "weights.npz", google_arrays()))
        self.assertEqual(found.num_heads, HEADS)
        found = read_backbone(save(self.folder / "weights.pt", timm_state()))
        with self.assertRaisesRegex(InputError, "does not state its number of heads, and no published ViT is 24 wide"):
            _ = found.num_heads

    def test_pixels_that_differ_by_side(self):
        found = read_backbone(save(self.folder / "weights.pt", timm_state(patch=(16, 8))))
        self.assertEqual((found.patch_size, found.img_size), ((16, 8), (48, 24)))

    def test_other_networks(self):
        swin = SwinUNETR(1, 2, feature_size=12, spatial_dims=2).state_dict()
        perceptron = vit(proj_type="perceptron").state_dict()
        for content in (swin, perceptron):
            path = save(self.folder / "weights.pt", content)
            with self.assertRaisesRegex(InputError, "must hold a ViT with a convolution as patch embedding"):
                read_backbone(path)
        report = load_pretrained(vit(proj_type="perceptron"), path, verbose=False)
        self.assertIsNone(report.backbone)

    @parameterized.expand(
        [
            ("dinov2_vits14_fp16", (384, 1536, 12, 6, 14, 518), IMAGENET),
            ("vit_tiny_patch16_224_timm", (192, 768, 12, 3, 16, 224), None),
        ]
    )
    def test_real_weights(self, name, sizes, expected):
        found = read_backbone(Path(shared_data(f"weights/{name}.safetensors")))
        names = ("hidden_size", "mlp_dim", "num_layers", "num_heads", "patch_size", "img_size")
        self.assertEqual(tuple(getattr(found, name) for name in names), sizes)
        if expected is None:
            with self.assertRaisesRegex(InputError, rf"{name}\.safetensors: .*{UNKNOWN}"):
                _ = found.image_mean
        else:
            self.assertEqual((found.image_mean, found.image_std), expected)


if __name__ == "__main__":
    unittest.main()
