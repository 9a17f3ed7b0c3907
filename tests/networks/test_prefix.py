# SPDX-License-Identifier: Apache-2.0
"""Frozen layers that run once, and DVPT beside them."""

from __future__ import annotations

import itertools
import unittest

import torch
from parameterized import parameterized
from utils_networks import NETWORKS, layers_of, new_network, randomise_method, small_image, small_network

from monai_dvpt.networks.adapter import (
    adapter_names,
    add_adapter,
    disable_adapter,
    encoder_sha256,
    predict_adapters,
    set_adapter,
)
from monai_dvpt.networks.parts import freeze_backbone

ROUNDING = {"rtol": 1e-4, "atol": 1e-5}
FEW = ("vit_cls_2d", "unetr_2d", "segmenter_2d", "sam_2d_layers", "tiny_vit_2d", "swin_unetr_2d", "swin_unetr_3d_v2")
CASES = [
    (name, side_path, start_layer)
    for name, side_path, start_layer in itertools.product(NETWORKS, (False, True), (0, 1, 4))
    if name in FEW or (side_path, start_layer) == (True, 1)
]


def frozen_network(case: str, **arguments):
    return freeze_backbone(small_network(case, **arguments)).train()


def outputs_of_layers(net: torch.nn.Module) -> list[torch.Tensor]:
    """A list to which every transformer layer adds its output when it runs."""
    outputs: list[torch.Tensor] = []
    for layer in layers_of(net):
        layer.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    return outputs


def gradients(output: torch.Tensor, net: torch.nn.Module) -> list[torch.Tensor]:
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(3))
    return torch.autograd.grad((output * weights).sum(), [p for p in net.parameters() if p.requires_grad])


class TestPrefix(unittest.TestCase):
    @parameterized.expand(CASES)
    def test_same_answer_and_gradients(self, case, side_path, start_layer):
        net = frozen_network(case, side_path=side_path, start_layer=start_layer)
        image = small_image(net, batch=2)
        expected = net(image)
        prefix = net.forward_prefix(image)
        self.assertFalse(prefix.requires_grad)
        self.assertEqual(prefix.shape[0], 2)
        ran = outputs_of_layers(net)
        found = net(image, prefix)
        self.assertEqual(len(ran), 0 if side_path else len(layers_of(net)) - start_layer - 1)
        torch.testing.assert_close(found, expected, **ROUNDING)
        for one, other in zip(gradients(found, net), gradients(expected, net), strict=True):
            torch.testing.assert_close(one, other, **ROUNDING)

    @parameterized.expand([(name,) for name in FEW])
    def test_of_the_frozen_encoder_alone(self, case):
        net = frozen_network(case, start_layer=2)
        image = small_image(net)
        prefix = net.forward_prefix(image)
        randomise_method(net, seed=7)
        self.assertTrue(torch.equal(net.forward_prefix(image), prefix))
        other = freeze_backbone(small_network(case, start_layer=2, bottleneck_size=4, num_prompts=2, share_every=1))
        self.assertTrue(torch.equal(other.forward_prefix(image), prefix))
        self.assertEqual(encoder_sha256(other), encoder_sha256(net))
        self.assertNotEqual(encoder_sha256(small_network(case, seed=1)), encoder_sha256(net))
        self.assertEqual(net.method.name, "dvpt")

    @parameterized.expand([("vit_cls_2d",), ("swin_unetr_2d",)])
    def test_refuses(self, case):
        net = frozen_network(case, start_layer=2)
        image = small_image(net, batch=2)
        prefix = net.forward_prefix(image)
        for wrong in (prefix[:, :0], prefix[:1]):
            with self.assertRaisesRegex(ValueError, "prefix must"):
                net(image, wrong)
        for other in ({"start_layer": 3}, {"start_layer": 2, "side_path": True}):
            with self.assertRaisesRegex(ValueError, "prefix must come from this image and the layers before"):
                frozen_network(case, **other)(image, prefix)
        with self.assertRaisesRegex(ValueError, "side_path must be True or False, got 'false'"):
            small_network(case, side_path="false")
        net.requires_grad_(True)
        with self.assertRaisesRegex(ValueError, "frozen encoder, but .* is trained"):
            net.forward_prefix(image)

    @parameterized.expand([("vit_both_2d",), ("unetr_2d",), ("segmenter_2d",)])
    def test_script(self, case):
        net = frozen_network(case, start_layer=2, side_path=True).eval()
        image = small_image(net, batch=2)
        script = torch.jit.script(net)
        with torch.no_grad():
            torch.testing.assert_close(script(image), net(image), **ROUNDING)
            torch.testing.assert_close(script(image, net.forward_prefix(image)), net(image), **ROUNDING)

    def test_frozen_by_hand(self):
        net = small_network("vit_cls_2d", dropout_rate=0.5).train()
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(net.part_of(name) != "backbone")
        self.assertTrue(torch.equal(*(net.forward_prefix(small_image(net)) for _ in range(2))))


