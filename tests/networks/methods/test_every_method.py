# SPDX-License-Identifier: Apache-2.0
"""What every method promises on every network."""

from __future__ import annotations

import copy
import itertools
import unittest
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn as nn
from monai.bundle import ConfigParser
from parameterized import parameterized
from safetensors.torch import load_file
from utils_data import temporary_folder
from utils_networks import NETWORKS, changed, copy_of_state, randomise, seal, small_image

from monai_dvpt.networks.adapter import (
    adapter_metadata,
    adapter_names,
    add_adapter,
    backbone_sha256,
    build_network,
    disable_adapter,
    load_adapter,
    merge,
    predict_adapters,
    round_backbone,
    save_adapter,
    set_adapter,
    share_backbone,
)
from monai_dvpt.networks.encoders import Encoder
from monai_dvpt.networks.methods import METHODS, Method
from monai_dvpt.networks.parts import count_parameters, parameter_groups, tune
from monai_dvpt.utils import InputError

NETS = ("vit_cls_2d", "unetr_3d_patch_8", "segmenter_2d_conv", "sam_2d", "tiny_vit_2d", "swin_unetr_2d")
WINDOWS = ("sam_2d", "tiny_vit_2d", "swin_unetr_2d")  # of tokens
IMPOSSIBLE = [
    *(("vpt_shallow", case) for case in ("unetr_3d_patch_8", *WINDOWS)),
    *(("vpt_deep", case) for case in WINDOWS),
]
CASES = [pair for pair in itertools.product(METHODS, NETS) if pair not in IMPOSSIBLE]
VPT = ("vpt_shallow", "vpt_deep")
MERGED = ("lora", "ssf", "bitfit", "full", "linear")
# small, and of another size than anything else
OPTIONS: dict[str, dict[str, Any]] = {
    "dvpt": {"bottleneck_size": 5, "num_prompts": 7, "share_every": 2},
    "bottleneck": {"bottleneck_size": 4, "start_layer": 1},
    "vpt_shallow": {"num_prompts": 9},
    "vpt_deep": {"num_prompts": 9},
    "adaptformer": {"bottleneck_size": 9, "scale": 0.5},
    "lora": {"rank": 3, "alpha": 7},
}
ADDED = {  # last parts of the names that a method adds to those of MONAI
    "dvpt": {"prompts", "gate", "down.weight", "down.bias", "up.weight", "up.bias"},
    "bottleneck": {"prompts", "gate", "down.weight", "down.bias", "up.weight", "up.bias"},
    "vpt_shallow": {"prompts"},
    "vpt_deep": {"prompts"},
    "adaptformer": {"adapter_down.weight", "adapter_down.bias", "adapter_up.weight", "adapter_up.bias"},
    "lora": {"qkv.lora_a", "qkv.lora_b"},
    "ssf": {"ssf_scale", "ssf_shift"},
}


def frozen(case: str, seed: int = 0, **arguments: Any) -> Any:
    """A network without a method, with random weights, of which decoder and head are trained."""
    kind, sizes = NETWORKS[case]
    sizes = {key: value for key, value in sizes.items() if key not in OPTIONS["dvpt"]}
    torch.manual_seed(seed)
    net = randomise(kind(**{**sizes, **arguments}, method="linear"), seed).eval()
    return tune(net, "linear")


def tuned(plain: nn.Module, method: str, seed: int = 5) -> Any:
    """A copy of a network, after some training by a method."""
    torch.manual_seed(seed)
    return randomise_trainable(tune(copy.deepcopy(plain), method, **OPTIONS.get(method, {})), seed)


def trainable(net: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in net.named_parameters() if parameter.requires_grad}


def randomise_trainable(net: nn.Module, seed: int = 5) -> Any:
    """Moves all that is trained, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainable(net).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) / 10)
    return net


@torch.no_grad()
def answer(net: nn.Module, batch: int = 2) -> torch.Tensor:
    return net(small_image(net, batch))


def places(net: nn.Module) -> dict[str, int]:
    """The tensors of a network as objects, by their names."""
    return {name: id(tensor) for name, tensor in net.state_dict(keep_vars=True).items()}


def encoder_names(plain: nn.Module) -> set[str]:
    """Names of MONAI's encoder in a network without a method."""
    others = ("classification_head.", "encoder", "decoder", "out.")
    return {name for name in plain.state_dict() if not name.startswith(others)}


