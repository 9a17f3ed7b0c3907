# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import unittest
from typing import Any

import torch
from parameterized import parameterized
from safetensors.torch import load_file, save_file
from utils_data import temporary_folder
from utils_networks import (
    NETWORKS,
    changed,
    copy_of_state,
    expected_part,
    randomise,
    seal,
    small_image,
    small_network,
)

from monai_dvpt.networks.adapter import (
    adapter_metadata,
    build_network,
    merge_full,
    prepared_with,
    save_adapter,
)
from monai_dvpt.networks.nets import DVPTViT
from monai_dvpt.networks.pretrained import load_pretrained
from monai_dvpt.utils import InputError


class TestMetadata(unittest.TestCase):
    def setUp(self):
        self.path = temporary_folder(self) / "adapter.safetensors"

    def save(self, net: Any, **changes: Any) -> dict[str, Any]:
        """Saves an adapter, its metadata changed; returns the metadata."""
        header = {**adapter_metadata(save_adapter(net, self.path)), **changes}
        seal(load_file(self.path), self.path, header)
        return header

    def test_prepared_with(self):
        preparation = {"image_mean": [0.5, 0.25], "image_std": 2, "ben_graham": False}
        save_adapter(small_network("vit_cls_2d"), self.path, notes={"preparation": preparation})
        self.assertEqual({name: prepared_with(self.path, name) for name in preparation}, preparation)

    @parameterized.expand([({},), ({"preparation": [1]},), ({"preparation": {"image_std": 1}},)])
    def test_preparation_that_is_not_recorded(self, notes):
        save_adapter(small_network("vit_cls_2d"), self.path, notes=notes)
        with self.assertRaisesRegex(InputError, "does not record how the images were prepared .* image_mean must be"):
            prepared_with(self.path, "image_mean")

    @parameterized.expand([("$1 + 1",), (["@labels"],), ({"mean": 1},), ([[1]],)])
    def test_preparation_of_other_kinds(self, value):
        save_adapter(small_network("vit_cls_2d"), self.path, notes={"preparation": {"image_mean": value}})
        with self.assertRaisesRegex(
            InputError, "image_mean must be a number, true or false, or a list of numbers, got"
        ):
            prepared_with(self.path, "image_mean")

    @parameterized.expand(
        [("../x",), ("/etc/x",), ("a/b",), ("a\\b",), ("..",), (".",), ("",), ("c:x",), ("a\0",), (7,)]
    )
    def test_backbone_file_elsewhere(self, name):
        self.save(small_network("vit_cls_2d"), backbone_file=name)
        for read in (adapter_metadata, build_network, merge_full):
            with self.assertRaises(InputError) as caught:
                read(self.path)
            words = f"{self.path}: backbone_file must be the name of a file beside the adapter, got {name!r}."
            self.assertEqual(str(caught.exception), words)

    @parameterized.expand([(None,), ("vit.safetensors",), (".hidden",), ("a..b",)])
    def test_backbone_file(self, name):
        header = self.save(small_network("vit_cls_2d"), backbone_file=name)
        self.assertEqual(adapter_metadata(self.path) | {"metadata_sha256": header["metadata_sha256"]}, header)

    @parameterized.expand([(name,) for name in NETWORKS])
    def test_build_network(self, case):
        net = small_network(case, 1).eval()
        save_adapter(net, self.path)
        torch.manual_seed(5)
        state = torch.get_rng_state()
        other = build_network(self.path)
        self.assertTrue(torch.equal(torch.get_rng_state(), state))
        self.assertIs(type(other), type(net))
        self.assertEqual(json.dumps(other.arguments), json.dumps(net.arguments))
        other.load_state_dict(net.state_dict())
        with torch.no_grad():
            self.assertTrue(torch.equal(other.eval()(small_image(net)), net(small_image(net))))

    @parameterized.expand([("ViT",), ("os.system",), ("__all__",), (None,)])
    def test_unknown_network(self, name):
        self.save(small_network("vit_cls_2d"), network=name)
        with self.assertRaisesRegex(InputError, f"^{self.path}: network must be one of \\[.*\\], got {name!r}\\.$"):
            build_network(self.path)

    @parameterized.expand(
        [
            ({"num_blocks": 3}, "arguments do not fit DVPTViT: .*num_blocks"),
            ({"pooling": "max"}, "arguments do not fit DVPTViT: .*pooling must be one of .* got max"),
            ({"img_size": None}, "arguments must have img_size as one or at most 8 whole numbers"),
            (None, "arguments must be a JSON object, got None"),
            ([2], r"arguments must be a JSON object, got \[2\]"),
        ]
    )
    def test_unknown_arguments(self, changes, words):
        net = small_network("vit_cls_2d")
        self.save(net, arguments={**net.arguments, **changes} if isinstance(changes, dict) else changes)
        with self.assertRaisesRegex(InputError, f"^{self.path}: {words}"):
            build_network(self.path)

    @parameterized.expand(
        [
            ("vit_cls_2d", {"activation": "quick_gelu", "layer_norm_eps": 1e-6}),
            ("unetr_2d", {}),
            ("segmenter_2d_norm", {}),
            ("swin_unetr_2d_norm", {}),
            ("swin_classifier_2d", {}),
        ]
    )
    def test_merge(self, case, arguments):
        net, folder = small_network(case, 1, **arguments).eval(), self.path.parent
        backbone = {k: v for k, v in net.state_dict().items() if expected_part(net, k) == "backbone"}
        save_file(backbone, folder / "backbone.safetensors")
        moved = {k: v + 1 if v.is_floating_point() else v for k, v in backbone.items()}
        save_file(moved, folder / "other.safetensors")
        self.save(net, backbone_file="backbone.safetensors")
        for source in (None, folder / "backbone.safetensors"):
            merged = merge_full(self.path, source)
            self.assertFalse(any(module.training for module in merged.modules()))
            self.assertEqual(changed(copy_of_state(net), merged), set())
            with torch.no_grad():
                self.assertTrue(torch.equal(merged(small_image(net)), net(small_image(net))))
        with self.assertRaisesRegex(InputError, "backbone_sha256 must be that of the network"):
            merge_full(self.path, folder / "other.safetensors")
        (folder / "backbone.safetensors").unlink()
        with self.assertRaisesRegex(InputError, f"^{self.path}: needs its backbone; "):
            merge_full(self.path)
        with self.assertRaisesRegex(InputError, f"^{folder}/backbone.safetensors: backbone must be an existing file"):
            merge_full(self.path, folder / "backbone.safetensors")

    def test_merge_as_the_backbone_was_loaded(self):
        """From 2D to 3D along the first axis, with another epsilon than that of the source's kind."""
        source = randomise(DVPTViT(3, 32, 16, 24, 20, 2, 3, spatial_dims=2, bottleneck_size=5))
        names = {"patch_embedding.patch_embeddings": "patch_embed.proj", "out_proj": "proj", "linear": "fc"}
        state = {"pos_embed": source.patch_embedding.position_embeddings.detach()}
        for name, tensor in source.state_dict().items():
            for old, new in names.items():
                name = name.replace(old, new)
            if name.startswith(("patch_embed.", "blocks", "norm.")) and "cross" not in name:
                state[name] = tensor.contiguous()
        save_file(state, self.path.parent / "timm.safetensors")
        net = DVPTViT(1, (16, 32, 48), 16, 24, 20, 2, 3, pooling="mean", class_token=False, bottleneck_size=5).eval()
        load_pretrained(net, self.path.parent / "timm.safetensors", inflate_axis=0, layer_norm_eps=1e-3, verbose=False)
        save_adapter(net, self.path)
        self.assertEqual(changed(copy_of_state(net), merge_full(self.path)), set())
        self.assertEqual(merge_full(self.path).norm.eps, 1e-3)
        self.save(net, inflate_axis=1)
        with self.assertRaisesRegex(InputError, "backbone_sha256 must be"):
            merge_full(self.path)
        self.save(net, inflate_axis="x")
        with self.assertRaises(InputError):
            merge_full(self.path)

    def test_merge_needs_a_backbone_file(self):
        self.save(small_network("vit_cls_2d"))
        with self.assertRaisesRegex(InputError, f"^{self.path}: needs its backbone; "):
            merge_full(self.path)


if __name__ == "__main__":
    unittest.main()
