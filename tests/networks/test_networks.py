# SPDX-License-Identifier: Apache-2.0
"""What every network promises."""

from __future__ import annotations

import copy
import math
import unittest
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
import torch.nn as nn
from monai.networks.nets import UNETR, SwinUNETR, ViT
from monai.networks.nets.swin_unetr import SwinTransformer
from parameterized import parameterized
from safetensors.torch import load_file
from scipy.special import erf
from torch.nn.parallel import DistributedDataParallel
from utils_data import entered, temporary_folder
from utils_networks import (
    NETWORKS,
    changed,
    copy_of_state,
    expected_part,
    layers_of,
    new_network,
    parts_of,
    randomise,
    small_image,
    small_network,
    to_be_trained,
    with_backbone_of,
)

from monai_dvpt.networks.adapter import backbone_sha256, disable_adapter, load_adapter, save_adapter
from monai_dvpt.networks.blocks import dvpt_block
from monai_dvpt.networks.nets import DVPTUNETR, DVPTSwinUNETR, DVPTViT, DVPTViTSegmenter
from monai_dvpt.networks.parts import freeze_backbone, tune
from monai_dvpt.utils import InputError

CASES = [(name,) for name in NETWORKS]
# MONAI has no SAM and no TinyViT, which have no dropout, and no layout
OF_MONAI = [case for case in CASES if not case[0].startswith(("sam", "tiny")) and "layout" not in case[0]]
# the slow ones add nothing where only the encoder matters, or what the others' decoders show too
QUICK = [(name,) for name in NETWORKS if not name.startswith("swin_unetr_3d")]
ROUNDING = {"rtol": 1e-9, "atol": 1e-9}  # of fused attention in double precision
DISTRIBUTED = ["vit_both_2d", "unetr_2d", "segmenter_2d_conv", "sam_2d", "swin_unetr_2d", "swin_classifier_2d"]


def plain_monai(case: str, **changes: Any) -> nn.Module:
    """MONAI's own network with random weights, under the names that the DVPT network should have."""
    kind, arguments = NETWORKS[case]
    arguments = {**arguments, **changes}
    own = {"outputs", "decoder", "norm_name"} if kind is DVPTViTSegmenter else set()
    own |= {"bottleneck_size", "num_prompts", "share_every", "start_layer", "pooling", "class_token", "decoder_tuning"}
    sizes = {name: value for name, value in arguments.items() if name not in own}
    if kind is DVPTViT:
        sizes = {"patch_size": 16, "qkv_bias": True, "post_activation": "none", **sizes}
        classes = max(sizes.pop("num_classes"), 1)
        plain = ViT(**sizes, classification=arguments.get("class_token", True), num_classes=classes)
        if hasattr(plain, "classification_head") and (arguments["num_classes"] == 0 or "pooling" in arguments):
            del plain.classification_head  # it has another shape, or there is none
    elif kind is DVPTUNETR:
        plain = UNETR(**{name: value for name, value in sizes.items() if name != "patch_size"})
    elif kind is DVPTViTSegmenter:
        sizes = {name: value for name, value in sizes.items() if name not in ("out_channels", "feature_size")}
        vit = ViT(**sizes, qkv_bias=True, classification=arguments.get("class_token", True))
        if hasattr(vit, "classification_head"):
            del vit.classification_head
        plain = nn.ModuleDict({"vit": vit})
    elif kind is DVPTSwinUNETR:
        plain = SwinUNETR(**sizes)
    else:
        del sizes["num_classes"]
        names = {"in_channels": "in_chans", "feature_size": "embed_dim", "dropout_path_rate": "drop_path_rate"}
        sizes = {names.get(name, name): value for name, value in sizes.items()}
        patch_size, final_norm = (2,) * sizes["spatial_dims"], sizes.pop("final_norm", False)
        plain = nn.ModuleDict({"swinViT": SwinTransformer(**sizes, patch_size=patch_size)})
        if final_norm:
            plain["swinViT"].layers4[0].downsample = None
            plain["swinViT"].norm = nn.LayerNorm(8 * sizes["embed_dim"])
    return randomise(plain, seed=5).eval()