def expected_trainable(plain: nn.Module, net: nn.Module, method: str) -> set[str]:
    """Names of what a method trains, judged by names alone; ``plain`` is the network without it."""
    encoder = encoder_names(plain)
    names = set(net.state_dict()) - encoder  # what the method adds, decoder, and head
    fixed = ("norm_cross_attn", "relative_position_index")
    if plain.arguments.get("pos_embed_type") == "sincos":
        fixed += ("position_embeddings",)
    ends = {"full": "", "bitfit": ".bias"}.get(method, "nothing")
    return names | {n for n in encoder if n.endswith(ends) and not any(other in n for other in fixed)}


def expected_decayed(net: nn.Module) -> set[str]:
    """Names of what weight decay should act on, judged by names and dimensions alone."""
    others = ("prompts", "cls_token", "position_embeddings", "relative_position_bias_table")
    others += ("rel_pos_h", "rel_pos_w", "attention_biases")
    return {name for name, parameter in trainable(net).items() if parameter.ndim > 1 and not name.endswith(others)}


class TestTrained(unittest.TestCase):
    @parameterized.expand([pair for pair in CASES if pair[0] not in VPT])
    def test_starts_as_the_frozen_network(self, method, case):
        plain = frozen(case)
        net = tune(copy.deepcopy(plain), method, **OPTIONS.get(method, {}))
        self.assertTrue(torch.equal(answer(net), answer(plain)))

    @parameterized.expand([pair for pair in CASES if pair[0] in VPT])
    def test_prompts_change_the_network_from_the_start(self, method, case):
        plain = frozen(case)
        net = tune(copy.deepcopy(plain), method, **OPTIONS[method])
        self.assertGreater((answer(net) - answer(plain)).abs().max(), 1e-4)

    @parameterized.expand(CASES)
    def test_names_and_numbers(self, method, case):
        plain = frozen(case)
        net = tune(copy.deepcopy(plain), method, **OPTIONS.get(method, {}))
        self.assertEqual(set(trainable(net)), expected_trainable(plain, net, method))
        # MONAI's names stay, with their values, and what is new has the names that it should have
        before, after = plain.state_dict(), net.state_dict()
        self.assertTrue(all(torch.equal(tensor, after[name]) for name, tensor in before.items()))
        added, ends = after.keys() - before.keys(), ADDED.get(method, set())
        self.assertTrue(all(any(name.endswith(f".{end}") for end in ends) for name in added))
        self.assertTrue(all(any(name.endswith(f".{end}") for name in added) for end in ends))
        parts = {name: net.part_of(name) for name in after}
        own = expected_trainable(plain, net, method) & (encoder_names(plain) | added)
        self.assertEqual({name for name, part in parts.items() if part == "method"}, own)
        self.assertEqual({name for name, part in parts.items() if part == "backbone"}, encoder_names(plain) - own)
        counts = count_parameters(net)
        self.assertEqual(counts["method"]["trainable"], sum(after[name].numel() for name in own))
        self.assertEqual(counts["network"]["trainable"], sum(p.numel() for p in trainable(net).values()))
        groups = parameter_groups(net, {"method": 0.2, "decoder": 0.3, "head": 0.4})
        grouped = [parameter for group in groups for parameter in group["params"]]
        self.assertEqual({id(p) for p in grouped}, {id(p) for p in trainable(net).values()})
        decayed = {id(p) for group in groups if "weight_decay" not in group for p in group["params"]}
        self.assertEqual({name for name, p in trainable(net).items() if id(p) in decayed}, expected_decayed(net))
        self.assertEqual({group.get("weight_decay", 0.0) for group in groups}, {0.0})

    @parameterized.expand(CASES)
    def test_a_step(self, method, case):
        plain = frozen(case)
        net = tuned(plain, method).train()
        before, output, backbone = copy_of_state(net), answer(net), backbone_sha256(net)
        self.assertEqual(backbone, backbone_sha256(plain))
        found = net(small_image(net, batch=2))
        (found * torch.randn(found.shape, generator=torch.Generator().manual_seed(3))).sum().backward()
        for name, parameter in net.named_parameters():
            if not parameter.requires_grad:
                self.assertIsNone(parameter.grad, name)
            elif parameter.numel():  # without prompts there are none
                self.assertTrue(parameter.grad is not None and parameter.grad.any(), name)
        torch.optim.SGD(trainable(net).values(), lr=1.0).step()
        self.assertEqual(changed(before, net), {name for name, p in trainable(net).items() if p.numel()})
        self.assertFalse(torch.equal(answer(net), output))
        self.assertEqual(backbone_sha256(net), backbone)

    @parameterized.expand(CASES)
    def test_copies(self, method, case):
        plain = frozen(case)
        net, other = (tuned(plain, method, seed) for seed in (5, 6))
        expected = answer(net)
        self.assertFalse(torch.equal(answer(other), expected))
        other.load_state_dict(net.state_dict())
        self.assertTrue(torch.equal(answer(other), expected))
        copied = copy.deepcopy(net)
        randomise(net, seed=2)
        self.assertTrue(torch.equal(answer(copied), expected))
        self.assertFalse(torch.equal(answer(net), expected))

    @parameterized.expand([(method,) for method in METHODS])
    def test_mode(self, method):
        net = tune(frozen("vit_cls_2d", dropout_rate=0.5), method, **OPTIONS.get(method, {})).train()
        self.assertTrue(net.training)
        self.assertEqual(net.blocks[1].training, method not in ("dvpt", "bottleneck", "linear", "vpt_shallow"))
        self.assertEqual(net.blocks[1].attn.training, method in ("full", "bitfit", "lora", "ssf"))
        self.assertFalse(tuned(frozen("vit_cls_2d"), method).training)

    @parameterized.expand([(method,) for method in METHODS])
    def test_checkpointing(self, method):
        plain, gradients = frozen("vit_cls_2d"), []
        for use in (False, True):
            net = tuned(plain, method).train()
            net.use_checkpoint = use
            net(small_image(net)).sum().backward()
            gradients.append({name: parameter.grad for name, parameter in trainable(net).items()})
        for name, expected in gradients[0].items():
            torch.testing.assert_close(gradients[1][name], expected, msg=f"{method} {name}")

    def test_frozen_decoder(self):
        plain = frozen("swin_unetr_2d", decoder_tuning="none")
        for method in METHODS:
            if (method, "swin_unetr_2d") not in IMPOSSIBLE:
                names = set(trainable(tuned(plain, method)))
                self.assertEqual({n for n in names if not n.startswith(("swinViT.", "out."))}, set(), method)

    def test_headless(self):
        kind, sizes = NETWORKS["vit_encoder_2d"]
        sizes = {key: value for key, value in sizes.items() if key not in OPTIONS["dvpt"]}
        for method in METHODS.keys() - {"linear"}:
            net = tune(kind(**sizes, method=method, **OPTIONS.get(method, {})), method, **OPTIONS.get(method, {}))
            self.assertEqual({net.part_of(name) for name in trainable(net)}, {"method"}, method)
        with self.assertRaisesRegex(ValueError, "train must name a part that has parameters"):
            tune(net, "linear")

    def test_from_a_config(self):
        arguments = {key: value for key, value in NETWORKS["vit_cls_2d"][1].items() if key not in OPTIONS["dvpt"]}
        config = {
            "network_def": {
                "_target_": "monai_dvpt.networks.nets.DVPTViT",
                **arguments,
                "method": {"name": "lora", "rank": 3},
            }
        }
        net = ConfigParser(config).get_parsed_content("network_def")
        self.assertEqual(net.method.options, {"rank": 3, "alpha": None})


