# SPDX-License-Identifier: Apache-2.0
"""Several adapters on one backbone."""

from __future__ import annotations

import copy
import json
import unittest
from typing import Any

import torch
import torch.nn as nn
from parameterized import parameterized
from utils_data import temporary_folder
from utils_networks import (
    changed,
    copy_of_state,
    expected_part,
    randomise,
    randomise_method,
    small_image,
    small_network,
    to_be_trained,
    tuned_network,
    with_backbone_of,
)

from monai_dvpt.networks.adapter import (
    adapter_names,
    add_adapter,
    delete_adapter,
    disable_adapter,
    load_adapter,
    save_adapter,
    set_adapter,
)
from monai_dvpt.networks.parts import freeze_backbone, tune
from monai_dvpt.utils import InputError

BATCH_NORM = ("batch", {"affine": True})
DVPT = {"bottleneck_size": 4, "num_prompts": 3, "share_every": 3, "start_layer": 1}
OTHER = [  # network, and the arguments of a second adapter that differ from the first
    ("vit_cls_2d", {**DVPT, "num_classes": 5}),
    ("unetr_2d", {**DVPT, "out_channels": 5, "feature_size": 8, "res_block": False, "norm_name": "batch"}),
    ("swin_unetr_2d", {**DVPT, "out_channels": 5, "norm_name": BATCH_NORM}),
    ("swin_unetr_2d_norm", {**DVPT, "out_channels": 5, "norm_name": BATCH_NORM}),
    ("swin_unetr_2d_none", {"start_layer": 6, "out_channels": 1}),
    ("swin_classifier_2d", {**DVPT, "num_classes": 5}),
]
SAME = [(case, {}) for case, _ in OTHER]
HEADLESS = [("vit_both_2d", {"num_prompts": 0, "num_classes": 0}), ("swin_classifier_2d", {"num_classes": 0})]


def backbone_of(net: nn.Module) -> dict[str, torch.Tensor]:
    """The very tensors of the backbone."""
    return {name: tensor for name, tensor in net.state_dict().items() if expected_part(net, name) == "backbone"}


def places(tensors: dict[str, torch.Tensor]) -> dict[str, int]:
    return {name: tensor.data_ptr() for name, tensor in tensors.items()}


def trained(net: nn.Module) -> set[str]:
    return {name for name, parameter in net.named_parameters() if parameter.requires_grad}


def settings(net: nn.Module) -> dict[str, Any]:
    """Of the network and of its method."""
    return {**net.arguments, **net.method.options}


@torch.no_grad()
def answer(net: nn.Module) -> torch.Tensor:
    return net(small_image(net))


class Base(unittest.TestCase):
    def setUp(self):
        torch.manual_seed(0)
        self.path = temporary_folder(self) / "adapter.safetensors"

    def saved(self, net: nn.Module, seed: int, **arguments: Any) -> nn.Module:
        """A network on the backbone of ``net`` whose adapter is in the file."""
        other = with_backbone_of(net, seed, **arguments)
        save_adapter(other, self.path)
        return other

    def check_equal(self, found: torch.Tensor, expected: torch.Tensor) -> None:
        self.assertTrue(torch.equal(found, expected))


