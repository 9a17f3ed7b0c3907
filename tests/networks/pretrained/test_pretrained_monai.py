# SPDX-License-Identifier: Apache-2.0
"""MONAI's ViT, UNETR and masked autoencoder, and the shipped backbone: outputs equal to MONAI's."""

from __future__ import annotations

import unittest

import numpy as np
import torch
from monai.networks.nets import UNETR, MaskedAutoEncoderViT, ViT
from parameterized import parameterized
from safetensors.torch import load_file, save_file
from utils_data import temporary_folder
from utils_networks import (
    AFFINE_NORM,
    DVPT_SIZES,
    UNETR_SIZES,
    changed,
    copy_of_state,
    randomise,
    small_image,
    small_unetr,
)
from utils_sources import VIT, clip_state, noise, save, tokens_of, vit

from monai_dvpt.networks.adapter import backbone_sha256
from monai_dvpt.networks.nets import DVPTUNETR
from monai_dvpt.networks.parts import PARTS, freeze_backbone, tune
from monai_dvpt.networks.pretrained import MRI_VIT_TINY, load_pretrained, save_mae_encoder
from monai_dvpt.utils import InputError

TOLERANCE = {"rtol": 0, "atol": 1e-5}
PLAIN_VIT = {name: value for name, value in VIT.items() if name not in {*DVPT_SIZES, "share_every"}}
PLAIN_UNETR = {**UNETR_SIZES, "img_size": (32, 48), "spatial_dims": 2}


def monai_vit(**arguments) -> ViT:
    """MONAI's ViT with random weights."""
    return randomise(ViT(**{**PLAIN_VIT, "classification": True, "qkv_bias": True, **arguments}), seed=4).eval()


def unetr(**arguments) -> DVPTUNETR:
    """A network as its class makes it, so that its DVPT blocks change nothing."""
    torch.manual_seed(2)
    return DVPTUNETR(**{**PLAIN_UNETR, **DVPT_SIZES, **arguments}).eval()


class TestViT(unittest.TestCase):
    def setUp(self):
        self.path = temporary_folder(self) / "weights.pt"
        self.image = noise(2, 3, 48, 48)

    @parameterized.expand([("Tanh",), ("none",)])
    def test_same(self, post_activation):
        plain, net = monai_vit(post_activation=post_activation), vit()
        report = load_pretrained(net, save(self.path, plain.state_dict()), verbose=False)
        with torch.no_grad():
            logits = net(self.image)
            logits = logits.tanh() if post_activation == "Tanh" else logits
            torch.testing.assert_close(logits, plain(self.image)[0], **TOLERANCE)
        self.assertEqual((report.initialised, report.unused, report.converted), ([], [], {}))
        self.assertEqual((report.kind, net.arguments["layer_norm_eps"]), ("MONAI ViT", 1e-5))

    def test_of_an_older_monai(self):
        plain, net = monai_vit(), vit()
        old = {
            f"blocks.{layer}.cross_attn.{name}.weight": noise(24, 24) for layer in range(3) for name in ("to_q", "to_k")
        }
        report = load_pretrained(net, save(self.path, plain.state_dict() | old), verbose=False)
        self.assertEqual(set(report.unused), set(old))
        with torch.no_grad():
            torch.testing.assert_close(net(self.image).tanh(), plain(self.image)[0], **TOLERANCE)

    def test_arithmetic_stays_the_networks(self):
        net = vit(layer_norm_eps=0.02, activation="quick_gelu")
        load_pretrained(net, save(self.path, monai_vit().state_dict()), verbose=False)
        self.assertEqual((net.arguments["layer_norm_eps"], net.arguments["activation"]), (0.02, "quick_gelu"))
        load_pretrained(net, self.path, layer_norm_eps=0.03, activation="gelu", verbose=False)
        self.assertEqual((net.arguments["layer_norm_eps"], net.arguments["activation"]), (0.03, "gelu"))

    def test_without_classifier(self):
        plain, net = monai_vit(classification=False), vit(class_token=False, pooling="mean")
        report = load_pretrained(net, save(self.path, plain.state_dict()), verbose=False)
        with torch.no_grad():
            torch.testing.assert_close(tokens_of(net, self.image), plain(self.image)[0], **TOLERANCE)
        self.assertEqual(report.initialised, ["classification_head.weight", "classification_head.bias"])

    def test_of_a_dvpt_network(self):
        other = randomise(vit(), seed=9)
        net = vit()
        report = load_pretrained(net, save(self.path, other.state_dict()), verbose=False)
        self.assertEqual(set(report.unused), {name for name in other.state_dict() if name.startswith("dvpt.")})
        self.assertEqual(changed(copy_of_state(other), net), set(report.unused))

    def test_perceptron(self):
        plain, net = monai_vit(proj_type="perceptron"), vit(proj_type="perceptron")
        load_pretrained(net, save(self.path, plain.state_dict()), verbose=False)
        with torch.no_grad():
            torch.testing.assert_close(net(self.image).tanh(), plain(self.image)[0], **TOLERANCE)

    def test_perceptron_is_no_convolution(self):
        net = vit()
        save(self.path, monai_vit(proj_type="perceptron").state_dict())
        with self.assertRaisesRegex(InputError, r"patch_embeddings\.1\.weight"):
            load_pretrained(net, self.path)

    def test_grid_of_monai_weights_is_the_networks(self):
        sizes = {"img_size": (16, 144)}  # nine tokens, which are not taken for 3 x 3
        plain, net = monai_vit(**sizes), vit(**sizes)
        report = load_pretrained(net, save(self.path, plain.state_dict()), verbose=False)
        self.assertEqual((report.interpolated, report.converted), ({}, {}))


