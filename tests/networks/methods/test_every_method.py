# SPDX-License-Identifier: Apache-2.0
"""What every method promises on every network."""

from __future__ import annotations

import copy
import itertools
import unittest
from typing import Any

import torch
from monai.bundle import ConfigParser
from parameterized import parameterized
from utils_data import temporary_folder
from utils_networks import expected_part, new_network, randomise, small_image, small_network, to_be_trained

from monai_dvpt.networks.adapter import add_adapter, load_adapter, merge, save_adapter
from monai_dvpt.networks.methods import METHODS
from monai_dvpt.networks.nets import DVPTViT
from monai_dvpt.networks.parts import count_parameters, parameter_groups, tune

VITS = ("vit_cls_2d", "vit_mean_3d", "vit_encoder_2d")
SWINS = ("swin_unetr_2d", "swin_unetr_2d_none", "swin_classifier_2d")
WITH_PROMPTS = {"vpt_shallow": VITS, "vpt_deep": (*VITS, "unetr_2d")}
IMPOSSIBLE = [
    *(("vpt_shallow", case) for case in ("unetr_2d", *SWINS)),
    *(("vpt_deep", case) for case in SWINS),
    ("linear", "vit_encoder_2d"),
]
NETS = (*VITS, "unetr_2d", *SWINS)
CASES = [pair for pair in itertools.product(METHODS, NETS) if pair not in IMPOSSIBLE]
# small, and of another size than anything else; an option makes the DVPT methods build new blocks
OPTIONS: dict[str, dict[str, Any]] = {
    "dvpt": {"bottleneck_size": 4, "share_every": 3},
    "bottleneck": {"bottleneck_size": 4, "start_layer": 1},
    "vpt_shallow": {"num_prompts": 9},
    "vpt_deep": {"num_prompts": 9},
    "adaptformer": {"bottleneck_size": 9},
    "lora": {"rank": 3, "alpha": 7},
}
ADDED = {  # last parts of the names that a method adds to those of MONAI
    "vpt_shallow": {"prompts"},
    "vpt_deep": {"prompts"},
    "adaptformer": {"adapter_down.weight", "adapter_down.bias", "adapter_up.weight", "adapter_up.bias"},
    "lora": {"qkv.lora_a", "qkv.lora_b"},
    "ssf": {"ssf_scale", "ssf_shift"},
}


def tuned(case: str, method: str, seed: int = 0) -> Any:
    """A network with random weights in evaluation mode, tuned by ``method``; what the method adds is as it makes it."""
    return tune(small_network(case, seed).eval(), method, **OPTIONS.get(method, {}))


def trainable(net: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in net.named_parameters() if parameter.requires_grad}


