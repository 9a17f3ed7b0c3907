# SPDX-License-Identifier: Apache-2.0
"""Networks in ``torch.compile`` and data-parallel modules do what the network inside does."""

from __future__ import annotations

import unittest
from contextlib import contextmanager

import torch
import torch.distributed as dist
from parameterized import parameterized
from safetensors.torch import save_file
from torch.nn.parallel import DataParallel, DistributedDataParallel
from utils_data import temporary_folder
from utils_networks import changed, copy_of_state, expected_part, small_image, small_network, with_backbone_of

from monai_dvpt.networks.adapter import (
    adapter_names,
    add_adapter,
    backbone_sha256,
    delete_adapter,
    disable_adapter,
    encoder_sha256,
    load_adapter,
    predict_adapters,
    round_backbone,
    save_adapter,
    set_adapter,
    share_backbone,
)
from monai_dvpt.networks.parts import count_parameters, freeze_backbone, parameter_groups
from monai_dvpt.networks.pretrained import load_pretrained

WRAPPERS = [
    ("compiled", lambda net: torch.compile(net, backend="eager")),
    ("parallel", DataParallel),
    ("parallel_compiled", lambda net: DataParallel(torch.compile(net, backend="eager"))),
]


@contextmanager
def process_group(folder):
    """One process that is a group of its own."""
    dist.init_process_group("gloo", init_method=f"file://{folder / 'group'}", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


class TestWrapped(unittest.TestCase):
    def setUp(self):
        self.folder = temporary_folder(self)
        self.net = freeze_backbone(small_network("vit_cls_2d", 1)).eval()
        self.path = save_adapter(self.net, self.folder / "adapter.safetensors")

    @parameterized.expand(WRAPPERS)
    def test_files_are_those_of_the_network_inside(self, _, wrap):
        wrapped = wrap(self.net)
        again = save_adapter(wrapped, self.folder / "again.safetensors")
        self.assertEqual(again.read_bytes(), self.path.read_bytes())
        other = with_backbone_of(self.net, 2)
        wrapped_other = wrap(other)
        self.assertIs(load_adapter(wrapped_other, self.path), wrapped_other)
        self.assertEqual(changed(copy_of_state(self.net), other), set())
        for compute in (backbone_sha256, encoder_sha256, count_parameters, adapter_names):
            self.assertEqual(compute(wrapped), compute(self.net))
        found, expected = (parameter_groups(net, {"method": 0.1, "head": 0.2}) for net in (wrapped, self.net))
        self.assertEqual([len(group["params"]) for group in found], [len(group["params"]) for group in expected])

    @parameterized.expand(WRAPPERS)
    @torch.no_grad()
    def test_switching(self, _, wrap):
        plain, image = freeze_backbone(with_backbone_of(self.net, 2)), small_image(self.net)
        wrapped = wrap(self.net)
        load_adapter(plain, self.path)
        self.assertTrue(torch.equal(wrapped(image), plain(image)))
        other = save_adapter(with_backbone_of(self.net, 3, num_prompts=2), self.folder / "other.safetensors")
        for net in (wrapped, plain):
            self.assertIs(load_adapter(net, other, name="other"), net)
        self.assertEqual(adapter_names(wrapped), ["other", "default"])
        self.assertTrue(torch.equal(wrapped(image), plain(image)))
        for name, answer in predict_adapters(wrapped, image).items():
            self.assertTrue(torch.equal(answer, predict_adapters(plain, image)[name]))
        with disable_adapter(wrapped) as inside, disable_adapter(plain):
            self.assertIs(inside, wrapped)
            self.assertTrue(torch.equal(wrapped(image), plain(image)))
        for net in (wrapped, plain):
            self.assertIs(set_adapter(net, "default"), net)
            delete_adapter(net, "other")
        self.assertEqual(adapter_names(self.net), ["default"])
        self.assertTrue(torch.equal(wrapped(image), plain(image)))

    def test_backbone(self):
        backbone = {k: v for k, v in self.net.state_dict().items() if expected_part(self.net, k) == "backbone"}
        save_file(backbone, self.folder / "backbone.safetensors")
        other, third = (freeze_backbone(small_network("vit_cls_2d", seed)) for seed in (2, 3))
        load_pretrained(DataParallel(other), self.folder / "backbone.safetensors", verbose=False)
        self.assertEqual(backbone_sha256(other), backbone_sha256(self.net))
        wrapped = DataParallel(third)
        self.assertIs(share_backbone(wrapped, DataParallel(other)), wrapped)
        self.assertIs(third.blocks[0].mlp.linear1.weight, other.blocks[0].mlp.linear1.weight)
        round_backbone(wrapped)
        self.assertEqual(third.blocks[0].mlp.linear1.weight.dtype, torch.bfloat16)
        freeze_backbone(wrapped, ["head"])
        self.assertEqual(
            {n for n, p in third.named_parameters() if p.requires_grad},
            set(third.state_dict()) & {"classification_head.weight", "classification_head.bias"},
        )

    def test_distributed(self):
        logger = "monai_dvpt.networks.wrapped"
        with process_group(self.folder):
            wrapped = DistributedDataParallel(self.net)
            with self.assertNoLogs(logger):
                load_adapter(wrapped, self.path)
                predict_adapters(wrapped, small_image(self.net))
            with self.assertLogs(logger, "WARNING") as caught:  # the gradients of the new one would not be shared
                add_adapter(wrapped, "second")
        self.assertIn("wrap the inner network again", caught.output[0])
        self.assertEqual(adapter_names(self.net), ["second", "default"])


if __name__ == "__main__":
    unittest.main()