class TestSwitching(Base):
    @parameterized.expand(OTHER + SAME)
    def test_loaded_beside_another(self, case, arguments):
        net = small_network(case, 1).eval()
        other = self.saved(net, 2, **arguments)
        fresh = load_adapter(with_backbone_of(net, 3, **arguments), self.path)
        before, first = places(net.state_dict()), answer(net)
        self.assertIs(load_adapter(net, self.path, name="second"), net)
        self.assertEqual(adapter_names(net), ["second", "default"])
        for _ in range(2):
            self.check_equal(answer(net), answer(other))
            self.check_equal(answer(net), answer(fresh))
            self.assertEqual(net.state_dict().keys(), other.state_dict().keys())
            self.assertEqual(changed(copy_of_state(other), net), set())
            self.assertEqual(json.dumps(net.arguments), json.dumps(other.arguments))  # a tuple is a list in the file
            backbone = places(backbone_of(net))
            self.assertEqual(backbone, {name: before[name] for name in backbone})
            if not arguments:
                self.assertEqual(list(net.state_dict()), list(before))
            set_adapter(net, "default")
            self.assertEqual(adapter_names(net), ["default", "second"])
            self.assertEqual(places(net.state_dict()), before)
            self.check_equal(answer(net), first)
            self.assertIs(set_adapter(net, "second"), net)
        self.assertFalse(any(module.training for module in net.modules()))

    @parameterized.expand(OTHER + HEADLESS)
    def test_each_is_saved_with_its_own_settings(self, case, arguments):
        net = small_network(case, 1).eval()
        randomise_method(add_adapter(net, "second", **arguments), 4)
        for name in ("default", "second"):
            save_adapter(set_adapter(net, name), self.path)
            other = with_backbone_of(net, 5, **(arguments if name == "second" else {}))
            self.check_equal(answer(load_adapter(other, self.path)), answer(net))

    @parameterized.expand(OTHER + HEADLESS)
    def test_added_one_is_new(self, case, arguments):
        net = small_network(case, 1).eval()
        first = list(net.encoder().dvpt.parameters())
        self.assertIs(add_adapter(net, "second", **arguments), net)
        self.assertEqual(adapter_names(net), ["second", "default"])
        self.assertFalse({*map(id, first)} & {*map(id, net.encoder().dvpt.parameters())})
        added = answer(net)
        with disable_adapter(net):
            self.check_equal(answer(net), added)  # a new DVPT block is the identity
        found = settings(net)
        self.assertEqual(found, {**settings(set_adapter(net, "default")), **arguments})
        self.assertEqual([*map(id, net.encoder().dvpt.parameters())], [*map(id, first)])

    @parameterized.expand([("swin_unetr_2d_norm", {"norm"}), ("swin_unetr_2d_none", set())])
    def test_frozen_decoder_is_not_copied(self, case, own):
        net = small_network(case, 1).eval()
        before = places(net.state_dict())
        self.saved(net, 2)
        load_adapter(net, self.path, name="second")
        moved = {name for name, place in places(net.state_dict()).items() if before[name] != place}
        decoder = {name for name in moved if not name.startswith(("swinViT.dvpt.", "out."))}
        self.assertEqual({name.split(".")[-2][:-1] for name in decoder}, own)
        self.assertEqual(moved, {name for name in before if expected_part(net, name) != "backbone"})
        self.assertIn("decoder1.conv_block.conv1.conv.weight", before.keys() - moved)

    def test_one_of_the_same_name_is_replaced(self):
        net = small_network("vit_cls_2d", 1).eval()
        first = answer(net)
        for seed, arguments in ((2, {}), (3, {"num_prompts": 4})):
            other = self.saved(net, seed, **arguments)
            load_adapter(net, self.path, name="second")
            self.assertEqual(adapter_names(net), ["second", "default"])
            self.check_equal(answer(net), answer(other))
        self.check_equal(answer(set_adapter(net, "default")), first)
        load_adapter(net, self.path, name="second")
        self.check_equal(answer(net), answer(other))
        set_adapter(net, "default")
        load_adapter(net, self.path, name="default")
        self.assertEqual(adapter_names(net), ["default", "second"])
        self.check_equal(answer(net), answer(other))

    def test_deepcopy(self):
        net = add_adapter(small_network("swin_unetr_2d_norm", 1).eval(), "second", out_channels=5)
        twin = copy.deepcopy(net)
        expected = [answer(set_adapter(net, name)) for name in ("default", "second")]
        randomise(net, 9)
        randomise(set_adapter(net, "default"), 9)
        for name, output in zip(("default", "second"), expected, strict=True):
            self.check_equal(answer(set_adapter(twin, name)), output)

    @parameterized.expand([("vit_cls_2d",), ("unetr_2d",), ("swin_unetr_2d_norm",)])
    def test_other_type_of_numbers(self, case):
        net = small_network(case, 1).eval()
        other = self.saved(net, 2, num_prompts=4).double()
        load_adapter(net, self.path, name="second")
        first = copy.deepcopy(set_adapter(net, "default")).double()
        save_adapter(other, self.path)
        load_adapter(net.double(), self.path, name="third")
        add_adapter(net, "new")
        image = small_image(net).double()
        with torch.no_grad():
            self.assertEqual(net(image).dtype, torch.float64)
            for name, expected in (("second", other), ("default", first), ("third", other)):
                self.check_equal(set_adapter(net, name)(image), expected(image))

    def test_other_device(self):
        net = add_adapter(small_network("unetr_2d"), "second").to("meta")
        set_adapter(net, "default")
        self.assertEqual({tensor.device.type for tensor in net.state_dict().values()}, {"meta"})

    @parameterized.expand([("unetr_2d", True), ("swin_unetr_2d", False)])
    def test_random_numbers_go_on_as_before(self, case, fits):
        net = small_network(case, 1)
        self.saved(net, 2, **({"num_prompts": 4} if fits else {"normalize": False}))
        state = torch.get_rng_state()
        if fits:
            load_adapter(net, self.path, name="second")
        else:
            with self.assertRaises(InputError):
                load_adapter(net, self.path, name="second")
        self.check_equal(torch.get_rng_state(), state)