class TestUNETR(unittest.TestCase):
    def setUp(self):
        self.path = temporary_folder(self) / "weights.pt"

    def save(self, prefix: str = "", **arguments) -> UNETR:
        plain = randomise(UNETR(**{**PLAIN_UNETR, **arguments}), seed=4).eval()
        save(self.path, {"state_dict": {prefix + name: tensor for name, tensor in plain.state_dict().items()}})
        return plain

    @parameterized.expand(
        [
            ({},),
            ({"decoder_tuning": "none"},),
            ({"norm_name": AFFINE_NORM, "decoder_tuning": "norm"},),
            ({"spatial_dims": 3, "img_size": (16, 32, 48)},),
            ({"qkv_bias": True, "conv_block": False},),
        ]
    )
    def test_whole_network(self, arguments):
        net = unetr(**arguments)
        plain = self.save(**{name: value for name, value in arguments.items() if name != "decoder_tuning"})
        report = load_pretrained(net, self.path, verbose=False)
        image = small_image(net, batch=2)
        with torch.no_grad():
            torch.testing.assert_close(net(image), plain(image), **TOLERANCE)
        self.assertEqual((report.initialised, report.unused, report.kind), ([], [], "MONAI UNETR"))

    @parameterized.expand([("module.",), ("net.",)])
    def test_prefix(self, prefix):
        net, plain = unetr(), self.save(prefix)
        report = load_pretrained(net, self.path, verbose=False)
        self.assertEqual(report.initialised, [])
        with torch.no_grad():
            torch.testing.assert_close(net(small_image(net)), plain(small_image(net)), **TOLERANCE)

    def test_other_labels(self):
        net = unetr(out_channels=7)
        plain = self.save()
        before = copy_of_state(net)
        report = load_pretrained(net, self.path, verbose=False)
        self.assertEqual(set(report.initialised), {name for name in before if name.startswith("out.")})
        self.assertEqual(set(report.unused), {name for name in plain.state_dict() if name.startswith("out.")})
        self.assertIn("decoder2.conv_block.conv1.conv.weight", report.matched)

    @parameterized.expand(
        [({"feature_size": 8},), ({"patch_size": 8, "img_size": (16, 24)},), ({"conv_block": False},)]
    )
    def test_other_decoder_is_left_out_whole(self, arguments):
        net = unetr(**arguments)
        self.save()
        before = copy_of_state(net)
        report = load_pretrained(net, self.path, verbose=False)
        touched = {name.split(".")[0] for name in changed(before, net)}
        self.assertEqual(touched - {"out"}, {"vit"})
        decoder = {name for name in before if name.startswith(("encoder", "decoder"))}
        self.assertLessEqual(decoder, set(report.initialised))
        self.assertTrue(any(name.startswith("decoder2.") for name in report.unused))

    def test_frozen_decoder_must_be_given(self):
        net = unetr(decoder_tuning="none", feature_size=8)
        self.save()
        before = copy_of_state(net)
        with self.assertRaisesRegex(InputError, r"at least 100 % of the backbone's values.*missing \['encoder1"):
            load_pretrained(net, self.path)
        self.assertEqual(changed(before, net), set())

    def test_affine_norms_start_from_identity(self):
        net = unetr(norm_name=AFFINE_NORM, decoder_tuning="norm")
        plain = self.save()
        report = load_pretrained(net, self.path, verbose=False)
        with torch.no_grad():
            torch.testing.assert_close(net(small_image(net)), plain(small_image(net)), **TOLERANCE)
        self.assertTrue(any("identity" in how for how in report.converted.values()))

    def test_affine_norms_of_the_source_are_not_dropped(self):
        net = unetr()
        self.save(norm_name=AFFINE_NORM)
        report = load_pretrained(net, self.path, verbose=False)
        self.assertIn("decoder2.conv_block.conv1.conv.weight", report.initialised)
        self.assertIn("decoder2.conv_block.norm1.weight", report.unused)

    def test_encoder_alone_into_vit(self):
        plain = self.save()
        net = vit(
            **{name: UNETR_SIZES[name] for name in ("in_channels", "hidden_size", "mlp_dim", "num_heads")},
            **{"img_size": (32, 48), "num_layers": 12, "qkv_bias": False, "class_token": False, "pooling": "mean"},
        )
        report = load_pretrained(net, self.path, verbose=False)
        image = small_image(net)
        with torch.no_grad():
            torch.testing.assert_close(tokens_of(net, image), plain.vit(image)[0], **TOLERANCE)
        self.assertIn("out.conv.conv.weight", report.unused)

    def test_of_a_dvpt_network(self):
        other, net = randomise(unetr(), seed=8), unetr()
        report = load_pretrained(net, save(self.path, other.state_dict()), verbose=False)
        self.assertEqual(changed(copy_of_state(other), net), set(report.unused))
        self.assertTrue(all("dvpt" in name.split(".") for name in report.unused))


