# SPDX-License-Identifier: Apache-2.0
"""Files with some parts of an adapter, loaded beside the adapter that has the others."""

from __future__ import annotations

import unittest

import torch
from parameterized import parameterized
from utils_data import temporary_folder
from utils_networks import copy_of_state, randomise, small_image, small_network

from monai_dvpt.networks.adapter import (
    adapter_metadata,
    adapter_names,
    load_adapter,
    save_adapter,
    set_adapter,
)
from monai_dvpt.networks.nets import DVPTViT
from monai_dvpt.networks.parts import tune
from monai_dvpt.utils import InputError

LORA = {"method": "lora", "rank": 3}
METHODS = [LORA, {"method": "ssf"}, {"method": "full"}, {"method": "linear"}, {"method": "dvpt", "num_prompts": 3}]
CASES = [("unetr_2d", settings, "method, head") for settings in METHODS]
CASES += [("unetr_2d", LORA, "method"), ("swin_unetr_2d_norm", LORA, "method, head"), ("vit_cls_2d", LORA, "method")]


def head_of(net) -> str:
    return "classification_head" if isinstance(net, DVPTViT) else "out"


@torch.no_grad()
def answer(net) -> torch.Tensor:
    return net(small_image(net))


class TestNamedParts(unittest.TestCase):
    def setUp(self):
        self.path = temporary_folder(self) / "adapter.safetensors"

    def save_other(self, net, parts, method="dvpt", **arguments):
        """A network of the same frozen tensors, whose method, decoder and head are others; some of them in a file."""
        options = {key: arguments.pop(key) for key in ("rank", "num_prompts", "side_path") if key in arguments}
        options |= {"bottleneck_size": 5} if method == "dvpt" else {}
        other = type(net)(**{**net.arguments, **arguments}, method="linear").to(net.encoder().like())
        frozen = {key: net.state_dict()[key] for key, _ in net.tensors(["backbone"])}
        other.load_state_dict(frozen, strict=False)
        tune(other, method, **options).eval()
        torch.manual_seed(5)
        for tensor in other.parameters():
            if tensor.requires_grad:
                tensor.data += torch.randn_like(tensor) / 5
        save_adapter(other, self.path, parts=parts)
        return other

    @parameterized.expand(CASES)
    def test_missing_ones_are_copies_of_those_in_use(self, case, settings, parts):
        net = small_network(case, 1).eval()
        first, state = answer(net), copy_of_state(net)
        parts = [part for part in parts.split(", ") if part != "method" or settings["method"] != "linear"]
        other = self.save_other(net, parts, **settings)
        self.assertIs(load_adapter(net, self.path, name="second", parts=parts), net)
        self.assertEqual(adapter_names(net), ["second", "default"])
        # what the file lacks, by names that the networks give it
        own = {
            key: tensor
            for key, tensor in state.items()
            if not key.startswith((other.ENCODER or "blocks", "dvpt", *([head_of(net)] if "head" in parts else [])))
        }
        other.load_state_dict(own, strict=False)
        self.assertTrue(torch.equal(answer(net), answer(other)))
        self.assertEqual(net.method, other.method)
        randomise(net.get_submodule(head_of(net)), 7)
        for name, tensor in net.named_parameters():
            if net.part_of(name) == "decoder":
                tensor.data += 1
        self.assertTrue(torch.equal(answer(set_adapter(net, "default")), first))
        self.assertFalse(any(module.training for module in net.modules()))

    def test_method_alone_goes_with_any_number_of_classes(self):
        net = small_network("unetr_2d", 1).eval()
        self.save_other(net, ["method"], out_channels=5, feature_size=8, **LORA)
        load_adapter(net, self.path, name="second", parts=["method"])
        self.assertEqual(net.arguments, small_network("unetr_2d").arguments)
        self.assertEqual(answer(net).shape[1], 3)

    def test_other_number_of_classes(self):
        net = small_network("unetr_2d", 1).eval()
        self.save_other(net, ["method", "head"], out_channels=5, **LORA)
        load_adapter(net, self.path, name="second", parts=["method", "head"])
        self.assertEqual(answer(net).shape[1], 5)
        save_adapter(net, self.path)
        self.assertEqual(adapter_metadata(self.path)["arguments"]["out_channels"], 5)

    @parameterized.expand(
        [
            (["method", "head"], {"feature_size": 8}, "feature_size must be that of the network, 4, got 8"),
            (["method", "head"], {"norm_name": "batch"}, "norm_name must be that of the network, instance, got batch"),
            (
                ["method", "decoder"],
                {"out_channels": 5},
                r"with \['head'\] of the active adapter: out.conv.conv.weight must have shape \(5, .*got \(3,",
            ),
            (["head"], {"method": "dvpt", "num_prompts": 3}, r"with \['method', 'decoder'\].*prompts must have shape"),
            (
                ["head"],
                {"method": "dvpt", "num_prompts": 7, "side_path": True},
                "with .*: method must be that of the net",
            ),
            (["head"], LORA, r"with \['method', 'decoder'\] of the active adapter: tensors must be those of .*missing"),
        ]
    )
    def test_what_does_not_fit_is_refused(self, parts, arguments, words):
        net = small_network("unetr_2d", 1).eval()
        first = answer(net)
        self.save_other(net, parts, **arguments)
        with self.assertRaisesRegex(InputError, f"adapter.safetensors: {words}"):
            load_adapter(net, self.path, name="second", parts=parts)
        self.assertEqual(adapter_names(net), ["default"])
        self.assertTrue(torch.equal(answer(net), first))

    def test_other_parts_than_asked_for(self):
        net = small_network("unetr_2d", 1).eval()
        self.save_other(net, ["method", "head"])
        for parts in (None, ["method"], ["method", "decoder", "head"]):
            with self.assertRaisesRegex(InputError, r"parts must be .*, got \['method', 'head'\]"):
                load_adapter(net, self.path, name="second", parts=parts)

    def test_other_type_of_numbers(self):
        net = small_network("unetr_2d", 1).eval().double()
        other = self.save_other(net, ["method", "head"], **LORA)
        decoder = {key: tensor for key, tensor in net.state_dict().items() if not key.startswith(("vit.", "out."))}
        other.load_state_dict(decoder, strict=False)
        load_adapter(net, self.path, name="second", parts=["method", "head"])
        image = small_image(net).double()
        with torch.no_grad():
            self.assertEqual(net(image).dtype, torch.float64)  # what is loaded under a name is read as float32
            torch.testing.assert_close(net(image), other(image), rtol=1e-5, atol=1e-6)


if __name__ == "__main__":
    unittest.main()