class TestTraining(Base):
    @parameterized.expand(
        [
            ("unetr_2d", ("method",)),
            ("unetr_2d", ("decoder", "head")),
            ("unetr_2d", ("method", "head"), "full"),
            ("swin_unetr_2d_norm", ("decoder",)),
            ("vit_cls_2d", ("head",)),
        ]
    )
    def test_what_is_trained_follows_the_current_one(self, case, train, method=None):
        net = freeze_backbone(tuned_network(case, method, 1) if method else small_network(case, 1), train).train()
        expected = to_be_trained(net, train)
        self.saved(net, 2)
        load_adapter(net, self.path, name="second")
        self.assertEqual(trained(net), expected)
        add_adapter(net, "third")
        self.assertEqual(trained(net), expected)
        self.assertTrue(net.training)
        self.assertEqual(net.encoder().blocks[1].training, method is not None)
        self.assertEqual(net.encoder().dvpt.training, "method" in train)

    def test_a_step_changes_the_active_one_alone(self):
        net = small_network("unetr_2d", 1)
        freeze_backbone(randomise(add_adapter(net, "second", num_prompts=3), 3)).train()
        first = copy_of_state(set_adapter(net, "default"))
        before = copy_of_state(set_adapter(net, "second"))
        optimiser = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=1.0)
        net(small_image(net)).square().mean().backward()
        optimiser.step()
        self.assertEqual(changed(before, net), trained(net))
        self.assertEqual(changed(first, set_adapter(net, "default")), set())

    def test_frozen_adapter_has_no_dropout_after_switch(self):
        net = freeze_backbone(small_network("vit_cls_2d", 1, dropout_rate=0.5)).train()
        add_adapter(net, "second", num_classes=4)
        self.check_equal(answer(net), answer(net))
        self.assertFalse(any(module.training for module in net.blocks.modules()))