def randomise_trainable(net: torch.nn.Module, seed: int = 5) -> Any:
    """Moves all that is trained, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainable(net).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) / 10)
    return net


def expected_trainable(plain: Any, net: Any, method: str) -> set[str]:
    """Names of what ``method`` trains, judged by names alone; ``plain`` is the network before."""
    if method in ("dvpt", "bottleneck"):
        return to_be_trained(net, ("dvpt", "decoder", "head"))
    if method == "full":
        return to_be_trained(plain, ("backbone", "decoder", "head"))
    names = to_be_trained(plain, ("decoder", "head"))
    if method == "bitfit":
        backbone = to_be_trained(plain, ("backbone",))
        encoder = ("vit.", "swinViT.") if not isinstance(plain, DVPTViT) else ""
        names |= {name for name in backbone if name.startswith(encoder) and name.endswith(".bias")}
    return names | (net.state_dict().keys() - plain.state_dict().keys())


class TestMethods(unittest.TestCase):
    @parameterized.expand(CASES)
    def test_trained(self, method, case):
        plain = small_network(case)
        net = tuned(case, method)
        self.assertEqual(set(trainable(net)), expected_trainable(plain, net, method))
        # MONAI's names stay, with their values, and what is new has the names that it should have
        before, after = plain.state_dict(), net.state_dict()
        kept = {name for name in before if not name.startswith("dvpt.")}
        self.assertTrue(all(torch.equal(before[name], after[name]) for name in kept))
        added = {name for name in after.keys() - kept if not name.startswith("dvpt.")}
        ends = ADDED.get(method, set())
        self.assertTrue(all(any(name.endswith(f".{end}") for end in ends) for name in added))
        self.assertTrue(all(any(name.endswith(f".{end}") for name in added) for end in ends))
        self.assertTrue(all(expected_part(net, name) == net.part_of(name) for name in after))
        self.assertEqual(any(name.startswith("dvpt.") for name in after), method in ("dvpt", "bottleneck"))
        counts = count_parameters(net)
        self.assertEqual(counts["network"]["trainable"], sum(p.numel() for p in trainable(net).values()))
        rates = {"backbone": 0.1, "dvpt": 0.2, "decoder": 0.3, "head": 0.4}
        grouped = sum(parameter.numel() for group in parameter_groups(net, rates) for parameter in group["params"])
        self.assertEqual(grouped, counts["network"]["trainable"])

    @parameterized.expand([pair for pair in CASES if pair[0] not in WITH_PROMPTS])
    def test_starts_as_the_frozen_network(self, method, case):
        plain = small_network(case).eval()
        plain.dvpt_enabled = False
        image = small_image(plain, batch=2)
        with torch.no_grad():  # a trained table of relative positions rounds in another way
            torch.testing.assert_close(tuned(case, method)(image), plain(image), rtol=0, atol=0)

    @parameterized.expand(CASES)
    def test_gradients(self, method, case):
        net = randomise_trainable(tuned(case, method)).train()
        output = net(small_image(net, batch=2))
        (output * torch.randn(output.shape, generator=torch.Generator().manual_seed(3))).sum().backward()
        for name, parameter in net.named_parameters():
            if not parameter.requires_grad:
                self.assertIsNone(parameter.grad, name)
            elif parameter.numel():  # without prompts there are none
                self.assertTrue(parameter.grad is not None and parameter.grad.any(), name)

    @parameterized.expand(CASES)
    def test_copies(self, method, case):
        net = randomise_trainable(tuned(case, method))
        image = small_image(net)
        expected = net(image)
        self.assertTrue(torch.equal(net(image), expected))
        other = tuned(case, method, seed=1)
        other.load_state_dict(net.state_dict())
        self.assertTrue(torch.equal(other(image), expected))
        copied = copy.deepcopy(net)
        randomise(net, seed=2)
        self.assertTrue(torch.equal(copied(image), expected))
        self.assertFalse(torch.equal(net(image), expected))

    @parameterized.expand([(method,) for method in METHODS])
    def test_mode(self, method):
        net = tune(small_network("vit_cls_2d", dropout_rate=0.5), method).train()
        self.assertTrue(net.training)
        self.assertEqual(net.blocks[1].training, method not in ("dvpt", "bottleneck", "linear", "vpt_shallow"))
        self.assertEqual(net.blocks[1].attn.training, method in ("full", "bitfit", "lora", "ssf"))
        self.assertFalse(tuned("vit_cls_2d", method).training)

    def test_from_a_config(self):
        config = {
            "imports": ["$from monai_dvpt.baselines import tune"],
            "network_def": {"_target_": "monai_dvpt.networks.nets.DVPTViT", **new_network("vit_cls_2d").arguments},
            "network": "$tune(@network_def, 'lora', rank=3).to('cpu')",
        }
        net = ConfigParser(config).get_parsed_content("network")
        self.assertEqual(set(trainable(net)), set(trainable(tuned("vit_cls_2d", "lora"))))

    def test_headless_is_frozen(self):
        net = tuned("vit_encoder_2d", "lora")
        self.assertTrue(all(".lora_" in name for name in trainable(net)))

    def test_checkpointing(self):
        for method in METHODS:
            image = small_image(small_network("vit_cls_2d"))
            expected, found = (
                randomise_trainable(tune(small_network("vit_cls_2d", use_checkpoint=use).train(), method))
                for use in (False, True)
            )
            if method in WITH_PROMPTS or method in ("adaptformer", "lora", "bottleneck"):
                found.load_state_dict(expected.state_dict())  # other random starts
            for net in (expected, found):
                net(image).sum().backward()
            for name, parameter in trainable(expected).items():
                torch.testing.assert_close(found.get_parameter(name).grad, parameter.grad, msg=f"{method} {name}")


class TestDVPT(unittest.TestCase):
    def test_default_keeps_the_blocks(self):
        net = small_network("unetr_2d").eval()
        image = small_image(net)
        expected, blocks = net(image), net.dvpt
        self.assertTrue(torch.equal(tune(net)(image), expected))
        self.assertIs(net.dvpt, blocks)

    def test_options_are_those_of_the_constructor(self):
        options = {"bottleneck_size": 6, "num_prompts": 8, "share_every": 1, "start_layer": 2}
        for case in ("vit_cls_2d", "unetr_2d", "swin_unetr_2d"):
            net, expected = tune(new_network(case), **options), new_network(case, **options)
            self.assertEqual(net.arguments, expected.arguments)
            self.assertEqual(net.dvpt_of_layer, expected.dvpt_of_layer)
            shapes = [{k: v.shape for k, v in each.state_dict().items()} for each in (net, expected)]
            self.assertEqual(*shapes)

    def test_adapter_file_records_the_options(self):
        path = temporary_folder(self) / "adapter.safetensors"
        net = randomise_trainable(tuned("unetr_2d", "bottleneck"))
        save_adapter(net, path)
        other = small_network("unetr_2d", bottleneck_size=4, num_prompts=0, start_layer=1).eval()
        image = small_image(net)
        self.assertTrue(torch.equal(load_adapter(other, path)(image), net(image)))

    def test_again_after_another_method(self):
        net = tune(tune(new_network("swin_classifier_2d"), "linear"), "dvpt")
        expected = new_network("swin_classifier_2d")
        self.assertEqual(net.state_dict().keys(), expected.state_dict().keys())
        self.assertEqual(net.arguments, expected.arguments)


class TestRefusals(unittest.TestCase):
    @parameterized.expand(
        [
            ("method", "prefix", {}, "method must be one of .*'lora'.* got prefix"),
            ("no_options", "full", {"rank": 4}, r"options must be of \[\] for the method \"full\", got \['rank'\]"),
            ("unknown_option", "lora", {"r": 4}, r"options must be of \['rank', 'alpha'\] .* got \['r'\]"),
            ("rank", "lora", {"rank": 0}, "rank must be a whole number of at least 1, got 0"),
            ("alpha", "lora", {"alpha": -1}, "alpha must be a positive number, got -1"),
            ("alpha_text", "lora", {"alpha": "1"}, "alpha must be a positive number, got 1"),
            ("bottleneck_size", "adaptformer", {"bottleneck_size": 0.5}, "bottleneck_size must be .* got 0.5"),
            ("scale", "adaptformer", {"scale": float("inf")}, "scale must be a positive number, got inf"),
            ("shallow", "vpt_shallow", {"num_prompts": 0}, "num_prompts must be .* at least 1, got 0"),
            ("deep", "vpt_deep", {"num_prompts": -1}, "num_prompts must be .* at least 1, got -1"),
            ("dvpt", "dvpt", {"bottleneck_size": 24}, "bottleneck_size must be in .* got 24"),
            ("start_layer", "bottleneck", {"start_layer": 5}, "start_layer must be in .* got 5"),
            ("prompts", "bottleneck", {"num_prompts": 5}, "options must be of .* got .'num_prompts'"),
        ]
    )
    def test_options(self, _, method, options, message):
        net = small_network("vit_cls_2d").eval()
        image = small_image(net)
        before, arguments, names = net(image), net.arguments, set(net.state_dict())
        with self.assertRaisesRegex(ValueError, message):
            tune(net, method, **options)
        self.assertEqual((net.arguments, set(net.state_dict())), (arguments, names))
        self.assertTrue(torch.equal(net(image), before))
        self.assertEqual(len(trainable(net)), len(trainable(small_network("vit_cls_2d"))))

    @parameterized.expand(IMPOSSIBLE)
    def test_networks(self, method, case):
        net = small_network(case)
        names = set(net.state_dict())
        with self.assertRaisesRegex(ValueError, f'net must .* for the method "{method}", got '):
            tune(net, method)
        self.assertEqual(set(net.state_dict()), names)

    def test_no_network(self):
        with self.assertRaisesRegex(ValueError, "net must be a network of monai_dvpt.networks.nets, got Linear"):
            tune(torch.nn.Linear(2, 3), "lora")

    @parameterized.expand([(method,) for method in ADDED])
    def test_twice(self, method):
        net = tuned("vit_cls_2d", method)
        for other in METHODS:
            with self.assertRaisesRegex(ValueError, "net must not have been changed by a method before"):
                tune(net, other)

    def test_several_adapters(self):
        net = add_adapter(small_network("unetr_2d"), "second")
        with self.assertRaisesRegex(ValueError, r"net must have one adapter, got \['second', 'default'\]"):
            tune(net, "lora")

    @parameterized.expand([(method,) for method in METHODS if method not in ("lora", "ssf")])
    def test_merge(self, method):
        with self.assertRaisesRegex(ValueError, 'net must have been tuned by "lora" or "ssf"'):
            merge(tuned("vit_cls_2d", method))


if __name__ == "__main__":
    unittest.main()