class TestMaskedAutoencoder(unittest.TestCase):
    def setUp(self):
        self.path = temporary_folder(self) / "encoder.safetensors"

    def mae(self, net: DVPTUNETR) -> MaskedAutoEncoderViT:
        """A masked autoencoder whose encoder fits the transformer of ``net``; its last norm is block 12."""
        sizes = {name: UNETR_SIZES[name] for name in ("in_channels", "hidden_size", "mlp_dim", "num_heads")}
        sizes |= {"decoder_hidden_size": 12, "decoder_mlp_dim": 14, "decoder_num_layers": 2, "decoder_num_heads": 3}
        dims = len(net.img_size)
        mae = MaskedAutoEncoderViT(**sizes, img_size=net.img_size, patch_size=net.patch_size, spatial_dims=dims)
        return randomise(mae, seed=7).eval()

    @parameterized.expand([(2, 16), (3, 16), (3, 8)])
    def test_same_features(self, spatial_dims, patch_size):
        net = tune(small_unetr(spatial_dims=spatial_dims, patch_size=patch_size), "linear").eval()
        mae, image = self.mae(net), small_image(net, batch=2)
        before = copy_of_state(net)
        save_mae_encoder(mae, self.path, dtype=torch.float32)
        self.assertIs(load_pretrained(net, self.path, verbose=False).network, net)
        self.assertEqual(changed(before, net), {f"vit.{name}" for name in net.vit.state_dict()})
        with torch.no_grad():
            normed, features = net.vit(image)
            x = mae.patch_embedding(image)
            for layer, feature in enumerate(features):
                x = mae.blocks[layer](x)
                torch.testing.assert_close(feature, x, **TOLERANCE)
            torch.testing.assert_close(normed, mae.blocks[12](x), **TOLERANCE)

    def test_float16_by_default(self):
        net = tune(small_unetr(), "linear").eval()
        mae, image = self.mae(net), small_image(net)
        save_mae_encoder(mae, self.path)
        self.assertEqual({tensor.dtype for tensor in load_file(self.path).values()}, {torch.float16})
        load_pretrained(net, self.path, verbose=False)
        self.assertEqual({tensor.dtype for tensor in net.vit.state_dict().values()}, {torch.float32})
        with torch.no_grad():
            exact = mae.blocks(mae.patch_embedding(image))
            torch.testing.assert_close(net.vit(image)[0], exact, rtol=0, atol=5e-3)  # 12 layers of rounding
            mae = mae.half().float()
            torch.testing.assert_close(net.vit(image)[0], mae.blocks(mae.patch_embedding(image)), **TOLERANCE)

    def test_names_are_those_of_vit(self):
        net = tune(small_unetr(), "linear")
        save_mae_encoder(self.mae(net), self.path)
        self.assertEqual(load_file(self.path).keys(), net.vit.state_dict().keys())

    def test_frozen_stays_frozen(self):
        net = tune(small_unetr(), "linear")
        save_mae_encoder(self.mae(net), self.path)
        load_pretrained(net, self.path, verbose=False)
        self.assertFalse(any(parameter.requires_grad for parameter in net.vit.parameters()))
        self.assertFalse(any(module.training for module in net.vit.modules()))

    def test_norm_that_clip_brings_is_frozen_with_the_rest(self):
        net = freeze_backbone(vit().train())
        load_pretrained(net, save(self.path.with_suffix(".pt"), clip_state()), verbose=False)
        self.assertFalse(any(parameter.requires_grad for parameter in net.patch_embedding.parameters()))
        self.assertFalse(any(module.training for module in net.patch_embedding.modules()))
        self.assertEqual(net.part_of("patch_embedding.dropout.0.weight"), "backbone")

    def test_checkpoint_of_the_autoencoder_itself_is_refused(self):
        net = small_unetr()
        save_file({name: tensor.contiguous() for name, tensor in self.mae(net).state_dict().items()}, self.path)
        before = copy_of_state(net)
        with self.assertRaisesRegex(InputError, "num_layers must be 13, got 12"):
            load_pretrained(net, self.path)
        self.assertEqual(changed(before, net), set())

    def test_not_finite_is_not_saved(self):
        mae = self.mae(small_unetr())
        with torch.no_grad():
            mae.blocks[3].norm1.weight[2] = torch.inf
        with self.assertRaisesRegex(InputError, r"encoder\.safetensors: weights must be finite.*blocks\.3\.norm1"):
            save_mae_encoder(mae, self.path)
        self.assertFalse(self.path.exists())