class TestDisabled(Base):
    @parameterized.expand([("vit_cls_2d",), ("unetr_2d",), ("swin_unetr_2d",), ("swin_classifier_2d",)])
    def test_inside_the_context(self, case):
        net = small_network(case, 1).eval()
        expected, without = answer(net), with_backbone_of(net, 2)
        tune(without, "linear")
        without.load_state_dict({k: v for k, v in net.state_dict().items() if expected_part(net, k) != "method"})
        with disable_adapter(net) as inside:
            self.assertIs(inside, net)
            self.check_equal(answer(net), answer(without))
            self.assertFalse(torch.equal(answer(net), expected))
        self.check_equal(answer(net), expected)

    def test_restored_on_exception(self):
        net = small_network("vit_cls_2d", 1).eval()
        expected = answer(net)
        with self.assertRaisesRegex(RuntimeError, "^stop$"), disable_adapter(net):
            raise RuntimeError("stop")
        self.check_equal(answer(net), expected)

    def test_stays_off_where_it_was_off(self):
        net = small_network("vit_cls_2d", 1).eval()
        with disable_adapter(net):
            expected = answer(net)
            with disable_adapter(net):
                self.check_equal(answer(net), expected)
            self.check_equal(answer(net), expected)


class TestNames(Base):
    def test_delete(self):
        net = small_network("vit_cls_2d", 1).eval()
        expected = answer(net)
        self.assertEqual(adapter_names(net), ["default"])
        add_adapter(add_adapter(net, "second"), "third")
        set_adapter(net, "default")
        self.assertIs(delete_adapter(net, "second"), net)
        self.assertEqual(adapter_names(net), ["default", "third"])
        with self.assertRaisesRegex(ValueError, r"^name must be one of \['default', 'third'\], got second\.$"):
            set_adapter(net, "second")
        self.check_equal(answer(net), expected)

    @parameterized.expand([(set_adapter,), (delete_adapter,)])
    def test_unknown(self, function):
        with self.assertRaisesRegex(ValueError, r"^name must be one of \['default'\], got liver\.$"):
            function(small_network("vit_cls_2d"), "liver")

    def test_active_one_is_not_deleted(self):
        net = add_adapter(small_network("vit_cls_2d"), "second")
        with self.assertRaisesRegex(ValueError, "^name must be that of an adapter not in use, got second"):
            delete_adapter(net, "second")
        self.assertEqual(adapter_names(net), ["second", "default"])

    @parameterized.expand(["default", "second"])
    def test_taken(self, name):
        net = add_adapter(small_network("vit_cls_2d"), "second")
        with self.assertRaisesRegex(ValueError, rf"^name must be a new one, .*, got '{name}'\.$"):
            add_adapter(net, name)