def output_of_monai(plain: nn.Module, net: nn.Module, image: torch.Tensor) -> torch.Tensor:
    """What MONAI's network says, followed by what it does not have: pooling, a decoder and a head."""
    if isinstance(plain, nn.ModuleDict) and "vit" in plain:
        _, states = plain["vit"](image)
        layers = net.arguments["outputs"] or [len(states) - 1]
        read = torch.cat([plain["vit"].norm(states[layer]) for layer in layers], dim=2)  # (B, 1 + N, C) or (B, N, C)
        grid = net.encoder().grid
        first = read.shape[1] - math.prod(grid)
        features = read[:, first:].movedim(2, 1).unflatten(2, grid)
        upsample = nn.Upsample(image.shape[2:], mode="trilinear" if image.ndim == 5 else "bilinear")
        return upsample(net.out(net.decoder(features)))
    if isinstance(plain, nn.ModuleDict):
        own = getattr(plain["swinViT"], "norm", None)
        last = plain["swinViT"](image, normalize=own is None)[-1]  # (B, 16 C, *grid)
        last = last if own is None else own(last.movedim(1, -1)).movedim(-1, 1)
        return net.classification_head(last.flatten(2).mean(2))
    if not isinstance(plain, ViT):
        return plain(image)
    found, states = plain(image)
    if hasattr(plain, "classification_head"):
        return found
    first = 1 if hasattr(plain, "cls_token") else 0  # of the image's tokens
    pooled = found[:, first:].mean(1)
    if net.pooling != "mean":
        pooled = torch.cat((found[:, 0], pooled), dim=1)
    if net.pooling == "prompts":
        return net.classification_head(pooled, [states[layer] for layer in net.outputs])
    return net.classification_head(pooled)


def with_dropout(case: str) -> dict[str, float]:
    """Arguments that turn on all the dropout that a network has."""
    kinds = {"swin": ("drop_rate", "attn_drop_rate", "dropout_path_rate"), "sam": (), "tiny": ()}
    return dict.fromkeys(kinds.get(case.split("_")[0], ("dropout_rate",)), 0.4)