class TestShippedBackbone(unittest.TestCase):
    def test_loads_and_is_finite(self):
        torch.manual_seed(0)
        sizes = {"feature_size": 8, "hidden_size": 192, "mlp_dim": 768, "num_heads": 3, "patch_size": 8}
        net = DVPTUNETR(1, 3, (40, 56, 40), **sizes).eval()
        untrained = backbone_sha256(net)
        report = load_pretrained(net, MRI_VIT_TINY, verbose=False)
        self.assertNotEqual(backbone_sha256(net), untrained)
        self.assertEqual((report.converted, report.interpolated, report.unused), ({}, {}, []))
        for name, tensor in net.vit.state_dict().items():
            self.assertTrue(torch.isfinite(tensor).all(), name)
        with torch.no_grad():
            logits = net(torch.randn(1, 1, 40, 56, 40))
        self.assertEqual(logits.shape, (1, 3, 40, 56, 40))
        self.assertTrue(torch.isfinite(logits).all())
        self.assertEqual({net.part_of(name) for name in net.state_dict()}, set(PARTS))

    def test_the_shipped_backbone_fits_any_grid(self):
        """Its model card says that its tokens lie on a grid of 5 x 7 x 5, from images of 40 x 56 x 40."""
        sizes = {"feature_size": 2, "hidden_size": 192, "mlp_dim": 768, "num_heads": 3, "patch_size": 8}
        net = DVPTUNETR(1, 3, (80, 56, 40), **sizes).eval()
        report = load_pretrained(net, MRI_VIT_TINY, verbose=False)
        name = "vit.patch_embedding.position_embeddings"
        self.assertEqual(list(report.interpolated), [name])
        given = load_file(MRI_VIT_TINY)["patch_embedding.position_embeddings"].double().numpy().reshape(5, 7, 5, 192)
        got = net.state_dict()[name].numpy().reshape(10, 7, 5, 192)
        places = np.clip((np.arange(10) + 0.5) / 2 - 0.5, 0, 4)  # of the new tokens among the old
        for y, z, channel in ((0, 0, 0), (6, 4, 100), (3, 2, 191)):
            expected = np.interp(places, np.arange(5), given[:, y, z, channel])
            np.testing.assert_allclose(got[:, y, z, channel], expected, atol=1e-6)
        same = DVPTUNETR(1, 3, (56, 40, 40), **sizes).eval()  # as many tokens, on a grid that is turned
        report = load_pretrained(same, MRI_VIT_TINY, verbose=False)
        self.assertEqual(list(report.interpolated), [name])


if __name__ == "__main__":
    unittest.main()
