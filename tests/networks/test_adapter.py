# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
import unittest
from collections.abc import Callable
from typing import Any

import torch
from parameterized import parameterized
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from utils_data import temporary_folder
from utils_limits import file_size_limit
from utils_networks import (
    DVPT_SIZES,
    UNETR_SIZES,
    changed,
    copy_of_state,
    expected_part,
    randomise,
    seal,
    small_image,
    small_network,
    small_unetr,
    to_be_trained,
    tuned_network,
    with_backbone_of,
)

from monai_dvpt.networks.adapter import adapter_metadata, backbone_sha256, load_adapter, save_adapter
from monai_dvpt.networks.methods import as_method
from monai_dvpt.networks.nets import DVPTUNETR
from monai_dvpt.networks.parts import PARTS, count_parameters, freeze_backbone, parameter_groups, tune
from monai_dvpt.utils import InputError

TRAIN = [(("method",),), (("head",),), (("method", "decoder", "head"),), (("decoder", "head"),)]
TRAIN += [(("method", "decoder", "head"), "full"), (("method",), "full"), (("method", "head"), "bitfit")]


def network(method: str, **arguments: Any) -> Any:
    """A UNETR tuned by a method, with random weights everywhere."""
    net = small_unetr(**arguments)
    return net if method == "dvpt" else randomise(tune(net, method), 1)


class TestFreezing(unittest.TestCase):
    def test_a_second_call_starts_anew(self):
        net = tune(small_unetr(), "full")
        self.assertIs(freeze_backbone(net, ("head",)), net)
        trained = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
        self.assertEqual(trained, {"out.conv.conv.weight", "out.conv.conv.bias"})

    @parameterized.expand(
        [
            (
                "unetr_2d",
                None,
                r"are trained, more than 5 %: method .* %, decoder .* %, head .* %\. decoder_tuning",
            ),
            ("vit_cls_2d", ("method",), r"are trained, more than 5 %: method 9\d\.\d %\.$", {}, "full"),
            ("swin_unetr_2d_none", None, None),
            ("swin_classifier_2d", ("head",), None),
            ("unetr_2d", ("head",), None),
            ("vit_cls_2d", None, r"^5\.2 % of .*: method 5\.0 %, head 0\.2 %\.$", {"bottleneck_size": 9}),
            ("vit_cls_2d", None, None, {"bottleneck_size": 8}),  # 4.7 %
        ]
    )
    def test_says_when_more_than_5_percent_are_trained(self, case, train, words, arguments=None, method="dvpt"):
        net, logger = small_network(case, **(arguments or {})), "monai_dvpt.networks.parts"
        if method != "dvpt":
            net.encoder().attach(as_method(method))
        if words is None:
            with self.assertNoLogs(logger):
                freeze_backbone(net, train)
        else:
            with self.assertLogs(logger, "WARNING") as caught:
                freeze_backbone(net, train)
            self.assertEqual(len(caught.records), 1)
            self.assertRegex(caught.records[0].getMessage(), words)
            counts = count_parameters(net)["network"]
            share = f"{100 * counts['trainable'] / counts['total']:.1f} % of the network's {counts['total']:,} param"
            self.assertIn(share, caught.records[0].getMessage())

    @parameterized.expand(
        [(("encoder",),), (("method", "Head"),), (("backbone",),), (("backbone", "head"),), ("method",)]
    )
    def test_unknown_part(self, train):
        net = small_unetr()
        with self.assertRaisesRegex(ValueError, r"^train must name parts of \['decoder', 'head', 'method'\], got "):
            freeze_backbone(net, train)
        self.assertTrue(all(parameter.requires_grad for parameter in net.parameters()))

    @parameterized.expand([("unetr_2d", ()), ("vit_cls_2d", ("decoder",)), ("vit_encoder_2d", ("head",))])
    def test_nothing_to_train(self, case, train):
        net = small_network(case)
        words = rf"^train must name a part that has parameters, got \[{train[0]!r}\]" if train else r"got \[\]\.$"
        with self.assertRaisesRegex(ValueError, words):
            freeze_backbone(net, train)
        self.assertTrue(all(parameter.requires_grad for parameter in net.parameters()))

    @parameterized.expand(TRAIN)
    def test_training_step_changes_what_is_trained(self, train, method="dvpt"):
        net = freeze_backbone(network(method, norm_name="batch"), train).train()
        before, sha256 = copy_of_state(net), backbone_sha256(net)
        optimiser = torch.optim.AdamW(parameter_groups(net, dict.fromkeys(PARTS, 0.1)))
        net(small_image(net, batch=2)).square().mean().backward()
        optimiser.step()
        statistics = {name for name, _ in net.named_buffers() if "decoder" in train}  # of the batch normalisation
        self.assertEqual(changed(before, net), to_be_trained(net, train) | statistics)
        self.assertEqual(backbone_sha256(net), sha256)

    @parameterized.expand(TRAIN)
    def test_count_parameters(self, train, method="dvpt"):
        net = freeze_backbone(network(method, share_every=5), train)
        counts = count_parameters(net)
        sizes = {name: parameter.numel() for name, parameter in net.named_parameters()}
        trained = to_be_trained(net, train)
        for part in PARTS:
            names = {name for name in sizes if expected_part(net, name) == part}
            total, trainable = (sum(sizes[name] for name in chosen) for chosen in (names, names & trained))
            self.assertEqual(counts[part], {"total": total, "trainable": trainable})
        if method == "dvpt":
            self.assertEqual(counts["method"]["total"], 3 * (24 * 5 + 5 + 7 * 5 + 1 + 5 * 24 + 24))
        for key in ("total", "trainable"):
            self.assertEqual(counts["network"][key], sum(counts[part][key] for part in PARTS))
        self.assertEqual(counts["network"]["total"], sum(sizes.values()))

    @parameterized.expand(TRAIN)
    def test_parameter_groups(self, train, method="dvpt"):
        net = freeze_backbone(network(method), train)
        rates = {"method": 0.2, "decoder": 0.3, "head": 0.3}
        found = [(id(p), group["lr"]) for group in parameter_groups(net, rates) for p in group["params"]]
        trained = to_be_trained(net, train)
        expected = [(id(p), rates[expected_part(net, name)]) for name, p in net.named_parameters() if name in trained]
        self.assertEqual(sorted(found), sorted(expected))
        with self.assertRaisesRegex(ValueError, f"learning_rates must have one for {train[-1]}, which is trained"):
            parameter_groups(net, {part: rate for part, rate in rates.items() if part != train[-1]})


