# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import unittest
from pathlib import Path

import torch
from monai.networks.nets import MaskedAutoEncoderViT, ViT
from parameterized import parameterized
from safetensors.torch import load_file, save_file
from utils_data import temporary_folder
from utils_networks import UNETR_SIZES, changed, copy_of_state, randomise, small_image, small_unetr

from monai_dvpt.networks.adapter import PARTS, backbone_sha256, freeze_backbone
from monai_dvpt.networks.nets import DVPTUNETR
from monai_dvpt.networks.pretrained import MRI_VIT_TINY, load_pretrained, save_mae_encoder
from monai_dvpt.utils import InputError


def small_mae(net: DVPTUNETR) -> MaskedAutoEncoderViT:
    """A masked autoencoder whose encoder fits the transformer of ``net``; its last norm is block 12."""
    sizes = {name: UNETR_SIZES[name] for name in ("in_channels", "hidden_size", "mlp_dim", "num_heads")}
    decoder = {"decoder_hidden_size": 12, "decoder_mlp_dim": 14, "decoder_num_layers": 2, "decoder_num_heads": 3}
    spatial_dims = len(net.img_size)
    mae = MaskedAutoEncoderViT(
        **sizes, **decoder, img_size=net.img_size, patch_size=net.patch_size, spatial_dims=spatial_dims
    )
    return randomise(mae, seed=7).eval()