class Base(unittest.TestCase):
    def setUp(self):
        self.folder = temporary_folder(self)

    def saved(self, net: nn.Module, name: str = "adapter") -> Path:
        return save_adapter(net, self.folder / f"{name}.safetensors")

    def check_equal(self, found: torch.Tensor, expected: torch.Tensor) -> None:
        self.assertTrue(torch.equal(found, expected))


def other_method(method: str, case: str) -> str:
    """The next method in the list that fits a network."""
    names = [name for name in METHODS if (name, case) not in IMPOSSIBLE]
    return names[(names.index(method) + 1) % len(names)]


class TestAdapters(Base):
    @parameterized.expand(CASES)
    def test_file(self, method, case):
        plain = frozen(case)
        net = tuned(plain, method)
        path = self.saved(net)
        facts = adapter_metadata(path)["method"]
        self.assertEqual(facts["name"], method)
        self.assertEqual(facts["options"].keys(), {option.name for option in fields(METHODS[method])})
        self.assertEqual(facts["options"], {**facts["options"], **OPTIONS.get(method, {})})
        self.assertEqual(load_file(path).keys(), expected_trainable(plain, net, method))
        fresh = tuned(plain, method, seed=6)
        self.assertFalse(torch.equal(answer(fresh), answer(net)))
        self.check_equal(answer(load_adapter(fresh, path)), answer(net))
        built = build_network(path)
        self.assertEqual(built.method, net.method)
        self.assertEqual(built.state_dict().keys(), net.state_dict().keys())

    @parameterized.expand(CASES)
    def test_swap(self, method, case):
        plain, other = frozen(case), other_method(method, case)
        singles = {"one": tuned(plain, method, 5), "two": tuned(plain, other, 6), "default": plain}
        expected = {name: answer(single) for name, single in singles.items()}
        net = copy.deepcopy(plain)
        names = encoder_names(plain)
        backbone = {name: place for name, place in places(net).items() if name in names}
        for name in ("one", "two"):
            load_adapter(net, self.saved(singles[name], name), name=name)
        self.assertEqual(adapter_names(net), ["two", "default", "one"])
        self.assertEqual(backbone_sha256(net), backbone_sha256(plain))
        seen: dict[str, dict[str, int]] = {}
        for name in ("one", "two", "one", "default", "two"):
            set_adapter(net, name)
            self.check_equal(answer(net), expected[name])
            self.assertEqual(places(net), seen.setdefault(name, places(net)))  # the very tensors are back
            self.assertEqual(set(net.state_dict()), set(singles[name].state_dict()))
            self.assertEqual(set(trainable(net)), set(trainable(singles[name])))
            without = copy.deepcopy(plain)
            without.load_state_dict({n: t for n, t in net.state_dict().items() if n not in names}, False)
            with disable_adapter(net) as inside:
                self.assertIs(inside, net)
                self.assertEqual({n: p for n, p in places(net).items() if n in backbone}, backbone)
                self.check_equal(answer(net), answer(without))
            self.assertEqual(places(net), seen[name])
            self.check_equal(answer(net), expected[name])
            again = adapter_metadata(self.saved(net, "again"))
            self.assertEqual(again["tensors_sha256"], adapter_metadata(self.saved(singles[name]))["tensors_sha256"])
        with torch.no_grad():
            answers = predict_adapters(net, small_image(net, batch=2))
        self.assertEqual(set(answers), set(expected))
        for name, found in answers.items():
            self.check_equal(found, expected[name])
        self.assertEqual(adapter_names(net)[0], "two")
        self.assertEqual(places(net), seen["two"])

    @parameterized.expand(CASES)
    def test_training_beside_another(self, method, case):
        """What is trained after a swap is the active adapter alone."""
        plain, other = frozen(case), other_method(method, case)
        net = add_adapter(copy.deepcopy(plain), "one", method, **OPTIONS.get(method, {}))
        randomise_trainable(add_adapter(net, "two", other, **OPTIONS.get(other, {})))
        expected = answer(net)
        set_adapter(net, "one").train()
        before = copy_of_state(net)
        net(small_image(net, batch=2)).square().sum().backward()
        torch.optim.SGD(trainable(net).values(), lr=0.1).step()
        self.assertTrue(changed(before, net) and changed(before, net) <= set(trainable(net)))
        self.check_equal(answer(set_adapter(net, "two").eval()), expected)
        self.check_equal(answer(set_adapter(net, "default")), answer(plain))

    @parameterized.expand(CASES)
    def test_share_backbone(self, method, case):
        source = tuned(frozen(case, 1), other_method(method, case), 6)
        net = tuned(frozen(case, 2), method)
        expected = tuned(frozen(case, 1), method)
        expected.load_state_dict({name: tensor.detach() for name, tensor in trainable(net).items()}, strict=False)
        before = answer(source)
        self.assertIs(share_backbone(net, source), net)
        self.check_equal(answer(net), answer(expected))
        self.check_equal(answer(source), before)
        with disable_adapter(net), disable_adapter(source):
            shared = [places(each) for each in (net, source)]
        names = encoder_names(frozen(case))
        self.assertEqual(*({name: each[name] for name in names} for each in shared))
        net.train()(small_image(net, batch=2)).square().sum().backward()
        torch.optim.SGD(trainable(net).values(), lr=0.1).step()
        self.check_equal(answer(source), before)

    @parameterized.expand([pair for pair in CASES if pair[0] not in ("full", "bitfit")])  # which train the encoder
    def test_round_backbone(self, method, case):
        plain, other = frozen(case), other_method(method, case)
        net = tuned(plain, method)
        load_adapter(net, self.saved(tuned(plain, other, 6), "two"), name="two")
        expected, names = {}, ("two", "default")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for name in names:
                expected[name] = answer(set_adapter(net, name))
            before, trained = copy_of_state(net), set(trainable(net))
            self.assertIs(round_backbone(net), net)
            self.assertEqual(set(trainable(net)), trained)
            self.assertTrue(all(torch.equal(before[name], tensor) for name, tensor in trainable(net).items()))
            for name in (*names, "two", "default"):
                self.check_equal(answer(set_adapter(net, name)), expected[name])
        self.assertEqual(backbone_sha256(net), backbone_sha256(plain))
        fresh = load_adapter(tuned(plain, method, 7), self.saved(net))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            self.check_equal(answer(fresh), expected["default"])