class TestLayerDecay(unittest.TestCase):
    RATES = {"method": 0.2, "decoder": 0.3, "head": 0.4}

    def found(self, case: str, method: str, layer_decay: float) -> dict[str, float]:
        """Names and learning rates of what a method trains in the encoder."""
        net = freeze_backbone(tuned_network(case, method))
        groups = parameter_groups(net, self.RATES, layer_decay)
        rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
        parts = {name: net.part_of(name) for name, p in net.named_parameters() if p.requires_grad}
        for name, part in parts.items():
            if part != "method":
                self.assertEqual(rates[id(net.get_parameter(name))], self.RATES[part], name)
        return {name: rates[id(net.get_parameter(name))] for name, part in parts.items() if part == "method"}

    def test_of_a_vit(self):
        """As in MAE's code: the layers of five count from 1, the embedding is 0, the last normalisation is 6."""
        for method in ("full", "bitfit"):
            found = self.found("vit_cls_2d", method, 0.5)
            for name, rate in found.items():
                layer = int(name.split(".")[1]) + 1 if name.startswith("blocks.") else 6 * name.startswith("norm.")
                self.assertAlmostEqual(rate, 0.2 * 0.5 ** (6 - layer), msg=name)
            self.assertEqual(len(set(found.values())), 7)

    def test_of_a_swin_transformer(self):
        found = self.found("swin_unetr_2d", "full", 0.5)  # stages of 2, 1, 3 and 2 layers
        for name, after in (
            ("patch_embed.proj.weight", 9),
            ("layers1.0.blocks.0.norm1.weight", 8),
            ("layers1.0.blocks.1.attn.qkv.weight", 7),
            ("layers1.0.downsample.reduction.weight", 6),  # that of the layer after it
            ("layers3.0.blocks.2.mlp.linear1.weight", 3),
            ("layers4.0.blocks.1.mlp.linear2.bias", 1),
        ):
            self.assertAlmostEqual(found[f"swinViT.{name}"], 0.2 * 0.5**after, msg=name)

    def test_of_none(self):
        self.assertEqual(set(self.found("vit_cls_2d", "full", 1.0).values()), {0.2})

    def test_is_refused(self):
        for decay in (0, 1.2, -1, float("nan")):
            with self.assertRaisesRegex(InputError, rf"layer_decay must be in \(0, 1\], got {decay}"):
                self.found("vit_cls_2d", "full", decay)
        with self.assertRaisesRegex(InputError, "layer_decay must be 1 with a method that trains none .* for lora"):
            self.found("vit_cls_2d", "lora", 0.9)