class TouchesFile:
    """A pickle of it runs code when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


class TestMaskedAutoencoder(unittest.TestCase):
    def setUp(self):
        self.path = temporary_folder(self) / "encoder.safetensors"

    @parameterized.expand([(2, 16), (3, 16), (3, 8)])
    def test_same_features(self, spatial_dims, patch_size):
        net = small_unetr(spatial_dims=spatial_dims, patch_size=patch_size).eval()
        mae, image = small_mae(net), small_image(net, batch=2)
        before = copy_of_state(net)
        save_mae_encoder(mae, self.path, dtype=torch.float32)
        self.assertIs(load_pretrained(net, self.path), net)
        self.assertEqual(changed(before, net), {f"vit.{name}" for name in net.vit.state_dict()})
        with torch.no_grad():
            normed, features = net.vit(image)
            x = mae.patch_embedding(image)
            for layer, feature in enumerate(features):
                x = mae.blocks[layer](x)
                self.assertTrue(torch.equal(feature, x), layer)
            self.assertTrue(torch.equal(normed, mae.blocks[12](x)))

    def test_float16_by_default(self):
        net = small_unetr().eval()
        mae, image = small_mae(net), small_image(net)
        save_mae_encoder(mae, self.path)
        self.assertEqual({tensor.dtype for tensor in load_file(self.path).values()}, {torch.float16})
        load_pretrained(net, self.path)
        self.assertEqual({tensor.dtype for tensor in net.vit.state_dict().values()}, {torch.float32})
        with torch.no_grad():
            exact = mae.blocks(mae.patch_embedding(image))
            torch.testing.assert_close(net.vit(image)[0], exact, rtol=0, atol=5e-3)  # 12 layers of rounding
            mae = mae.half().float()
            self.assertTrue(torch.equal(net.vit(image)[0], mae.blocks(mae.patch_embedding(image))))

    def test_names_are_those_of_vit(self):
        net = small_unetr()
        save_mae_encoder(small_mae(net), self.path)
        self.assertEqual(load_file(self.path).keys(), net.vit.state_dict().keys())

    def test_frozen_stays_frozen(self):
        net = freeze_backbone(small_unetr())
        save_mae_encoder(small_mae(net), self.path)
        load_pretrained(net, self.path)
        self.assertFalse(any(parameter.requires_grad for parameter in net.vit.parameters()))
        self.assertFalse(any(module.training for module in net.vit.modules()))


class TestFiles(unittest.TestCase):
    def setUp(self):
        self.folder = temporary_folder(self)
        self.net = small_unetr(1)
        self.state = copy_of_state(randomise(small_unetr().vit, seed=2))

    def check_refused(self, path: Path, *words: str) -> None:
        before = copy_of_state(self.net)
        with self.assertRaises(InputError) as caught:
            load_pretrained(self.net, path)
        for word in (str(path), *words):
            self.assertIn(word, str(caught.exception))
        self.assertEqual(changed(before, self.net), set())

    def save(self, state: object, suffix: str) -> Path:
        path = self.folder / f"weights{suffix}"
        if suffix == ".safetensors":
            save_file(state, path)
        else:
            torch.save(state, path)
        return path

    @parameterized.expand([(".safetensors",), (".pt",)])
    def test_weights_of_monai_vit(self, suffix):
        sizes = {name: UNETR_SIZES[name] for name in ("in_channels", "hidden_size", "mlp_dim", "num_heads")}
        vit = randomise(ViT(**sizes, img_size=(32, 48), patch_size=16, spatial_dims=2), seed=3)
        load_pretrained(self.net, self.save(vit.state_dict(), suffix))
        self.assertEqual(changed(copy_of_state(vit), self.net.vit), set())

    @parameterized.expand([(".safetensors",), (".pt",)])
    def test_missing_and_unexpected_names(self, suffix):
        self.state["cls_token"] = self.state.pop("norm.bias")
        path = self.save(self.state, suffix)
        self.check_refused(path, "missing ['norm.bias'], unexpected ['cls_token']")

    @parameterized.expand([(".safetensors",), (".pt",)])
    def test_wrong_shapes(self, suffix):
        name = "patch_embedding.patch_embeddings.weight"
        self.state[name] = self.state[name].transpose(0, 1).contiguous()
        self.state["norm.bias"] = torch.zeros(24, 1)
        path = self.save(self.state, suffix)
        self.check_refused(path, f"{name} (2, 24, 16, 16) for (24, 2, 16, 16)", "norm.bias (24, 1) for (24,)")

    def test_other_depth(self):
        for name in [name for name in self.state if name.startswith("blocks.11.")]:
            del self.state[name]
        self.check_refused(self.save(self.state, ".safetensors"), "missing ['blocks.11.")

    def test_other_image_size(self):
        net = small_unetr(img_size=(32, 64))
        with self.assertRaisesRegex(InputError, r"position_embeddings \(1, 6, 24\) for \(1, 8, 24\)"):
            load_pretrained(net, self.save(self.state, ".pt"))

    @parameterized.expand([("weights.pt",), ("weights.safetensors",), ("",)])
    def test_missing_file(self, name):
        self.check_refused(self.folder / name, "must be an existing file")

    def test_pickle_that_runs_code(self):
        touched = self.folder / "touched"
        self.state["norm.bias"] = TouchesFile(touched)
        self.check_refused(self.save(self.state, ".pt"), "it must hold tensors only")
        self.assertFalse(touched.exists())

    @parameterized.expand([(torch.zeros(3),), ([torch.zeros(3)],), ({1: torch.zeros(3)},), ({"norm.bias": 1},)])
    def test_no_named_tensors(self, content):
        self.check_refused(self.save(content, ".pt"), "it must hold a dictionary of named tensors")

    @parameterized.expand(
        [
            (suffix, content)
            for suffix in (".pt", ".pth", ".safetensors")
            for content in (
                b"",
                b"version https://git-lfs.github.com/spec/v1\n",
                b"hello there\n",
                b"\x00\xff",
                b"\x80",
            )
        ]
    )
    def test_other_content(self, suffix, content):
        path = self.folder / f"weights{suffix}"
        path.write_bytes(content)
        self.check_refused(path, "cannot be read as weights")

    @parameterized.expand([(".safetensors",), (".pt",)])
    def test_truncated(self, suffix):
        path = self.save(self.state, suffix)
        path.write_bytes(path.read_bytes()[:-1000])
        self.check_refused(path, "cannot be read as weights")


class TestShippedBackbone(unittest.TestCase):
    def test_loads_and_is_finite(self):
        torch.manual_seed(0)
        sizes = {"feature_size": 8, "hidden_size": 192, "mlp_dim": 768, "num_heads": 3, "patch_size": 8}
        net = DVPTUNETR(1, 3, (40, 56, 40), **sizes).eval()
        untrained = backbone_sha256(net)
        load_pretrained(net, MRI_VIT_TINY)
        self.assertNotEqual(backbone_sha256(net), untrained)
        for name, tensor in net.vit.state_dict().items():
            self.assertTrue(torch.isfinite(tensor).all(), name)
        with torch.no_grad():
            logits = net(torch.randn(1, 1, 40, 56, 40))
        self.assertEqual(logits.shape, (1, 3, 40, 56, 40))
        self.assertTrue(torch.isfinite(logits).all())
        self.assertEqual(list(net.parts()), list(PARTS))


if __name__ == "__main__":
    unittest.main()