class TestMerge(unittest.TestCase):
    @parameterized.expand([pair for pair in CASES if pair[0] in MERGED])
    def test_merged(self, method, case):
        plain = frozen(case)
        net = tuned(plain, method)
        expected = answer(net)
        self.assertIs(merge(net), net)
        torch.testing.assert_close(answer(net), expected, rtol=1e-3, atol=1e-4)
        added = net.state_dict().keys() - plain.state_dict().keys()
        ends = ("qkv.bias", "downsample.reduction.bias") if method == "ssf" else ()  # MONAI's names, too
        self.assertTrue(all(name.endswith(ends) for name in added))
        self.assertEqual([type(module) for module in net.modules()], [type(module) for module in plain.modules()])
        self.assertEqual(net.method.name, "linear")
        self.assertFalse(any(p.requires_grad for name, p in net.named_parameters() if name in encoder_names(plain)))

    @parameterized.expand([pair for pair in CASES if pair[0] not in MERGED])
    def test_refused(self, method, case):
        net = tuned(frozen(case), method)
        before, expected = places(net), answer(net)
        with self.assertRaisesRegex(ValueError, f'the method "{method}" cannot be merged'):
            merge(net)
        self.assertEqual(places(net), before)
        self.assertTrue(torch.equal(answer(net), expected))