class TestBackboneSha256(unittest.TestCase):
    def test_depends_on_the_backbone_alone(self):
        net = small_unetr(1)
        sha256 = backbone_sha256(net)
        self.assertRegex(sha256, "^[0-9a-f]{64}$")
        self.assertEqual(backbone_sha256(with_backbone_of(net, 2, num_prompts=3, feature_size=8)), sha256)
        self.assertEqual(backbone_sha256(freeze_backbone(net).train()), sha256)
        with torch.no_grad():
            net.vit.blocks[7].mlp.linear1.weight[3, 2] += 1e-6
        self.assertNotEqual(backbone_sha256(net), sha256)


class TestRoundTrip(unittest.TestCase):
    def setUp(self):
        self.path = temporary_folder(self) / "adapter.safetensors"

    def test_dvpt_alone(self):
        net = small_unetr(1)
        other = with_backbone_of(net, 2)
        before = copy_of_state(other)
        self.assertIs(load_adapter(other, save_adapter(net, self.path, parts=("method",)), parts=("method",)), other)
        self.assertEqual(changed(before, other), {f"vit.dvpt.{name}" for name in net.vit.dvpt.state_dict()})
        self.assertEqual(changed(copy_of_state(net.vit.dvpt), other.vit.dvpt), set())
        self.assertEqual(adapter_metadata(self.path)["parts"], ["method"])

    def test_float16(self):
        net = small_unetr(1)
        other = with_backbone_of(net, 2)
        load_adapter(other, save_adapter(net, self.path, dtype=torch.float16))
        for part in ("vit.dvpt", "decoder2", "out"):
            expected = {name: tensor.half().float() for name, tensor in net.get_submodule(part).state_dict().items()}
            self.assertEqual(changed(expected, other.get_submodule(part)), set())
        half = self.path.stat().st_size
        self.assertLess(half, 0.6 * save_adapter(net, self.path).stat().st_size)

    @parameterized.expand([(None,), (torch.float16,)])
    def test_batch_normalisation(self, dtype):
        net = small_unetr(1, norm_name="batch")
        for name, buffer in net.named_buffers():
            buffer.fill_(100_001 if name.endswith("num_batches_tracked") else 0.25)  # the former is inf in float16
        other = with_backbone_of(net, 2, norm_name="batch")
        load_adapter(other, save_adapter(net, self.path, dtype=dtype))
        loaded = dict(other.named_buffers())
        self.assertTrue(all(torch.equal(buffer, loaded[name]) for name, buffer in net.named_buffers()))

    def test_file(self):
        net = freeze_backbone(small_unetr(1))
        notes = {"mean_dice": 0.875, "dataset": "hippocampus"}
        save_adapter(net, self.path, labels=("none", "left"), notes=notes)
        self.assertEqual(list(self.path.parent.iterdir()), [self.path])
        expected = {name: tensor for name, tensor in net.state_dict().items() if expected_part(net, name) != "backbone"}
        tensors = load_file(self.path)
        self.assertEqual(tensors.keys(), expected.keys())
        self.assertTrue(all(torch.equal(tensors[name], expected[name]) for name in tensors))
        metadata = adapter_metadata(self.path)
        self.assertEqual(metadata["notes"], notes)
        self.assertEqual(metadata["parts"], ["method", "decoder", "head"])
        self.assertEqual(metadata["backbone_sha256"], backbone_sha256(net))
        self.assertEqual(metadata["network"], "DVPTUNETR")
        self.assertEqual(metadata["arguments"], json.loads(json.dumps(net.arguments)))
        self.assertEqual({**net.arguments, **UNETR_SIZES}, net.arguments)
        options = {**DVPT_SIZES, "share_every": 3, "start_layer": 0, "side_path": False}
        options |= {"norm": "plain", "zero_init": "up", "aggregation": "read_back"}
        self.assertEqual(metadata["method"], {"name": "dvpt", "options": options})
        self.assertEqual(metadata["backbone_file"], None)
        self.assertEqual(metadata["labels"], ["none", "left"])
        self.assertIs(load_adapter(net, self.path, labels=["none", "left"]), net)
        with self.assertRaisesRegex(InputError, r"labels must be \['none', 'right'\], got \['none', 'left'\]"):
            load_adapter(net, self.path, labels=["none", "right"])

    def test_not_finite(self):
        net = small_unetr(1)
        with torch.no_grad():
            net.vit.dvpt[1].gate.fill_(torch.nan)
        with self.assertRaisesRegex(InputError, r"vit.dvpt.1.gate must be finite as float32"):
            save_adapter(net, self.path)
        self.assertFalse(self.path.exists())

    @parameterized.expand([(("backbone",),), (("method", "neck"),), ((),)])
    def test_parts_that_cannot_be_saved(self, parts):
        with self.assertRaisesRegex(ValueError, r"^parts must name parts of \['method', 'decoder', 'head'\], got "):
            save_adapter(small_unetr(), self.path, parts)
        self.assertFalse(self.path.exists())


