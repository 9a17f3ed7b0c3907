# SPDX-License-Identifier: Apache-2.0
"""Encoders answer as MONAI's do, and a network goes anywhere with any method in its slot."""

from __future__ import annotations

import copy
import io
import pickle
import unittest
from typing import Any

import torch
from monai.networks.nets import UNETR, SwinUNETR
from parameterized import parameterized
from utils_networks import changed, copy_of_state, expected_part, small_image, small_network, tuned_network

from monai_dvpt.networks.adapter import (
    add_adapter,
    backbone_sha256,
    disable_adapter,
    encoder_sha256,
    predict_adapters,
    set_adapter,
)
from monai_dvpt.networks.methods import METHODS
from monai_dvpt.networks.parts import freeze_backbone, tune

OF_SWIN = [name for name in METHODS if not name.startswith("vpt")]
OF_UNETR = [name for name in METHODS if name != "vpt_shallow"]
EACH = [("vit_cls_2d", name) for name in METHODS]
EACH += [("unetr_2d", name) for name in ("full", "bitfit")]
EACH += [("sam_2d", name) for name in ("dvpt", "lora", "ssf", "full", "bitfit")]
EACH += [("swin_classifier_2d", name) for name in OF_SWIN if name != "bottleneck"]
CHANGE_THE_EMBEDDING = ("full", "bitfit", "ssf")