def gradients(net: nn.Module, image: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of all parameters that get one."""
    net.zero_grad()
    net(image).square().mean().backward()
    return {name: parameter.grad.clone() for name, parameter in net.named_parameters() if parameter.grad is not None}


class TestEqualsMonai(unittest.TestCase):
    @parameterized.expand(OF_MONAI)
    def test_output_and_names(self, case):
        changes = {"patch_size": 16, "img_size": (16, 32, 48)} if "patch_8" in case else {}  # MONAI's is always 16
        plain, net = plain_monai(case, **changes), new_network(case, **changes).eval()
        report = net.load_state_dict(plain.state_dict(), strict=False)
        self.assertEqual(report.unexpected_keys, [])
        new = {"dvpt", *({"classification_head", "out", "decoder"} - set(dict(plain.named_children())))}
        expected = {name for name in net.state_dict() if new & set(name.split("."))}
        self.assertEqual(set(report.missing_keys), expected)
        plain, net, image = plain.double(), net.double(), small_image(net, batch=2).double()
        with torch.no_grad():
            expected = output_of_monai(plain, net, image)
            torch.testing.assert_close(net(image), expected, **ROUNDING)  # a new DVPT block is the identity
            randomise(net.encoder().dvpt)
            self.assertGreater((net(image) - expected).abs().max(), 1e-3)
            with disable_adapter(net):
                torch.testing.assert_close(net(image), expected, **ROUNDING)

    @parameterized.expand([case for case in OF_MONAI if case[0].endswith("2d")])
    def test_dropout(self, case):
        dropout = with_dropout(case)
        dropout.pop("attn_drop_rate", None)  # fused, it draws its random numbers in another order
        plain, net = plain_monai(case, **dropout).train(), new_network(case, **dropout).train()
        net.load_state_dict(plain.state_dict(), strict=False)
        plain, net, image, outputs = plain.double(), net.double(), small_image(net).double(), []
        with torch.no_grad():
            for output in (lambda: net(image), lambda: output_of_monai(plain, net, image)):
                torch.manual_seed(3)
                outputs.append(output())
        torch.testing.assert_close(*outputs, **ROUNDING)

    def test_patch_size_8_at_initialisation(self):
        net = new_network("unetr_3d_patch_8").eval()
        with disable_adapter(net):
            randomise(net.vit)
        with torch.no_grad():
            expected = net(small_image(net))
            with disable_adapter(net):
                self.assertTrue(torch.equal(net(small_image(net)), expected))


class TestFreezing(unittest.TestCase):
    def setUp(self):
        entered(self, patch("monai_dvpt.networks.blocks.dvpt_block.KEEP_FROM", 1))  # as with many tokens

    @parameterized.expand([*QUICK, ("swin_unetr_3d_v2",)])
    def test_gradients_reach_what_is_trained(self, case):
        net = small_network(case).train()
        image, parts = small_image(net), parts_of(net)
        tried = [
            ("dvpt", train)
            for train in (None, ("method",), parts[-1:], ("method", parts[-1]), parts[2:])
            if train != ()
        ]
        for method, train in [*tried, ("full", None), ("full", ("method",)), ("bitfit", None)]:
            with self.subTest(method=method, train=train):
                if method != net.method.name:
                    tune(net, method)
                found = gradients(freeze_backbone(net, train), image)
                expected = to_be_trained(net, parts[1:] if train is None else train)
                self.assertEqual(found.keys(), expected)
                self.assertEqual({name for name, p in net.named_parameters() if p.requires_grad}, expected)
                self.assertEqual([name for name, gradient in found.items() if not gradient.abs().max() > 0], [])

    @parameterized.expand(
        [
            ("vit_cls_2d", 3),
            ("vit_mean_3d", 2),
            ("unetr_2d", 5),
            ("unetr_3d_patch_8", 11),
            ("segmenter_2d", 2),
            ("segmenter_3d_conv", 4),
            ("sam_2d_layers", 2),
            ("tiny_vit_2d", 1),
            ("swin_unetr_2d", 1),
            ("swin_unetr_2d", 4),
            ("swin_unetr_2d_norm", 3),
            ("swin_unetr_3d_v2", 6),
            ("swin_classifier_2d", 1),
            ("swin_classifier_3d", 5),
        ]
    )
    def test_no_graph_before_start_layer(self, case, start_layer):
        net = freeze_backbone(small_network(case, start_layer=start_layer)).train()
        graph = []
        for layer in layers_of(net):
            layer.register_forward_hook(lambda *args: graph.append(args[-1].requires_grad))
        found = gradients(net, small_image(net))
        # the layer itself still runs without one; the block after it starts the graph
        self.assertEqual(graph, [layer > start_layer for layer in range(len(graph))])
        self.assertEqual(found.keys(), to_be_trained(net, parts_of(net)[1:]))

    @parameterized.expand([case for case in QUICK if case in OF_MONAI])
    def test_dropout(self, case):
        net = small_network(case, **with_dropout(case))
        image, encoder = small_image(net), layers_of(net)
        with torch.no_grad():
            freeze_backbone(net).train()
            self.assertTrue(net.encoder().dvpt.training)
            self.assertFalse(any(module.training for layer in encoder for module in layer.modules()))
            frozen = net(image)
            self.assertTrue(torch.equal(net(image), frozen))
            self.assertTrue(torch.equal(net.eval()(image), frozen))
            tune(net, "full").train()
            self.assertTrue(all(layer.training for layer in encoder))
            self.assertFalse(torch.equal(net(image), net(image)))
            net.eval()
            self.assertFalse(any(module.training for module in net.modules()))
            self.assertTrue(torch.equal(net(image), net(image)))
            trained = net(image)
            with disable_adapter(net):
                self.assertTrue(torch.equal(net(image), trained))  # it starts from what it was

    @parameterized.expand(CASES)
    def test_bfloat16_autocast_step(self, case):
        # on the smallest grids torch's own 3D convolution now and then gives values that are not finite
        larger = {"img_size": (32, 32, 48)} if case.startswith("unetr_3d") else {}
        net = freeze_backbone(small_network(case, **larger)).train()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = net(small_image(net))
            loss = output.float().square().mean()
        loss.backward()
        for name, parameter in net.named_parameters():
            self.assertEqual(parameter.grad is not None, parameter.requires_grad, name)
            self.assertTrue(parameter.grad is None or torch.isfinite(parameter.grad).all(), name)

    @parameterized.expand(QUICK)
    def test_checkpointing_changes_no_value(self, case):
        nets = [small_network(case, use_checkpoint=use, **with_dropout(case)).train() for use in (False, True)]
        image = small_image(nets[0])
        calls = {False: 0, True: 0}
        for net in nets:
            for layer in layers_of(net):
                use = net.arguments["use_checkpoint"]
                layer.norm1.register_forward_hook(lambda *_, use=use: calls.update({use: calls[use] + 1}))
        for method in ("dvpt", "full"):
            calls.update({False: 0, True: 0})
            found = []
            for net in nets:
                freeze_backbone(net) if method == "dvpt" else tune(net, method)
                torch.manual_seed(3)
                found.append(gradients(net, image))
            torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=1e-7)
            layers = len(layers_of(nets[0]))
            # a frozen first layer has no graph, so nothing of it is computed again
            self.assertEqual(calls, {False: layers, True: 2 * layers - (method == "dvpt")})
        with torch.no_grad():
            self.assertTrue(torch.equal(*(net.eval()(image) for net in nets)))


class TestSharing(unittest.TestCase):
    @parameterized.expand(
        [
            ("vit_cls_2d", 2, 0, [0, 0, 1, 1, 2]),
            ("vit_both_2d", 3, 1, [-1, 0, 0, 0, 1]),
            ("unetr_2d", 1, 0, list(range(12))),
            ("unetr_2d", 3, 4, [-1, -1, -1, -1, 0, 0, 0, 1, 1, 1, 2, 2]),
            ("unetr_3d_patch_8", 5, 0, [0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2]),
            ("unetr_2d", 12, 11, [-1] * 11 + [0]),
            ("swin_unetr_2d", 1, 0, list(range(8))),
            ("swin_unetr_2d", 2, 0, [0, 0, 1, 2, 2, 3, 4, 4]),
            ("swin_unetr_2d", 99, 1, [-1, 0, 1, 2, 2, 2, 3, 3]),
            ("swin_unetr_3d_v2", 2, 4, [-1, -1, -1, -1, 0, 0, 1, 1]),
            ("swin_classifier_2d", 2, 5, [-1, -1, -1, -1, -1, 0, 1, 1]),
            ("swin_classifier_3d", 3, 7, [-1] * 7 + [0]),
        ]
    )
    def test_block_after_each_layer(self, case, share_every, start_layer, mapping):
        net = small_network(case, share_every=share_every, start_layer=start_layer).eval()
        dvpt = net.encoder().dvpt
        self.assertEqual(len(dvpt), max(mapping) + 1)
        called = []
        for kind, modules in (("layer", layers_of(net)), ("dvpt", dvpt)):
            for index, module in enumerate(modules):
                module.register_forward_hook(lambda *_, entry=(kind, index): called.append(entry))
        with torch.no_grad():
            net(small_image(net))
        expected = [[("layer", layer), ("dvpt", index)][: 1 + (index >= 0)] for layer, index in enumerate(mapping)]
        self.assertEqual(called, sum(expected, []))
        if "swin" in case:
            widths = [12, 12, 24, 48, 48, 48, 96, 96]
            served = {
                index: {widths[layer] for layer, other in enumerate(mapping) if other == index} for index in mapping
            }
            self.assertEqual([served[i] for i in range(len(dvpt))], [{block.hidden_size} for block in dvpt])

    @parameterized.expand(CASES)
    def test_saved_once(self, case):
        net = small_network(case)
        path = save_adapter(net, temporary_folder(self) / "adapter.safetensors", parts=("method",))
        names = {name for name in net.state_dict() if "dvpt" in name}
        self.assertEqual(len(names), 6 * len(net.encoder().dvpt))
        self.assertEqual(len({net.state_dict()[name].data_ptr() for name in names}), len(names))
        self.assertEqual(load_file(path).keys(), names)
        blocks = [module for module in net.modules() if type(module).__name__ == "DVPTBlock"]
        self.assertEqual(len(blocks), len(net.encoder().dvpt))
        self.assertLess(len(net.encoder().dvpt), len(layers_of(net)))


class TestAdapterFile(unittest.TestCase):
    @parameterized.expand(CASES)
    def test_round_trip(self, case):
        net = freeze_backbone(small_network(case, 1)).eval()
        other, path = with_backbone_of(net, 2), temporary_folder(self) / "adapter.safetensors"
        image = small_image(net)
        with torch.no_grad():
            self.assertFalse(torch.equal(other(image), net(image)))
            load_adapter(other, save_adapter(net, path))
            self.assertTrue(torch.equal(other(image), net(image)))
        self.assertEqual(changed(copy_of_state(net), other), set())
        expected = {name for name in net.state_dict() if expected_part(net, name) != "backbone"}
        self.assertEqual(load_file(path).keys(), expected)

    @parameterized.expand([("swin_unetr_2d_norm",), ("swin_unetr_2d_none",)])
    def test_other_frozen_decoder(self, case):
        net = small_network(case, 1)
        path = save_adapter(net, temporary_folder(self) / "adapter.safetensors")
        other = with_backbone_of(net, 2)
        self.assertEqual(backbone_sha256(other), backbone_sha256(net))
        with torch.no_grad():
            other.decoder3.conv_block.conv1.conv.weight[0, 1, 2, 0] += 1e-5
        before = copy_of_state(other)
        with self.assertRaisesRegex(InputError, "backbone_sha256 must be that of the network"):
            load_adapter(other, path)
        self.assertEqual(changed(before, other), set())


class TestBehaviour(unittest.TestCase):
    @parameterized.expand(CASES)
    def test_samples_do_not_mix(self, case):
        net = small_network(case).eval()
        image = small_image(net, batch=2)
        with torch.no_grad():
            output = net(image)
            torch.testing.assert_close(output[1:], net(image[1:]), rtol=1e-4, atol=1e-4)
            self.assertFalse(torch.allclose(output[0], output[1], rtol=1e-3, atol=1e-3))

    @parameterized.expand(QUICK)
    def test_deepcopy(self, case):
        net = freeze_backbone(small_network(case)).eval()
        twin, image = copy.deepcopy(net), small_image(net)
        with torch.no_grad():
            expected = net(image)
            self.assertTrue(torch.equal(twin(image), expected))
            randomise(twin.encoder().dvpt, seed=8)
            self.assertFalse(torch.equal(twin(image), expected))
            self.assertTrue(torch.equal(net(image), expected))
        self.assertEqual(
            {name: parameter.requires_grad for name, parameter in twin.named_parameters()},
            {name: parameter.requires_grad for name, parameter in net.named_parameters()},
        )

    @parameterized.expand(
        [
            ("vit_cls_2d", (48, 32), r"img_size=\[32, 48\], got \[48, 32\]"),
            ("vit_cls_2d", (32, 64), r"img_size=\[32, 48\], got \[32, 64\]"),
            ("vit_mean_3d", (32, 48), r"img_size=\[16, 32, 48\], got \[32, 48\]"),
            ("unetr_2d", (16, 48), r"img_size=\[32, 48\], got \[16, 48\]"),
            ("unetr_3d_patch_8", (8, 24, 24), r"img_size=\[8, 24, 16\], got \[8, 24, 24\]"),
            ("segmenter_2d", (42, 28), r"img_size=\[28, 42\], got \[42, 28\]"),
            ("segmenter_3d", (28, 42), r"img_size=\[28, 42, 3\], got \[28, 42\]"),
            ("swin_unetr_2d", (32, 48), r"\[32, 48\]\)\) must be divisible by 2\*\*5"),
            ("swin_unetr_3d", (32, 40, 64), r"\[32, 40, 64\]\)\) must be divisible by 2\*\*5"),
            ("swin_classifier_2d", (16, 64), r"multiples of 32, got \[16, 64\]"),
            ("swin_classifier_3d", (32, 32, 33), r"multiples of 32, got \[32, 32, 33\]"),
        ]
    )
    def test_bad_input_size(self, case, size, words):
        with self.assertRaisesRegex(ValueError, words):
            new_network(case)(torch.zeros(1, 2, *size))


class TestBadArguments(unittest.TestCase):
    @parameterized.expand(
        [
            (case, name, value, changes)
            for case, cases in {
                "vit_cls_2d": [
                    ("spatial_dims", "4", {"spatial_dims": 4}),
                    ("img_size", r"\(32, 40\)", {"img_size": (32, 40)}),
                    ("img_size", r"\(0, 48\)", {"img_size": (0, 48)}),
                    ("img_size", "32.0", {"img_size": 32.0}),
                    ("img_size", "32", {"img_size": "32"}),
                    ("img_size", r"\(32, None\)", {"img_size": (32, None)}),
                    ("pooling", "max", {"pooling": "max"}),
                    ("pooling", r"\['prompts'\]", {"pooling": ["prompts"]}),
                    ("pooling", r"\['prompts', None\]", {"pooling": ["prompts", None]}),
                    ("pooling", r"\[None, {}\]", {"pooling": [None, {}]}),
                    ("pooling", "3", {"pooling": 3}),
                    ("class_token", "pooling both", {"class_token": False, "pooling": "both"}),
                    ("class_token", "pooling cls", {"class_token": False}),
                    ("pooling", r"\('both', {'num_prompts': 3}\)", {"pooling": ("both", {"num_prompts": 3})}),
                    ("pooling", r"\('prompts', {'heads': 3}\)", {"pooling": ("prompts", {"heads": 3})}),
                    ("every", "0", {"pooling": ("prompts", {"every": 0})}),
                    ("num_classes", "0", {"pooling": "prompts", "num_classes": 0}),
                    ("num_classes", "-1", {"num_classes": -1}),
                    ("start_layer", "5", {"start_layer": 5}),
                ],
                "unetr_2d": [
                    ("spatial_dims", "1", {"spatial_dims": 1}),
                    ("img_size", r"\(24, 20\)", {"img_size": (24, 20), "patch_size": 8}),
                    ("patch_size", "4", {"patch_size": 4}),
                    ("mlp_dim", "0", {"mlp_dim": 0}),
                    ("out_channels", "2.5", {"out_channels": 2.5}),
                    ("decoder_tuning", "half", {"decoder_tuning": "half"}),
                    ("start_layer", "12", {"start_layer": 12}),
                ],
                "segmenter_2d_conv": [
                    ("spatial_dims", "1", {"spatial_dims": 1}),
                    ("img_size", r"\(28, 40\)", {"img_size": (28, 40)}),
                    ("patch_size", "0", {"patch_size": 0}),
                    ("out_channels", "0", {"out_channels": 0}),
                    ("feature_size", "-4", {"feature_size": -4}),
                    ("decoder", "mlp", {"decoder": "mlp"}),
                    ("decoder_tuning", "half", {"decoder_tuning": "half"}),
                    ("outputs", r"\[\]", {"outputs": []}),
                    ("outputs", r"\[1, 3\]", {"outputs": (1, 3)}),
                    ("outputs", r"\[2, 1, 4\]", {"outputs": (2, 1, 4)}),
                    ("outputs", r"\[2, 2, 4\]", {"outputs": (2, 2, 4)}),
                    ("outputs", r"\[-1, 4\]", {"outputs": (-1, 4)}),
                    ("start_layer", "5", {"start_layer": 5}),
                ],
                "swin_unetr_2d": [
                    ("depths and num_heads", r"\[2, 2\] and \[3, 2, 6, 4\]", {"depths": (2, 2)}),
                    ("decoder_tuning", "norms", {"decoder_tuning": "norms"}),
                    ("bottleneck_size", "12", {"bottleneck_size": 12}),
                    ("start_layer", "8", {"start_layer": 8}),
                ],
                "swin_classifier_2d": [
                    ("spatial_dims", "4", {"spatial_dims": 4}),
                    ("depths and num_heads", r"\[2, 1, 3, 2\] and \[3\]", {"num_heads": (3,)}),
                    ("num_classes", "-3", {"num_classes": -3}),
                    ("bottleneck_size", "12", {"bottleneck_size": 12}),
                    ("start_layer", "8", {"start_layer": 8}),
                ],
            }.items()
            for name, value, changes in [
                *cases,
                ("start_layer", "-1", {"start_layer": -1}),
                ("share_every", "0", {"share_every": 0}),
                ("bottleneck_size", "0", {"bottleneck_size": 0}),
                ("num_prompts", "-2", {"num_prompts": -2}),
            ]
        ]
    )
    def test_is_named(self, case, name, value, changes):
        with self.assertRaisesRegex(ValueError, rf"^{name} must .*got {value}\.$"):
            new_network(case, **changes)

    @parameterized.expand([("activation", "relu"), ("layer_norm_eps", 0.0)])
    def test_arithmetic_of_the_transformer(self, name, value):
        for case in ("vit_cls_2d", "unetr_2d", "segmenter_2d"):
            with self.assertRaisesRegex(ValueError, f"^{name} must be .*, got {value}\\.$"):
                new_network(case, **{name: value})

    @parameterized.expand([("unetr_2d",), ("segmenter_2d",), ("segmenter_2d_conv",), ("swin_unetr_2d",)])
    def test_norm_tuning_without_parameters_of_norms(self, case):
        with self.assertRaisesRegex(ValueError, '^decoder_tuning="norm" must have normalisation layers with param'):
            new_network(case, decoder_tuning="norm")


class TestViTFeatures(unittest.TestCase):
    @parameterized.expand([("cls", True), ("mean", True), ("mean", False), ("both", True)])
    def test_pooling_by_hand(self, pooling, class_token):
        net = small_network("vit_cls_2d", pooling=pooling, class_token=class_token).double().eval()
        image = small_image(net, batch=2).double()
        with torch.no_grad():
            tokens, logits = net.forward_features(image)[0], net(image)
        self.assertEqual(tokens.shape, (2, 6 + class_token, 24))
        weight, bias = net.classification_head.weight.tolist(), net.classification_head.bias.tolist()
        for sample, found in zip(tokens.tolist(), logits.tolist(), strict=True):
            of_image = sample[1:] if class_token else sample
            mean = [sum(values) / 6 for values in zip(*of_image, strict=True)]
            pooled = {"cls": sample[0], "mean": mean, "both": sample[0] + mean}[pooling]
            for row, offset, logit in zip(weight, bias, found, strict=True):
                expected = sum(w * value for w, value in zip(row, pooled, strict=True)) + offset
                self.assertAlmostEqual(logit, expected, places=12)

    @parameterized.expand([(True,), (False,)])
    def test_prompts_by_hand(self, class_token):
        net = small_network("vit_prompts_2d", class_token=class_token, pos_embed_type="sincos").double().eval()
        image = small_image(net, batch=2).double()
        with torch.no_grad():
            tokens, hidden_states = net.forward_features(image)
            logits = net(image)
        state = {name: tensor.numpy() for name, tensor in net.classification_head.state_dict().items()}
        for sample in range(2):
            last = tokens[sample].numpy()
            pooled = np.concatenate([last[0], last[1:].mean(0)]) if class_token else last.mean(0)
            seen = [(pooled - pooled.mean()) / np.sqrt(pooled.var() + 1e-5)]
            for reader, layer in enumerate((0, 2, 4)):  # of five, every second one up to the last
                x = hidden_states[layer][sample].numpy()
                x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
                h = x @ state[f"readers.{reader}.down.weight"].T + state[f"readers.{reader}.down.bias"]
                z = h * (1 + erf(h / np.sqrt(2))) / 2
                for prompt in state[f"readers.{reader}.prompts"]:
                    weights = np.exp(z @ prompt / 3)  # a bottleneck of 9
                    read = weights @ z / weights.sum()
                    seen.append((read - read.mean()) / np.sqrt(read.var() + 1e-5))
            expected = state["weight"] @ np.concatenate(seen) + state["bias"]
            np.testing.assert_allclose(logits[sample].numpy(), expected, rtol=1e-9, atol=1e-9)

    @parameterized.expand([("vit_cls_2d", 7), ("vit_mean_3d", 6), ("vit_encoder_2d", 7)])
    def test_forward_features(self, case, num_tokens):
        net = small_network(case, start_layer=1).eval()
        image = small_image(net, batch=2)
        with torch.no_grad():
            tokens, hidden_states = net.forward_features(image)
            x = net.patch_embedding(image)
            if num_tokens == 7:
                x = torch.cat((net.cls_token.expand(2, 1, 24), x), dim=1)
            for block, index, found in zip(net.blocks, [-1, 0, 0, 1, 1], hidden_states, strict=True):
                x = block(x) if index < 0 else net.dvpt[index](block(x))
                self.assertTrue(torch.equal(found, x))
            self.assertEqual(x.shape, (2, num_tokens, 24))
            self.assertTrue(torch.equal(tokens, net.norm(x)))

    def test_encoder_returns_pooled_tokens(self):
        net = small_network("vit_both_2d", num_classes=0).eval()
        with torch.no_grad():
            tokens = net.forward_features(small_image(net))[0]
            expected = torch.cat((tokens[:, 0], tokens[:, 1:].mean(1)), dim=1)
            self.assertTrue(torch.equal(net(small_image(net)), expected))


def run_rank(rank: int, folder: Path) -> None:
    """Two steps of each network on one half of the batch; the gradients of the second go to a file."""
    torch.set_num_threads(1)
    dvpt_block.KEEP_FROM = 1  # as with many tokens
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {}
    for case in DISTRIBUTED:
        net = small_network(case, seed=rank).double().train()  # wrapping gives all ranks the weights of the first
        image = small_image(net, batch=2)[rank : rank + 1].double()
        for method in ("dvpt", "full"):
            net = freeze_backbone(net) if method == "dvpt" else tune(net, method)
            wrapped = DistributedDataParallel(net, find_unused_parameters=False)
            gradients(wrapped, image)  # an unused parameter is an error in the step that follows
            found[case, method] = gradients(wrapped, image)
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


class TestDistributed(unittest.TestCase):
    def test_gradients_are_those_of_one_process(self):
        folder = temporary_folder(self)
        torch.multiprocessing.spawn(run_rank, args=(folder,), nprocs=2)
        ranks = [torch.load(folder / f"{rank}.pt") for rank in range(2)]
        self.assertEqual({case for case, _ in ranks[0]}, set(DISTRIBUTED))
        for (case, method), found in ranks[0].items():
            net = freeze_backbone(small_network(case).double().train())
            net = net if method == "dvpt" else tune(net, method)
            image = small_image(net, batch=2).double()
            expected = {f"module.{name}": value for name, value in gradients(net, image).items()}
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(ranks[1][case, method], found, rtol=0, atol=0)


if __name__ == "__main__":
    unittest.main()
