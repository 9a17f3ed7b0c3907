# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import unittest

import torch
from parameterized import parameterized
from utils_data import temporary_folder
from utils_networks import expected_part, small_image, small_network

from monai_dvpt.networks.adapter import (
    add_adapter,
    backbone_sha256,
    load_adapter,
    round_backbone,
    save_adapter,
    set_adapter,
    share_backbone,
)
from monai_dvpt.networks.parts import freeze_backbone, tune
from monai_dvpt.networks.pretrained import load_pretrained

CASES = [("vit_cls_2d",), ("unetr_2d",), ("swin_unetr_2d",), ("swin_unetr_2d_none",)]


def frozen(case: str):
    return freeze_backbone(small_network(case)).train()


def amp() -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16)


class TestRoundBackbone(unittest.TestCase):
    @parameterized.expand(CASES)
    def test_same_under_autocast(self, case):
        net, rounded = frozen(case), round_backbone(frozen(case))
        image = small_image(net, batch=2)
        with amp():
            expected, found = net(image), rounded(image)
        self.assertTrue(torch.equal(found, expected))
        gradients = []
        for output, each in ((expected, net), (found, rounded)):
            trained = [parameter for parameter in each.parameters() if parameter.requires_grad]
            gradients.append(torch.autograd.grad(output.float().square().sum(), trained))
        for one, other in zip(*gradients, strict=True):
            self.assertEqual(one.dtype, torch.float32)
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6 * float(other.abs().max()))

    @parameterized.expand(CASES)
    def test_what_is_rounded(self, case):
        net = round_backbone(frozen(case))
        halves = {name for name, tensor in net.state_dict().items() if tensor.dtype == torch.bfloat16}
        self.assertTrue(halves)
        self.assertEqual({expected_part(net, name) for name in halves}, {"backbone"})
        matrices = {n for n, p in net.named_parameters() if p.ndim > 1 and n.endswith("weight")}
        self.assertEqual(halves & matrices, {name for name in matrices if expected_part(net, name) == "backbone"})

    def test_adapter_belongs_to_the_backbone_as_it_was(self):
        path = temporary_folder(self) / "adapter.safetensors"
        net = frozen("vit_cls_2d")
        expected = backbone_sha256(net)
        save_adapter(round_backbone(net), path)
        self.assertEqual(backbone_sha256(net), expected)
        load_adapter(frozen("vit_cls_2d"), path)
        load_adapter(round_backbone(frozen("vit_cls_2d")), path)

    def test_another_backbone_is_told(self):
        net, other = round_backbone(frozen("vit_cls_2d")), freeze_backbone(small_network("vit_cls_2d", seed=1))
        before = backbone_sha256(net)
        net.load_state_dict(other.state_dict())
        self.assertNotEqual(backbone_sha256(net), before)

    def test_shared_backbone(self):
        one, other = frozen("vit_cls_2d"), frozen("vit_cls_2d")
        expected = backbone_sha256(one)
        round_backbone(share_backbone(other, one))
        self.assertEqual(one.blocks[0].mlp.linear1.weight.dtype, torch.float32)
        self.assertEqual((backbone_sha256(one), backbone_sha256(other)), (expected, expected))
        with self.assertRaisesRegex(ValueError, "before it is rounded"):
            share_backbone(frozen("vit_cls_2d"), other)

    def test_adapters_take_turns(self):
        net = round_backbone(frozen("vit_cls_2d"))
        set_adapter(add_adapter(net, "other"), "default")
        self.assertEqual({tensor.dtype for _, tensor in net.tensors(["method", "head"])}, {torch.float32})

    def test_refuses(self):
        with self.assertRaisesRegex(ValueError, "dtype must be"):
            round_backbone(frozen("vit_cls_2d"), torch.int8)
        for method in ("full", "bitfit"):
            with self.assertRaisesRegex(ValueError, f'must not have copies .* the method "{method}" has'):
                round_backbone(tune(frozen("vit_cls_2d"), method))
        with self.assertRaisesRegex(ValueError, "are trained"):
            round_backbone(small_network("vit_cls_2d"))
        with self.assertRaisesRegex(ValueError, "before its backbone is rounded"):
            load_pretrained(round_backbone(frozen("vit_cls_2d")), "absent.pt")


if __name__ == "__main__":
    unittest.main()
