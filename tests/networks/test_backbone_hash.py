# SPDX-License-Identifier: Apache-2.0
"""The SHA-256 of a backbone is computed once, and again after every change of the backbone."""

from __future__ import annotations

import copy
import hashlib
import unittest
from unittest.mock import patch

import torch
from parameterized import parameterized
from utils_data import temporary_folder
from utils_networks import randomise, small_image, small_network

from monai_dvpt.networks.adapter import (
    add_adapter,
    backbone_sha256,
    encoder_sha256,
    load_adapter,
    round_backbone,
    save_adapter,
    set_adapter,
    share_backbone,
    stored,
)
from monai_dvpt.networks.parts import freeze_backbone, tune


def sha256_of(net) -> str:
    """Of the tensors of a UNETR's transformer without its method, as the format of adapter files says."""
    digest = hashlib.sha256()
    state = {name.removeprefix("vit."): tensor for name, tensor in net.state_dict().items() if name.startswith("vit.")}
    for name, tensor in sorted(state.items()):
        if not name.startswith("dvpt."):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def step(net, optimiser: type[torch.optim.Optimizer], **options) -> None:
    """Trains the backbone for one step, and freezes it again."""
    backbone = [parameter for name, parameter in net.vit.named_parameters() if not name.startswith("dvpt.")]
    for parameter in backbone:
        parameter.requires_grad_()
    net(small_image(net)).square().mean().backward()
    optimiser(backbone, lr=1e-3, **options).step()
    freeze_backbone(net)


def change_data(net) -> None:
    net.vit.blocks[1].mlp.linear1.weight.data[2, 3] += 1


def change_array(net) -> None:
    net.vit.blocks[1].mlp.linear1.weight.detach().numpy()[2, 3] += 1


def swap_numbers(net) -> None:
    """The sum stays."""
    with torch.no_grad():
        weight = net.vit.norm.weight
        weight.copy_(weight.flip(0))


CHANGES = {
    "load_state_dict": lambda net: net.load_state_dict(small_network("unetr_2d", 2).state_dict()),
    "assigned": lambda net: net.load_state_dict(small_network("unetr_2d", 2).state_dict(), assign=True),
    "SGD": lambda net: step(net, torch.optim.SGD),
    "AdamW": lambda net: step(net, torch.optim.AdamW),
    "AdamW, fused": lambda net: step(net, torch.optim.AdamW, fused=True),
    "double": lambda net: net.double(),
    "half and back": lambda net: net.half().float(),
    "share_backbone": lambda net: share_backbone(net, freeze_backbone(small_network("unetr_2d", 2))),
    "one number": lambda net: net.vit.blocks[1].attn.qkv.weight.detach()[3, 4].add_(1),
    "one number, through data": change_data,
    "one number, through NumPy": change_array,
    "numbers in another order": swap_numbers,
}


class TestBackboneHash(unittest.TestCase):
    def setUp(self):
        self.net = freeze_backbone(small_network("unetr_2d", 1)).eval()
        self.folder = temporary_folder(self)

    def counted(self):
        """Counts how often tensors are hashed."""
        made = patch.object(stored, "tensors_sha256", wraps=stored.tensors_sha256)
        self.addCleanup(made.stop)
        return made.start()

    @parameterized.expand(CHANGES.items())
    def test_change_is_noticed(self, _, change):
        before = [backbone_sha256(self.net), encoder_sha256(self.net)]
        change(self.net)
        self.assertNotIn(backbone_sha256(self.net), before)
        self.assertEqual(backbone_sha256(self.net), sha256_of(self.net))
        self.assertNotIn(encoder_sha256(self.net), before)

    def test_source_of_a_shared_backbone_that_changes(self):
        source = freeze_backbone(small_network("unetr_2d", 2))
        share_backbone(self.net, source)
        self.assertEqual(backbone_sha256(self.net), backbone_sha256(source))
        CHANGES["one number"](source)
        self.assertEqual(backbone_sha256(self.net), sha256_of(source))

    def test_rounded(self):
        expected = backbone_sha256(self.net)
        self.assertEqual(backbone_sha256(round_backbone(self.net)), expected)
        CHANGES["one number"](self.net)
        self.assertEqual(backbone_sha256(self.net), sha256_of(self.net))

    def test_inference_tensors(self):
        with torch.inference_mode():
            net = small_network("unetr_2d", 1)
            before = backbone_sha256(net)
            self.assertEqual(before, sha256_of(self.net))
            randomise(net, 2)
            self.assertEqual(backbone_sha256(net), sha256_of(net))
            self.assertNotEqual(backbone_sha256(net), before)

    def test_copy(self):
        backbone_sha256(self.net)
        twin = copy.deepcopy(self.net)
        randomise(twin, 2)
        self.assertEqual(backbone_sha256(twin), sha256_of(twin))
        self.assertEqual(backbone_sha256(self.net), sha256_of(self.net))

    @parameterized.expand(["unetr_2d", "swin_unetr_2d_none", "vit_cls_2d"])
    def test_computed_once(self, case):
        net = freeze_backbone(small_network(case, 1)).eval()
        expected = backbone_sha256(net)
        hashed = self.counted()
        for name, method in (("second", "full"), ("third", "lora"), ("fourth", "bitfit")):
            set_adapter(add_adapter(net, name, method), "default")
            set_adapter(net, name)
            net(small_image(net))
            self.assertEqual(backbone_sha256(net), expected)
        self.assertEqual(hashed.call_count, 0)
        path = save_adapter(net, self.folder / "adapter.safetensors")
        load_adapter(net, path, name="fifth")
        self.assertEqual(hashed.call_count, 2)  # of what is written, and of what is read
        self.assertFalse([name for call in hashed.call_args_list for name in call.args[0] if "qkv.weight" in name])

    def test_training_of_the_methods_copies_changes_nothing(self):
        expected = sha256_of(self.net)
        tune(self.net, "full")
        self.assertEqual(backbone_sha256(self.net), expected)
        self.net(small_image(self.net)).square().mean().backward()
        torch.optim.SGD([p for p in self.net.parameters() if p.requires_grad], lr=1e-2).step()
        self.assertNotEqual(sha256_of(self.net), expected)
        self.assertEqual(backbone_sha256(self.net), expected)


if __name__ == "__main__":
    unittest.main()
