# SPDX-License-Identifier: Apache-2.0
"""What a file of weights is said to be, against the raw tensors, and against the networks that take it or do not."""

from __future__ import annotations

import hashlib
import json
import unittest
from unittest import mock

import torch
from monai.networks.nets import UNETR, SwinUNETR
from parameterized import parameterized
from safetensors.torch import save_file
from utils_data import shared_data, temporary_folder
from utils_networks import DVPT_SIZES, SWIN_2D, SWIN_3D, randomise
from utils_sources import CLASSES, LAYERS, MLP, WIDTH, clip_state, google_arrays, save, timm_state

from monai_dvpt.networks import nets
from monai_dvpt.networks.pretrained import MRI_VIT_TINY, describe_weights, load_pretrained
from monai_dvpt.utils import InputError

VIT_ARGUMENTS = {"DVPTViT": {"num_classes": 2}, "DVPTViTSegmenter": {"out_channels": 2}}
LEFT_OUT = {"DVPTUNETR": {"num_layers", "class_token", "img_size"}}


def build(described, name: str, **arguments):
    """A network with the arguments that the description says."""
    sizes = {key: value for key, value in described.sizes.items() if key not in LEFT_OUT.get(name, ())}
    if name == "DVPTUNETR":
        arguments = {"out_channels": 2, "feature_size": 4, "img_size": 32, "patch_size": 16, **arguments}
    elif name.startswith("DVPTSwin"):
        sizes.pop("feature_size" if "feature_size" in arguments else "", None)
        arguments = {"num_classes" if name == "DVPTSwinClassifier" else "out_channels": 2, **arguments}
    else:
        arguments = {**VIT_ARGUMENTS[name], "img_size": described.sizes.get("img_size", 48), **arguments}
        if name == "DVPTViT" and not described.sizes["class_token"]:
            arguments["pooling"] = "mean"
    return getattr(nets, name)(**{**sizes, **arguments})