class TestRefusedFiles(Base):
    def check_refused(self, net: nn.Module, path: Path, words: str) -> None:
        before, expected = places(net), answer(net)
        for name in (None, "second"):
            with self.assertRaisesRegex(InputError, words):
                load_adapter(net, path, name=name)
        self.assertEqual(adapter_names(net), ["default"])
        self.assertEqual(places(net), before)
        self.assertTrue(torch.equal(answer(net), expected))

    def edited(self, net: nn.Module, **entry: Any) -> Path:
        """The file of an adapter whose entry "method" says something else."""
        path = self.saved(net)
        metadata = adapter_metadata(path)
        metadata["method"] = {**metadata["method"], **entry}
        seal(load_file(path), path, metadata)
        return path

    @parameterized.expand(CASES)
    def test_other_backbone(self, method, case):
        path = self.saved(tuned(frozen(case, 1), method))
        self.check_refused(tuned(frozen(case, 2), method), path, "backbone_sha256 must be that of the network")

    @parameterized.expand([(method,) for method in METHODS])
    def test_another_method_needs_a_name(self, method):
        plain = frozen("vit_cls_2d")
        net, other = tuned(plain, method), tuned(plain, other_method(method, "vit_cls_2d"))
        before = places(other)
        with self.assertRaisesRegex(InputError, "method must be that of the network"):
            load_adapter(other, self.saved(net))
        self.assertEqual(places(other), before)

    @parameterized.expand(
        [(name,) for name in ("prefix", "LoRA", "", None, 3, ["lora"], {"lora": 1}, "x" * 10**6, "__class__")]
    )
    def test_unknown_method(self, name):
        path = self.edited(tuned(frozen("vit_cls_2d"), "lora"), name=name)
        self.check_refused(tuned(frozen("vit_cls_2d"), "lora"), path, r"method must be one of \['dvpt', .*got .{,110}$")
        with self.assertRaisesRegex(InputError, "method must be one of"):
            build_network(path)

    @parameterized.expand([(method,) for method in METHODS])
    def test_options_are_those_of_the_method(self, method):
        net = tuned(frozen("vit_cls_2d"), method)
        own = net.method.options
        for options in ({**own, "depth": 3}, dict(list(own.items())[1:]), {}, [], None, "rank"):
            if options != own:
                path = self.edited(net, options=options)
                self.check_refused(net, path, "method must have the options")
                with self.assertRaisesRegex(InputError, "method must have the options"):
                    build_network(path)

    @parameterized.expand(
        [
            ("lora", "rank", (0, -1, 2.5, "3", True, None, [3], 65_537, 10**300, 1e300)),
            ("lora", "alpha", (0, -1, "7", True, [7], 1e300, float("nan"), float("inf"))),
            ("adaptformer", "bottleneck_size", (0, -1, 2.5, "3", True, None, 65_537)),
            ("adaptformer", "scale", (0, -0.1, "1", None, float("nan"))),
            ("vpt_deep", "num_prompts", (0, -1, "3", None, 65_537)),
            ("vpt_shallow", "num_prompts", (0, -1, "3", None, 65_537)),
            ("dvpt", "num_prompts", (-1, "3", None, 65_537)),
            ("dvpt", "bottleneck_size", (0, 24, 65_536, "3")),
            ("dvpt", "share_every", (0, -1, "3")),
            ("dvpt", "start_layer", (5, 65_536, -1, None)),
            ("dvpt", "side_path", (1, "yes", None)),
            ("dvpt", "aggregation", ("sum", "$import os", "", None, 1, ["mean"])),
            ("dvpt", "norm", ("batch", None, True)),
            ("bottleneck", "zero_init", ("down", None, 0)),
        ]
    )
    def test_values_of_options(self, method, option, values):
        net = tuned(frozen("vit_cls_2d"), method)
        for value in values:
            path = self.edited(net, options={**net.method.options, option: value})
            self.check_refused(net, path, f"({option}|method must have|method must be that|arguments do not fit)")
            with self.assertRaisesRegex(InputError, option):
                build_network(path)

    @parameterized.expand(
        [
            ("lora", "rank", 65_536),
            ("adaptformer", "bottleneck_size", 65_536),
            ("vpt_deep", "num_prompts", 65_536),
            ("vpt_shallow", "num_prompts", 65_536),
            ("dvpt", "num_prompts", 65_536),
        ]
    )
    def test_large_options_take_no_memory(self, method, option, value):
        net = tuned(frozen("vit_cls_2d"), method)
        path = self.edited(net, options={**net.method.options, option: value})
        with patch("monai_dvpt.networks.adapter.stored.read_tensors", side_effect=AssertionError), Allocated() as most:
            for load in (build_network, lambda path: load_adapter(net, path, name="second")):
                with self.assertRaisesRegex(InputError, "must have shape"):
                    load(path)
        self.assertLess(most.numbers, 65_536)

    def test_many_bytes(self):
        """A file may hold many tensors as one of zeros, but the network that it names is bounded."""
        net = tuned(frozen("vit_cls_2d"), "lora")
        path = self.saved(net)
        with patch.dict("os.environ", {"MONAI_DVPT_MAX_BYTES": str(path.stat().st_size + 1)}):
            with self.assertRaisesRegex(InputError, "the network that it names"):
                build_network(path)