class TestRefused(unittest.TestCase):
    """Files that do not fit: the error says why, and the network stays as it was."""

    @classmethod
    def setUpClass(cls):
        cls.saved = small_unetr(1)

    def setUp(self):
        self.path = temporary_folder(self) / "adapter.safetensors"
        save_adapter(self.saved, self.path)
        self.net = with_backbone_of(self.saved, 2)

    def check_refused(self, *words: str, net: DVPTUNETR | None = None, parts: tuple[str, ...] | None = None) -> None:
        net = self.net if net is None else net
        before = copy_of_state(net)
        with self.assertRaises(InputError) as caught:
            load_adapter(net, self.path, parts=parts)
        for word in (str(self.path), *words):
            self.assertIn(word, str(caught.exception))
        self.assertEqual(changed(before, net), set())

    def edit(self, tensors: Callable[[dict], object] = len, metadata: Callable[[dict], object] = len) -> None:
        """Changes tensors or metadata of the file in place."""
        stored, header = load_file(self.path), adapter_metadata(self.path)
        tensors(stored)
        metadata(header)
        seal(stored, self.path, header)

    def test_unedited_file_is_accepted(self):
        self.edit()
        load_adapter(self.net, self.path)

    def test_other_backbone(self):
        with torch.no_grad():
            self.net.vit.blocks[11].mlp.linear2.bias[3] += 1e-5
        self.check_refused("backbone_sha256", backbone_sha256(self.net), backbone_sha256(self.saved))

    @parameterized.expand(
        [
            ("num_prompts", 6),
            ("bottleneck_size", 4),
            ("share_every", 4),
            ("share_every", 5),
            ("start_layer", 1),
            ("feature_size", 8),
            ("out_channels", 5),
            ("num_heads", 3),
            ("qkv_bias", True),
        ]
    )
    def test_other_settings(self, name, value):
        other = with_backbone_of(self.saved, 2, **{name: value})
        if name in ("num_prompts", "bottleneck_size", "share_every", "start_layer"):
            words = ["method must be that of the network, ", f"{name}={value}"]
        else:
            words = ["backbone_sha256" if name == "qkv_bias" else f"{name} must be that of the network, {value}, got "]
        self.check_refused(*words, net=other)

    @parameterized.expand([("bottleneck",), ("linear",), ("lora",), ("full",)])
    def test_other_method(self, method):
        options = {"bottleneck_size": 5} if method == "bottleneck" else {}
        other = tune(with_backbone_of(self.saved, 2), method, **options)
        self.check_refused("method must be that of the network, ", "got DVPT(", net=other)

    @parameterized.expand(
        [
            ("image_mean", [0.5, 0.5, 0.5], "0.45"),
            ("image_mean", 0.5, "0.45"),
            ("image_std", [0.2, 0.25, 0.31], "[0.2, 0.25, 0.3]"),
            ("image_std", 0.2, "[0.2, 0.25, 0.3]"),
            ("image_std", [0.2], "[0.2, 0.25, 0.3]"),
            ("ben_graham", True, "False"),
            ("value_range", [0, 1], "[0, 255]"),
        ]
    )
    def test_other_preparation(self, name, value, theirs):
        """Of the images; the same in other words, and what the file does not record, are accepted."""
        same = {"image_mean": 0.45, "image_std": [0.2, 0.25, 0.3], "ben_graham": False, "value_range": [0, 255]}
        save_adapter(self.saved, self.path, notes={"preparation": same})
        before, words = copy_of_state(self.net), f"{name} must be that of the adapter's training, {theirs}, got {value}"
        with self.assertRaisesRegex(InputError, re.escape(f"{self.path}: {words}")):
            load_adapter(self.net, self.path, preparation={**same, name: value})
        self.assertEqual(changed(before, self.net), set())
        other_words = {"image_mean": (0.45, 0.45, 0.45), "value_range": (0.0, 255.0), "gamma": 2}
        load_adapter(self.net, self.path, preparation={**same, **other_words})
        save_adapter(self.saved, self.path)
        load_adapter(self.net, self.path, preparation=same)

    def test_settings_of_training_alone_may_differ(self):
        other = with_backbone_of(self.saved, 2, dropout_rate=0.5, use_checkpoint=True, save_attn=True)
        load_adapter(other, self.path)
        self.assertEqual(changed(copy_of_state(self.saved), other), set())

    @parameterized.expand([("vit.dvpt.3.gate",), ("out.conv.conv.bias",)])
    def test_missing_tensor(self, name):
        self.edit(lambda tensors: tensors.pop(name))
        self.check_refused(f"missing ['{name}'], extra []")

    @parameterized.expand([("vit.dvpt.4.gate",), ("vit.norm.weight",)])
    def test_extra_tensor(self, name):
        self.edit(lambda tensors: tensors.update({name: torch.ones(24)}))
        self.check_refused(f"missing [], extra ['{name}']")

    def test_wrong_shape(self):
        self.edit(lambda tensors: tensors.update({"vit.dvpt.1.prompts": torch.zeros(5, 7)}))
        self.check_refused("vit.dvpt.1.prompts must have shape (7, 5), got (5, 7)")

    @parameterized.expand([("nan",), ("inf",), ("-inf",)])
    def test_not_finite(self, value):
        self.edit(lambda tensors: tensors["out.conv.conv.weight"].view(-1)[2:3].fill_(float(value)))
        self.check_refused("out.conv.conv.weight must be finite")

    def test_wrong_type(self):
        self.edit(lambda tensors: tensors.update({"vit.dvpt.1.prompts": torch.zeros(7, 5, dtype=torch.int32)}))
        self.check_refused("vit.dvpt.1.prompts must have type torch.float32, got torch.int32")

    @parameterized.expand(
        [("network", "DVPTSwinUNETR"), ("network", None), ("backbone_sha256", None), ("backbone_sha256", "0" * 64)]
    )
    def test_other_identity(self, key, value):
        self.edit(metadata=lambda header: header.update({key: value}))
        self.check_refused(f"{key} must be that of the network", f"got {value}.")

    @parameterized.expand([(None,), ([],), ("in_channels",), ({},)])
    def test_other_arguments(self, arguments):
        self.edit(metadata=lambda header: header.update(arguments=arguments))
        if arguments == {}:
            self.check_refused("in_channels must be that of the network, 2, got None.")
        else:
            self.check_refused(f"arguments must be a JSON object, got {arguments!r}.")

    @parameterized.expand(
        [
            (None, "method must be a JSON object, got None."),
            ("dvpt", "method must be a JSON object, got 'dvpt'."),
            ({}, "method must be one of ['dvpt', ", "got None."),
            ({"name": "os.system", "options": {}}, "method must be one of ['dvpt', ", "got 'os.system'."),
            ({"name": ["dvpt"], "options": {}}, "method must be one of ['dvpt', ", "got ['dvpt']."),
            ({"name": "lora"}, "method must have the options ['alpha', 'rank'], got None."),
            ({"name": "lora", "options": {"rank": 2}}, "method must have the options ['alpha', 'rank'], got"),
            ({"name": "lora", "options": {"rank": 2, "alpha": None, "x": 1}}, "method must have the options"),
            ({"name": "lora", "options": {"rank": 0, "alpha": None}}, "method does not fit: rank must be"),
            ({"name": "lora", "options": {"rank": 2.5, "alpha": 1}}, "method must have rank as a whole number"),
            ({"name": "lora", "options": {"rank": 2, "alpha": "x"}}, "method must have alpha as a number"),
            ({"name": "lora", "options": {"rank": 2, "alpha": 0}}, "method does not fit: alpha must be a positive"),
        ]
    )
    def test_methods(self, method, *words):
        self.edit(metadata=lambda header: header.update(method=method))
        self.check_refused(*words)

    @parameterized.expand([(None,), ("method",), ([{}],)])
    def test_parts_that_are_no_list_of_names(self, parts):
        self.edit(metadata=lambda header: header.update(parts=parts))
        self.check_refused(f"parts must be a list of names, got {parts!r}.")

    @parameterized.expand([(["method", "neck"],), (["backbone"],), (["method"],), ([],)])
    def test_other_parts(self, parts):
        self.edit(metadata=lambda header: header.update(parts=parts))
        self.check_refused(f"parts must be ['method', 'decoder', 'head'], got {parts}.")

    @parameterized.expand([(0,), (3,), (5,), ("4",), (None,)])
    def test_unknown_format_version(self, version):
        self.edit(metadata=lambda header: header.update(format_version=version))
        self.check_refused(f"format_version must be 4, got {version}.")

    @parameterized.expand([(None,), ({"format": "pt"},), ({"monai_dvpt": "{"},), ({"monai_dvpt": "[1]"},)])
    def test_other_metadata(self, metadata):
        save_file(load_file(self.path), self.path, metadata=metadata)
        self.check_refused("metadata")

    @parameterized.expand([(0,), (4,), (200,), (-1,), (-5000,)])
    def test_truncated(self, size):
        self.path.write_bytes(self.path.read_bytes()[:size])
        self.check_refused("cannot be read as weights")

    def test_flipped_byte_in_length_of_header(self):
        data = bytearray(self.path.read_bytes())
        for position in range(8):
            flipped = bytearray(data)
            flipped[position] ^= 0x40
            self.path.write_bytes(flipped)
            self.check_refused("cannot be read as weights")

    def test_flipped_byte_in_header(self):
        save_adapter(self.saved, self.path, parts=("method",))
        load_adapter(self.net, self.path, parts=("method",))
        data = self.path.read_bytes()
        header = range(8, 8 + int.from_bytes(data[:8], "little"))
        generator = random.Random(0)
        for position in generator.sample(header, 150):
            flipped = bytearray(data)
            flipped[position] ^= 1 << generator.randrange(8)
            self.path.write_bytes(flipped)
            self.check_refused(parts=("method",))

    def test_flipped_bit_in_tensors(self):
        data = bytearray(self.path.read_bytes())
        data[-6] ^= 1  # the last bits of a number: still finite, hardly different
        self.path.write_bytes(data)
        self.check_refused("tensors_sha256 must be", "it is damaged")

    def test_torch_pickle(self):
        torch.save(self.net.state_dict(), self.path)
        self.check_refused("cannot be read as weights")

    def test_missing_file(self):
        self.path.unlink()
        self.check_refused("must be an existing file, and a regular one")

    def test_folder(self):
        self.path.unlink()
        self.path.mkdir()
        self.check_refused("must be an existing file, and a regular one")