@torch.no_grad()
def answer(net: Any, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return net(small_image(net, batch=2).to(dtype))


@torch.no_grad()
def plain_answer(net: Any, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    with disable_adapter(net):
        return answer(net, dtype)


class Base(unittest.TestCase):
    def check_equal(self, found: torch.Tensor, expected: torch.Tensor) -> None:
        self.assertTrue(torch.equal(found, expected))


class TestAsMonai(Base):
    @parameterized.expand([(method,) for method in OF_UNETR])
    @torch.no_grad()
    def test_unetr(self, method):
        net = tuned_network("unetr_2d", method).eval()
        image = small_image(net, batch=2)
        tokens, states = net.vit(image)
        self.assertEqual((tokens.shape, len(states)), ((2, 6, 24), 12))
        self.check_equal(tokens, net.vit.norm(states[-1]))
        self.check_equal(UNETR.forward(net, image), net(image))
        self.assertFalse(torch.equal(plain_answer(net), net(image)) and method != "linear")

    @parameterized.expand([(method,) for method in OF_SWIN])
    @torch.no_grad()
    def test_swin_unetr(self, method):
        net = tuned_network("swin_unetr_2d", method).eval()
        image = small_image(net, batch=2)
        for normalize in (False, True):
            features = net.swinViT(image, normalize)
            self.assertEqual([each.shape[1] for each in features], [12, 24, 48, 96, 192])
            self.assertEqual(features[4].shape[2:], (1, 3))
            net.normalize = normalize
            self.check_equal(SwinUNETR.forward(net, image), net(image))


class TestPrefix(Base):
    @parameterized.expand([(case, method) for case, method in EACH if method in CHANGE_THE_EMBEDDING])
    def test_refused_where_the_embedding_changes(self, case, method):
        net = freeze_backbone(tuned_network(case, method)).eval()
        with self.assertRaisesRegex(ValueError, f'^a prefix must come from frozen layers, and "{method}" changes the'):
            net.forward_prefix(small_image(net))

    @parameterized.expand([(case, method) for case, method in EACH if method not in CHANGE_THE_EMBEDDING])
    @torch.no_grad()
    def test_same_answer(self, case, method):
        net = freeze_backbone(tuned_network(case, method)).eval()
        image = small_image(net, batch=2)
        prefix, expected = net.forward_prefix(image), net(image)
        ran: list[int] = []
        for layer, block in enumerate(net.encoder().blocks):
            block.register_forward_hook(lambda *_, layer=layer: ran.append(layer))
        torch.testing.assert_close(net(image, prefix), expected, rtol=1e-5, atol=1e-5)
        layers = len(net.encoder().blocks)
        # DVPT comes in after its first layer, a linear probe after all, the others before the first
        first = {"dvpt": 1, "bottleneck": 1, "linear": layers}.get(method, 0)
        self.assertEqual(ran, list(range(first, layers)))

    @torch.no_grad()
    def test_adapters_of_which_one_changes_the_embedding(self):
        net = freeze_backbone(small_network("vit_cls_2d")).eval()
        image, expected = small_image(net), {}
        for name in ("full", "lora"):
            expected[name] = add_adapter(net, name, method=name)(image)
        expected["default"] = set_adapter(net, "default")(image)
        found = predict_adapters(net, image)
        self.assertEqual(found.keys(), expected.keys())
        for name, output in expected.items():
            torch.testing.assert_close(found[name], output, rtol=1e-5, atol=1e-5)


class TestRefused(Base):
    @parameterized.expand(
        [
            ("unetr_2d", "lora", "dvpt", {"bottleneck_size": 24}, r"bottleneck_size must be in .*24\), got 24"),
            ("unetr_2d", "dvpt", "dvpt", {"start_layer": 12}, r"start_layer must be in \[0, 12\), got 12"),
            ("unetr_2d", "full", "vpt_shallow", {}, "must have an encoder of which only the last layer is used"),
            ("swin_classifier_2d", "ssf", "vpt_deep", {}, "must have an encoder whose layers see all tokens at once"),
            ("vit_cls_2d", "full", "lora", {"rank": 0}, "rank must be a whole number of at least 1, got 0"),
        ]
    )
    def test_network_is_as_it_was(self, case, method, other, options, words):
        net = tuned_network(case, method).eval()
        expected, before, own = answer(net), copy_of_state(net), net.method
        with self.assertRaisesRegex(ValueError, words):
            tune(net, other, **options)
        self.assertEqual((net.method, changed(before, net)), (own, set()))
        self.check_equal(answer(net), expected)


class TestBackbone(Base):
    @parameterized.expand(EACH)
    def test_a_step_leaves_it_as_it_was(self, case, method):
        net = freeze_backbone(tuned_network(case, method)).train()
        sha256, encoder, plain = backbone_sha256(net), encoder_sha256(net), plain_answer(net.eval())
        before, originals = copy_of_state(net), {k: v.clone() for k, v in net.tensors(["backbone"])}
        trained = [parameter for parameter in net.train().parameters() if parameter.requires_grad]
        net(small_image(net)).square().mean().backward()
        torch.optim.SGD(trained, 0.1).step()
        moved = {name for name, p in net.named_parameters() if p.requires_grad}
        self.assertEqual(
            {expected_part(net, name) for name in moved}, {expected_part(net, n) for n in changed(before, net)}
        )
        self.assertEqual((backbone_sha256(net), encoder_sha256(net)), (sha256, encoder))
        after = dict(net.tensors(["backbone"]))
        self.assertEqual(after.keys(), originals.keys())
        self.assertTrue(all(torch.equal(after[name], tensor) for name, tensor in originals.items()))
        with torch.no_grad():  # decoder and head are trained too
            for name, tensor in before.items():
                if expected_part(net, name) in ("decoder", "head"):
                    net.state_dict()[name].copy_(tensor)
        self.check_equal(plain_answer(net.eval()), plain)


class TestCopies(Base):
    @parameterized.expand(
        [
            (f"{case}_{method}_{way}", case, method, function)
            for case, method in EACH
            for way, function in (
                ("deepcopy", copy.deepcopy),
                ("pickle", lambda net: pickle.loads(pickle.dumps(net))),
                ("save", lambda net: saved_and_loaded(net)),
            )
            if way != "save" or case == "vit_cls_2d"
        ]
    )
    def test_equal_and_apart(self, _, case, method, function):
        net = freeze_backbone(tuned_network(case, method)).eval()
        expected, plain = answer(net), plain_answer(net)
        twin = function(net)
        self.assertEqual(twin.method, net.method)
        self.check_equal(answer(twin), expected)
        self.check_equal(plain_answer(twin), plain)
        self.check_equal(answer(twin), expected)
        self.assertEqual(backbone_sha256(twin), backbone_sha256(net))
        requires_grad = [{n: p.requires_grad for n, p in each.named_parameters()} for each in (net, twin)]
        self.assertEqual(*requires_grad)
        with torch.no_grad():
            for tensor in [*twin.parameters(), *twin.encoder().originals.values()]:
                tensor.add_(1)
        self.check_equal(answer(net), expected)
        self.check_equal(plain_answer(net), plain)


class TestMoves(Base):
    @parameterized.expand(EACH)
    def test_other_type_of_numbers(self, case, method):
        net = freeze_backbone(tuned_network(case, method)).eval()
        # out of the slot while the network is moved: the tensors of one adapter, the originals of another
        add_adapter(net, "other", method="linear").eval()
        doubles = copy.deepcopy(net)
        expected = {name: answer(set_adapter(doubles, name).double(), torch.float64) for name in ("default", "other")}
        net.double()
        for name in ("default", "other", "default"):
            self.assertEqual(answer(set_adapter(net, name), torch.float64).dtype, torch.float64)
            self.check_equal(answer(net, torch.float64), expected[name])
            self.assertEqual({p.dtype for p in net.parameters()}, {torch.float64})
        set_adapter(net, "default").float()
        self.assertEqual(answer(set_adapter(net, "other")).dtype, torch.float32)
        self.assertEqual({p.dtype for p in net.parameters()}, {torch.float32})

    @parameterized.expand(EACH)
    def test_other_device(self, case, method):
        net = add_adapter(tuned_network(case, method), "other", method="linear")
        for active in ("other", "default"):
            twin = set_adapter(copy.deepcopy(net), active).to("meta")
            for name in ("default", "other"):
                state = set_adapter(twin, name).state_dict()
                self.assertEqual({tensor.device.type for tensor in state.values()}, {"meta"})
            self.assertEqual({t.device.type for _, t in twin.tensors(["backbone"])}, {"meta"})


def saved_and_loaded(net: Any) -> Any:
    """As a whole, with its code, through ``torch.save``."""
    buffer = io.BytesIO()
    torch.save(net, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


if __name__ == "__main__":
    unittest.main()