class TestDescribe(unittest.TestCase):
    def setUp(self):
        self.folder = temporary_folder(self)

    def test_of_timm_are_its_tensors(self):
        state = timm_state()
        path = save(self.folder / "weights.safetensors", {**state, "mask_token": torch.zeros(1, WIDTH)})
        config = {"num_attention_heads": 6, "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}}
        (self.folder / "config.json").write_text(json.dumps(config))
        found = describe_weights(path)
        (file,) = found.files
        content = path.read_bytes()
        self.assertEqual((file.bytes, file.sha256), (len(content), hashlib.sha256(content).hexdigest()))
        self.assertEqual(found.refused, "")
        self.assertEqual(found.kind, "ViT (timm, MAE, DINOv2)")
        expected = {"spatial_dims": 2, "in_channels": 3, "patch_size": 16, "img_size": 48, "hidden_size": WIDTH}
        expected |= {"mlp_dim": MLP, "num_layers": LAYERS, "num_heads": 6, "qkv_bias": True, "class_token": True}
        expected |= {"layer_norm_eps": 1e-6, "activation": "gelu", "pre_norm": False}
        self.assertEqual(dict(found.sizes), expected)
        self.assertEqual(list(found.assumed), [])
        head = CLASSES * (WIDTH + 1)
        # the class token takes its position into itself
        self.assertEqual(found.parameters, sum(each.numel() for each in state.values()) - head - WIDTH)
        self.assertEqual((found.normalisation.mean, found.normalisation.origin), ((0.1, 0.2, 0.3), "config.json"))
        self.assertEqual(sorted(found.beside), ["head.bias", "head.weight"])
        self.assertEqual(found.unused, ["mask_token"])
        self.assertIsNone(found.dvpt_parameters)  # tokens are narrower than its bottleneck

    def test_builds_no_network_and_draws_no_number(self):
        path = save(self.folder / "weights.pt", timm_state())
        before = torch.get_rng_state()
        with mock.patch("torch.nn.Linear.reset_parameters", side_effect=AssertionError("builds a network")):
            describe_weights(path)
        self.assertTrue(torch.equal(before, torch.get_rng_state()))

    @parameterized.expand(
        [
            ("timm", timm_state(), "weights.pt"),
            ("without a class token", timm_state(cls_token=False), "weights.pt"),
            ("without qkv_bias", timm_state(qkv_bias=False), "weights.safetensors"),
            ("CLIP", clip_state(), "weights.pt"),
            ("Google", google_arrays(), "weights.npz"),
        ]
    )
    def test_networks_with_these_sizes_take_them(self, _, state, name):
        path = save(self.folder / name, state, {"num_attention_heads": 6})
        found = describe_weights(path)
        self.assertEqual(
            {fit.network: fit.fits for fit in found.fits}, dict.fromkeys(VIT_ARGUMENTS, True) | {"DVPTUNETR": False}
        )
        for network in VIT_ARGUMENTS:
            for dims in (2, 3):
                net = build(found, network, spatial_dims=dims, **DVPT_SIZES)
                report = load_pretrained(net, path, verbose=False)
                self.assertEqual([name for name in report.initialised if net.part_of(name) == "backbone"], [])
        reason = next(fit.how for fit in found.fits if fit.network == "DVPTUNETR")
        self.assertEqual(reason, f"num_layers must be 12, got {LAYERS}")
        with self.assertRaisesRegex(InputError, f"num_layers must be {LAYERS}, got 12"):
            load_pretrained(build(found, "DVPTUNETR", **DVPT_SIZES), path, verbose=False)

    def test_unetr_takes_its_own(self):
        net = randomise(UNETR(1, 2, (32, 32), 4, hidden_size=36, mlp_dim=40, num_heads=3, spatial_dims=2))
        path = save(self.folder / "weights.pt", net.state_dict())
        found = describe_weights(path)
        self.assertEqual([fit.network for fit in found.fits if fit.fits], ["DVPTViT", "DVPTViTSegmenter", "DVPTUNETR"])
        self.assertNotIn("num_heads", found.sizes)  # no published ViT is 36 wide
        self.assertEqual(found.kind, "MONAI UNETR")
        twin = build(found, "DVPTUNETR", num_heads=3)
        report = load_pretrained(twin, path, verbose=False)
        self.assertEqual(report.initialised, [])
        self.assertEqual(found.dvpt_parameters, sum(each.numel() for each in twin.vit.dvpt.parameters()))
        decoder = [name for name in net.state_dict() if not name.startswith("vit.")]
        self.assertEqual(sorted(found.beside), sorted(decoder))

    @parameterized.expand(
        [
            ({**SWIN_2D, "window_size": (5, 5)},),
            ({**SWIN_2D, "window_size": (2, 14)},),
            (SWIN_3D,),
            ({**SWIN_2D, "use_v2": True},),
            ({**SWIN_2D, "depths": (2, 1, 3, 2)},),
        ]
    )
    def test_swin(self, arguments):
        sizes = {name: value for name, value in arguments.items() if name not in DVPT_SIZES} | {"feature_size": 24}
        window = sizes["window_size"]
        plain = randomise(SwinUNETR(**{"out_channels": 2, **sizes}))
        path = save(self.folder / "weights.pt", plain.state_dict())
        found = describe_weights(path)
        told = {name: list(value) if isinstance(value, tuple) else value for name, value in sizes.items()}
        told["window_size"] = window[0]  # where it is said at all
        known = {name: value for name, value in told.items() if name in found.sizes}
        self.assertEqual({name: found.sizes[name] for name in known}, known)
        self.assertTrue({"feature_size", "spatial_dims", "num_heads", "depths", "mlp_ratio"} <= found.sizes.keys())
        self.assertEqual("window_size" in found.sizes, len(set(window)) == 1)
        self.assertEqual(
            {fit.network: fit.fits for fit in found.fits}, {"DVPTSwinUNETR": True, "DVPTSwinClassifier": True}
        )
        numbers = [each.numel() for each in plain.swinViT.parameters()]
        self.assertEqual(found.parameters, sum(numbers))
        for network in ("DVPTSwinUNETR", "DVPTSwinClassifier"):
            net = build(found, network, window_size=window)
            load_pretrained(net, path, verbose=False)
            self.assertEqual(found.dvpt_parameters, sum(each.numel() for each in net.encoder().dvpt.parameters()))

    def test_swin_too_narrow_for_unetr(self):
        net = nets.DVPTSwinClassifier(1, 2, feature_size=6, num_heads=(3, 3, 3, 3), bottleneck_size=4, spatial_dims=2)
        state = {name: each for name, each in net.state_dict().items() if ".dvpt." not in name}
        found = describe_weights(save(self.folder / "weights.pt", state))
        self.assertEqual(
            {fit.network: fit.fits for fit in found.fits}, {"DVPTSwinUNETR": False, "DVPTSwinClassifier": True}
        )
        self.assertIn("feature_size must be a multiple of 12, got 6", found.fits[0].how)
        self.assertIsNone(found.dvpt_parameters)

    def test_shipped_weights_tell_their_image(self):
        found = describe_weights(MRI_VIT_TINY)
        self.assertEqual(found.sizes["img_size"], (40, 56, 40))
        net = build(found, "DVPTUNETR", patch_size=8, img_size=(40, 56, 40))
        self.assertEqual(found.dvpt_parameters, sum(each.numel() for each in net.vit.dvpt.parameters()))
        self.assertAlmostEqual(found.dvpt_share, found.dvpt_parameters / found.parameters)
        load_pretrained(net, MRI_VIT_TINY, verbose=False)

    def test_released_weights(self):
        found = describe_weights(shared_data("weights/dinov2_vits14_fp16.safetensors"))
        self.assertEqual((found.family, found.sizes["img_size"], found.sizes["patch_size"]), ("DINOv2", 518, 14))
        self.assertEqual(list(found.assumed), ["num_heads"])
        net = build(found, "DVPTViT")
        load_pretrained(net, found.files[0].path, verbose=False)
        self.assertEqual(found.dvpt_parameters, sum(each.numel() for each in net.dvpt.parameters()))

    def test_whole_network_of_this_package(self):
        net = nets.DVPTViT(3, 32, 16, hidden_size=48, mlp_dim=50, num_layers=2, num_heads=3, spatial_dims=2)
        found = describe_weights(save(self.folder / "weights.pt", net.state_dict()))
        self.assertEqual(sorted(found.unused), sorted(name for name in net.state_dict() if name.startswith("dvpt.")))
        self.assertEqual(sorted(found.beside), ["classification_head.bias", "classification_head.weight"])

    def test_shards(self):
        state = timm_state()
        names = sorted(state)
        shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
        for shard, own in shards.items():
            save_file({name: state[name].contiguous() for name in own}, self.folder / shard)
        index = {"weight_map": {name: shard for shard, own in shards.items() for name in own}}
        (self.folder / "model.safetensors.index.json").write_text(json.dumps(index))
        found = describe_weights(self.folder)
        self.assertEqual([file.path.name for file in found.files], ["model.safetensors.index.json", *shards])
        for file in found.files:
            self.assertEqual(file.sha256, hashlib.sha256((self.folder / file.path.name).read_bytes()).hexdigest())

    @parameterized.expand(
        [
            ("rope", {**timm_state(), "rope.freqs": torch.zeros(3)}, "rope"),
            ("no ViT", {"fc.weight": torch.zeros(3, 3)}, "must hold weights of a ViT"),
            ("truncated", {name: each for name, each in timm_state().items() if name != "pos_embed"}, "position"),
        ]
    )
    def test_refused_as_when_loaded(self, _, state, word):
        path = save(self.folder / "weights.pt", state)
        found = describe_weights(path)
        self.assertIn(word, found.refused)
        self.assertEqual((found.kind, found.fits, found.parameters), ("", (), 0))
        with self.assertRaises(InputError) as caught:
            load_pretrained(nets.DVPTViT(3, 32, 16, 48, 48, 2, 3, spatial_dims=2), path)
        self.assertEqual(str(caught.exception), f"{path}: {found.refused}")

    def test_layer_without_a_tensor(self):
        state = {name: each for name, each in timm_state().items() if name != "blocks.1.mlp.fc2.weight"}
        path = save(self.folder / "weights.pt", state, {"num_attention_heads": 6})
        found = describe_weights(path)
        self.assertEqual({fit.how for fit in found.fits}, {"the file lacks blocks.1.mlp.linear2.weight"})
        self.assertFalse(any(fit.fits for fit in found.fits))
        with self.assertRaisesRegex(InputError, r"missing \['blocks.1.mlp.linear2.weight'\]"):
            load_pretrained(build(found, "DVPTViT", **DVPT_SIZES), path, verbose=False)

    def test_no_file(self):
        with self.assertRaisesRegex(InputError, "none.pt: .*existing file"):
            describe_weights(self.folder / "none.pt")

    def test_impossible_normalisation_is_said(self):
        path = save(self.folder / "weights.pt", timm_state())
        (self.folder / "preprocessor_config.json").write_text('{"image_mean": [0.5], "image_std": [0]}')
        found = describe_weights(path)
        self.assertIsNone(found.normalisation)
        self.assertIn("preprocessor_config.json: image_std must", found.normalisation_error)
        self.assertEqual(found.refused, "")


if __name__ == "__main__":
    unittest.main()