class TestInterruptedSave(unittest.TestCase):
    def setUp(self):
        self.path = temporary_folder(self) / "adapter.safetensors"
        save_adapter(small_unetr(1), self.path)
        self.old = self.path.read_bytes()

    @parameterized.expand([(0,), (100,), (20_000,)])
    def test_full_disk(self, size):
        self.assertGreater(len(self.old), 20_000)
        with file_size_limit(size), self.assertRaises(InputError) as caught:
            save_adapter(small_unetr(2), self.path)
        self.assertRegex(str(caught.exception), f"^{self.path}: cannot be written: ")
        self.assertEqual(self.path.read_bytes(), self.old)
        self.assertEqual(list(self.path.parent.iterdir()), [self.path])

    def test_kill(self):
        script = """
import os, signal, sys
from pathlib import Path
from safetensors.torch import save
from monai_dvpt.networks.adapter import save_adapter, stored
from utils_networks import small_unetr

def write_half(tensors, path, metadata):
    data = save(tensors, metadata)
    Path(path).write_bytes(data[: len(data) // 2])
    os.kill(os.getpid(), signal.SIGKILL)

stored.save_file = write_half
save_adapter(small_unetr(2), sys.argv[1])
"""
        environment = {"PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-W", "ignore", "-c", script, str(self.path)]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
        self.assertEqual(ended.returncode, -signal.SIGKILL, ended.stderr)
        self.assertEqual(self.path.read_bytes(), self.old)
        net = small_unetr(1)
        load_adapter(net, self.path)
        leftover = [path.name for path in self.path.parent.iterdir() if path != self.path]
        self.assertEqual(len(leftover), 1)  # no one is left to remove it; its name says what it is
        self.assertRegex(leftover[0], r"^\..*\.part\.safetensors$")
        with safe_open(self.path, "pt") as file:
            self.assertEqual(
                set(file.keys()), {name for name in net.state_dict() if expected_part(net, name) != "backbone"}
            )


if __name__ == "__main__":
    unittest.main()