class Allocated(torch.utils._python_dispatch.TorchDispatchMode):
    """The most numbers that one operation made, on another device than meta."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and not result.is_meta:
            self.numbers = max(self.numbers, result.numel())
        return result


class TestRefused(unittest.TestCase):
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
            (
                "aggregation",
                "dvpt",
                {"aggregation": "sum", "bottleneck_size": 4},
                "aggregation must be one of .* got sum",
            ),
            ("norm", "bottleneck", {"norm": "batch", "bottleneck_size": 4}, "norm must be one of .* got batch"),
            ("start_layer", "bottleneck", {"start_layer": 5}, "start_layer must be in .* got 5"),
            ("prompts", "bottleneck", {"num_prompts": 5}, "options must be of .* got .'num_prompts'"),
        ]
    )
    def test_options(self, _, method, options, message):
        for present in METHODS:
            net = tuned(frozen("vit_cls_2d"), present)
            before, expected, trained = places(net), answer(net), set(trainable(net))
            with self.assertRaisesRegex(ValueError, message):
                tune(net, method, **options)
            self.assertEqual((places(net), net.method.name, set(trainable(net))), (before, present, trained))
            self.assertTrue(torch.equal(answer(net), expected))

    @parameterized.expand(IMPOSSIBLE)
    def test_networks(self, method, case):
        net = tuned(frozen(case), "lora")
        before, expected = places(net), answer(net)
        with self.assertRaisesRegex(ValueError, f'the method "{method}" must have an encoder '):
            tune(net, method)
        self.assertEqual(places(net), before)
        self.assertTrue(torch.equal(answer(net), expected))

    def test_no_network(self):
        with self.assertRaisesRegex(ValueError, "net must be a network of monai_dvpt.networks.nets, got Linear"):
            tune(nn.Linear(2, 3), "lora")


class TestTunedAgain(unittest.TestCase):
    @parameterized.expand(CASES)
    def test_another_method_takes_the_place(self, method, case):
        plain, other = frozen(case), other_method(method, case)
        net, expected = tuned(plain, method), tuned(plain, other)
        heads = {name: t.detach() for name, t in trainable(expected).items() if name in plain.state_dict()}
        torch.manual_seed(5)
        net.load_state_dict(
            {n: t for n, t in plain.state_dict().items() if n not in encoder_names(plain)}, strict=False
        )
        randomise_trainable(tune(net, other, **OPTIONS.get(other, {})))
        self.assertEqual(net.state_dict().keys(), expected.state_dict().keys())
        self.assertTrue(all(torch.equal(net.state_dict()[name], tensor) for name, tensor in heads.items()))
        self.assertTrue(torch.equal(answer(net), answer(expected)))
        self.assertEqual(net.arguments, plain.arguments)


@dataclass(frozen=True)
class Shift(Method):
    """A method of a user: tokens are shifted after every layer, and normalisations before it are trained."""

    start: float = 0.0
    name = "shift"
    description = "a shift after every layer"

    def trains(self, encoder: Encoder) -> list[str]:
        return [name for name, _ in encoder.named_parameters() if name.endswith("norm1.weight")]

    def attach(self, encoder: Encoder) -> None:
        shifts = nn.ModuleList(Shifted(width, self.start) for width in encoder.widths())
        encoder.follow_layers(shifts, range(len(shifts)))


class Shifted(nn.Module):
    def __init__(self, width: int, start: float) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.full((width,), start))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.shift


class TestOwnMethod(Base):
    @parameterized.expand([(case,) for case in NETS])
    def test_needs_nothing_but_its_class(self, case):
        plain = frozen(case)
        with patch.dict(METHODS, {"shift": Shift}):
            self.check_equal(answer(tune(copy.deepcopy(plain), "shift")), answer(plain))
            net, other = (randomise_trainable(tune(copy.deepcopy(plain), "shift", start=0.5), s) for s in (1, 2))
            self.assertGreater((answer(net) - answer(plain)).abs().max(), 1e-4)
            path = self.saved(net)
            self.assertEqual(adapter_metadata(path)["method"], {"name": "shift", "options": {"start": 0.5}})
            self.check_equal(answer(load_adapter(other, path)), answer(net))
            swapped = load_adapter(tuned(plain, "lora"), path, name="second")
            self.check_equal(answer(swapped), answer(net))
            self.check_equal(answer(set_adapter(swapped, "default")), answer(tuned(plain, "lora")))
            with disable_adapter(set_adapter(swapped, "second")):
                self.assertFalse(any("shift" in name for name in swapped.state_dict()))
            with torch.no_grad():
                both = predict_adapters(swapped, small_image(net, batch=2))
            self.check_equal(both["second"], answer(net))
            self.assertEqual(build_network(path).method, Shift(0.5))
            with self.assertRaisesRegex(ValueError, 'the method "shift" cannot be merged'):
                merge(net)
        with self.assertRaisesRegex(InputError, "method must be one of .* got 'shift'"):
            build_network(path)


if __name__ == "__main__":
    unittest.main()