class TestRefused(Base):
    @parameterized.expand(
        [
            ("vit_cls_2d", "num_heads", {"num_heads": 3}),
            ("vit_cls_2d", "pooling", {"pooling": "mean"}),
            ("vit_cls_2d", "img_size", {"img_size": (48, 32)}),
            ("vit_cls_2d", "activation", {"activation": "quick_gelu"}),
            ("vit_cls_2d", "layer_norm_eps", {"layer_norm_eps": 1e-6}),
            ("unetr_2d", "num_heads", {"num_heads": 3}),
            ("swin_unetr_2d", "normalize", {"normalize": False}),
            ("swin_classifier_2d", "downsample", {"downsample": "mergingv2"}),
        ]
    )
    def test_other_arguments(self, case, name, arguments):
        net = small_network(case, 1)
        other = small_network(case, 2, **arguments)
        other.load_state_dict(backbone_of(net), strict=False)
        save_adapter(other, self.path)
        self.check_refused(net, f"{name} must be that of the network")

    def test_other_normalisation_of_a_frozen_decoder(self):
        """It has no tensors, so the backbone's SHA-256 cannot tell."""
        net = small_network("swin_unetr_2d_none", 1)
        other = small_network("swin_unetr_2d_none", 2, norm_name=("group", {"num_groups": 2, "affine": False}))
        other.load_state_dict(backbone_of(net), strict=False)
        save_adapter(other, self.path)
        self.check_refused(net, "norm_name must be that of the network")

    @parameterized.expand([("img_size", 32, (32, 32)), ("patch_size", (16, 16), 16)])
    def test_one_number_for_all_sides_is_the_same(self, name, one, other):
        sizes = {"img_size": 32, **{name: one}}
        net = small_network("vit_cls_2d", 1, **sizes)
        twin = small_network("vit_cls_2d", 2, **{**sizes, name: other})
        twin.load_state_dict(backbone_of(net), strict=False)
        save_adapter(twin, self.path)
        load_adapter(net, self.path)
        self.assertEqual(changed(copy_of_state(twin), net), set())

    def test_empty_name(self):
        net = small_network("vit_cls_2d", 1)
        save_adapter(net, self.path)
        with self.assertRaisesRegex(ValueError, "^name must be a new one, .* and not empty, got ''"):
            add_adapter(net, "")
        with self.assertRaisesRegex(ValueError, "^name must not be empty"):
            load_adapter(net, self.path, name="")
        self.assertEqual(adapter_names(net), ["default"])

    def test_other_decoder_tuning(self):
        net = small_network("swin_unetr_2d", 1)
        self.saved(net, 2, decoder_tuning="none")
        self.check_refused(net, "backbone_sha256 must be that of the network")

    @parameterized.expand([("vit_cls_2d",), ("unetr_2d",), ("swin_unetr_2d_norm",), ("swin_classifier_2d",)])
    def test_other_backbone(self, case):
        net = small_network(case, 1)
        save_adapter(small_network(case, 2), self.path)
        self.check_refused(net, "backbone_sha256 must be that of the network")

    def test_other_network(self):
        net = small_network("swin_unetr_2d", 1)
        save_adapter(small_network("swin_classifier_2d", 1), self.path)
        self.check_refused(net, "network must be that of the network, DVPTSwinUNETR, got DVPTSwinClassifier")

    def test_damaged(self):
        net = small_network("vit_cls_2d", 1)
        self.saved(net, 2)
        data = bytearray(self.path.read_bytes())
        data[-6] ^= 1
        self.path.write_bytes(data)
        self.check_refused(net, "tensors_sha256 must be")

    def check_refused(self, net: nn.Module, words: str) -> None:
        before, modules = copy_of_state(net), dict(net.named_modules())
        with self.assertRaisesRegex(InputError, words):
            load_adapter(net, self.path, name="second")
        self.assertEqual(adapter_names(net), ["default"])
        self.assertEqual(changed(before, net), set())
        self.assertEqual(dict(net.named_modules()), modules)

    @parameterized.expand(
        [
            ("vit_cls_2d", {"num_heads": 3}, r"^arguments of an adapter must be of \[.*\], got \['num_heads'\]\.$"),
            ("vit_cls_2d", {"feature_size": 8}, r"got \['feature_size'\]\.$"),
            ("unetr_2d", {"decoder_tuning": "none"}, r"got \['decoder_tuning'\]\.$"),
            ("swin_unetr_2d", {"depths": (1, 1, 1, 1)}, r"got \['depths'\]\.$"),
            ("swin_unetr_2d", {"share_every": 0}, r"^share_every must be a whole number of at least 1, got 0\.$"),
            ("swin_unetr_2d_norm", {"norm_name": "instance"}, '^decoder_tuning="norm" must have norm'),
            ("swin_unetr_2d_none", {"norm_name": BATCH_NORM}, r"got \['norm_name'\]\.$"),
        ]
    )
    def test_arguments_of_a_new_adapter(self, case, arguments, words):
        net = small_network(case, 1)
        before, modules = copy_of_state(net), dict(net.named_modules())
        with self.assertRaisesRegex(ValueError, words):
            add_adapter(net, "second", **arguments)
        self.assertEqual(adapter_names(net), ["default"])
        self.assertEqual(changed(before, net), set())
        self.assertEqual(dict(net.named_modules()), modules)


if __name__ == "__main__":
    unittest.main()