class TestSidePath(unittest.TestCase):
    @parameterized.expand([(name, start) for name in NETWORKS for start in (0, 2)])
    def test_starts_as_the_frozen_network(self, case, start_layer):
        net = new_network(case, side_path=True, start_layer=start_layer).eval()
        image = small_image(net)
        with torch.no_grad():
            found = net(image)
            with disable_adapter(net):
                torch.testing.assert_close(found, net(image), **ROUNDING)

    @parameterized.expand([(name,) for name in NETWORKS])
    def test_no_graph_through_the_frozen_layers(self, case):
        net = frozen_network(case, side_path=True)
        outputs = outputs_of_layers(net)
        found = gradients(net(small_image(net)), net)
        self.assertEqual(len(outputs), len(layers_of(net)))
        self.assertFalse(any(output.requires_grad for output in outputs))
        self.assertTrue(all(gradient.any() for gradient in found))

    def test_equals_formula(self):
        """Every block sees the output of its frozen layer and all that the blocks before have added."""
        net = small_network("vit_cls_2d", side_path=True, start_layer=1).eval()
        image = small_image(net)
        with torch.no_grad():
            x = torch.cat((net.cls_token, net.patch_embedding(image)), dim=1)
            added = torch.zeros_like(x)
            for layer, block in enumerate(net.blocks):
                x = block(x)
                if layer >= 1:
                    dvpt = net.dvpt[(layer - 1) // 2]
                    added = added + dvpt.up(dvpt.change(x + added))
            torch.testing.assert_close(net(image), net.classification_head(net.norm(x + added)[:, 0]), **ROUNDING)

    def test_swin_carries_what_it_adds_through_the_merging(self):
        net = small_network("swin_classifier_2d", side_path=True, start_layer=2, depths=(2, 2, 1, 1)).eval()
        image = small_image(net)
        with torch.no_grad(), disable_adapter(net):
            frozen = net.swinViT.encode(image)
        with torch.no_grad():
            found = net.swinViT.encode(image)
        for stage in (0, 1):
            self.assertTrue(torch.equal(found[stage], frozen[stage]))
        stage = net.swinViT.layers2[0]
        with torch.no_grad():
            tokens = net.swinViT.run(image, None, [], [2, 3])[1]
            x = tokens[2].flatten(1, 2)
            block = net.swinViT.dvpt[0]
            added = block.up(block.change(x))
            x = tokens[3].flatten(1, 2)
            added = added + block.up(block.change(x + added))
            expected = stage.downsample((x + added).view(tokens[3].shape)).movedim(-1, 1)
        torch.testing.assert_close(found[2], expected, **ROUNDING)


class TestPredictAdapters(unittest.TestCase):
    @parameterized.expand(
        [
            ("vit_cls_2d", {"num_classes": 5, "start_layer": 3}),
            ("unetr_2d", {"out_channels": 5, "start_layer": 7, "side_path": True}),
            ("segmenter_2d_conv", {"out_channels": 5, "start_layer": 3, "decoder": "linear"}),
            ("swin_unetr_2d", {"out_channels": 5, "start_layer": 4}),
        ]
    )
    def test_as_one_by_one(self, case, other):
        net = frozen_network(case, start_layer=1)
        randomise_method(add_adapter(net, "other", **other), seed=5)
        add_adapter(net, "third", side_path=True)
        set_adapter(net, "other")
        image = small_image(net, batch=2)
        expected = {name: set_adapter(net, name)(image) for name in ("default", "third", "other")}
        ran = outputs_of_layers(net)
        with torch.no_grad():
            found = predict_adapters(net, image)
        self.assertEqual(net.adapter_name, "other")
        self.assertEqual(found.keys(), expected.keys())
        for name, answer in expected.items():
            torch.testing.assert_close(found[name], answer, **ROUNDING)
        frozen, layers = (
            max(net.encoder().prefix_layers[-1] + 1, len(layers_of(net))),
            len(layers_of(net)),
        )  # third needs all
        again = sum(layers - 1 - set_adapter(net, name).encoder().prefix_layers[-1] for name in adapter_names(net))
        self.assertEqual(len(ran), frozen + again)

    def test_some(self):
        net = frozen_network("vit_cls_2d")
        add_adapter(net, "other", num_classes=5)
        answers = predict_adapters(net, small_image(net), ["default"])
        self.assertEqual([*answers], ["default"])
        self.assertTrue(answers["default"].requires_grad)
        self.assertEqual(net.adapter_name, "other")
        self.assertEqual(predict_adapters(net, small_image(net), []), {})
        with self.assertRaisesRegex(ValueError, "name must be one of"):
            predict_adapters(net, small_image(net), ["default", "absent"])
        self.assertEqual(net.adapter_name, "other")


if __name__ == "__main__":
    unittest.main()
