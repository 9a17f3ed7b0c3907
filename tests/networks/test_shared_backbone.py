# SPDX-License-Identifier: Apache-2.0
"""A segmentation and a grade on one backbone in memory."""

from __future__ import annotations

import unittest

import torch
from utils_data import temporary_folder
from utils_networks import randomise

from monai_dvpt.networks.adapter import backbone_sha256, load_adapter, save_adapter, share_backbone
from monai_dvpt.networks.nets import DVPTUNETR, DVPTViT
from monai_dvpt.networks.parts import freeze_backbone

SIZES = {"in_channels": 2, "img_size": (16, 24, 32), "patch_size": 8, "hidden_size": 24, "mlp_dim": 20, "num_heads": 6}
GRADE = {**SIZES, "spatial_dims": 3, "qkv_bias": False, "class_token": False, "pooling": "mean", "num_classes": 4}


def unetr() -> DVPTUNETR:
    return freeze_backbone(randomise(DVPTUNETR(out_channels=3, feature_size=4, bottleneck_size=5, **SIZES), 1)).eval()


def grader(**changes) -> DVPTViT:
    arguments = {**GRADE, "num_layers": 12, "bottleneck_size": 7, **changes}
    return freeze_backbone(randomise(DVPTViT(**arguments), 2)).eval()


class TestShareBackbone(unittest.TestCase):
    def test_both_tasks_from_one_set_of_tensors(self):
        folder, x = temporary_folder(self), torch.randn(1, 2, 16, 24, 32, generator=torch.Generator().manual_seed(0))
        segmenter, alone = unetr(), grader()
        encoder = {name: t for name, t in segmenter.vit.state_dict().items() if not name.startswith("dvpt.")}
        alone.load_state_dict({**alone.state_dict(), **encoder})
        alone.backbone_file = segmenter.backbone_file = "backbone.safetensors"
        adapter = save_adapter(alone, folder / "grade.safetensors")
        before, expected = segmenter(x), alone(x)

        both = share_backbone(grader(), segmenter)
        load_adapter(both, adapter)
        own, shared = dict(both.named_parameters()), dict(segmenter.vit.named_parameters())
        shared = {name: tensor for name, tensor in shared.items() if name in encoder}
        self.assertTrue(all(own[name] is tensor for name, tensor in shared.items()))
        self.assertEqual(both.backbone_file, "backbone.safetensors")
        self.assertEqual(backbone_sha256(both), backbone_sha256(alone))
        torch.testing.assert_close(both(x), expected, rtol=0, atol=0)
        torch.testing.assert_close(segmenter(x), before, rtol=0, atol=0)
        segmenter.double()  # moves and conversions reach both
        self.assertEqual(own["norm.weight"].dtype, torch.float64)

    def test_only_what_it_tunes_is_trained(self):
        both = share_backbone(grader(), unetr())
        both.train()
        both(torch.randn(1, 2, 16, 24, 32)).sum().backward()
        trained = {both.part_of(name) for name, parameter in both.named_parameters() if parameter.grad is not None}
        self.assertEqual(trained, {"method", "head"})

    def test_refusals(self):
        training = unetr().requires_grad_(True)
        cases = [
            (grader(), training, "source must have a frozen backbone"),
            (grader(class_token=True, pooling="cls"), unetr(), r"only one of them has \['cls_token'\]"),
            (
                grader(mlp_dim=28),
                unetr(),
                r"same shapes, blocks\.0\.mlp\.linear1\.weight has \(\(28, 24\), \(20, 24\)\)",
            ),
            (grader(num_heads=4), unetr(), r"same num_heads, got \[4, 6\]"),
            (grader(layout={"rope_theta": 100, "rope_axes": [0, 1]}), unetr(), "same layout, got .*rope_axes.*None"),
        ]
        for net, source, message in cases:
            with self.subTest(message), self.assertRaisesRegex(ValueError, message):
                share_backbone(net, source)
