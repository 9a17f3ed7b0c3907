# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import unittest

import torch
from utils_commands import call, save_pair
from utils_data import temporary_folder
from utils_networks import randomise

from monai_dvpt.__main__ import main
from monai_dvpt.apps.monailabel.versions import SHIPPED, AdapterVersions
from monai_dvpt.networks.adapter import load_adapter, merge_full, save_adapter
from monai_dvpt.networks.nets import DVPTUNETR
from monai_dvpt.utils import InputError

LABELS = ["none", "mild", "severe"]
PARTS = ["dvpt", "head"]


class TestAdapterVersions(unittest.TestCase):
    def setUp(self):
        self.folder = temporary_folder(self)
        self.net, self.shipped, self.backbone = save_pair(self.folder, DVPTUNETR)
        self.versions = AdapterVersions(self.folder / "versions", self.shipped)
        self.image = torch.rand(1, 2, 32, 48)

    def add(self, score: float = 0.5) -> torch.Tensor:
        """Adds a version with other values in the trained parts; what the network then gives."""
        with torch.no_grad():
            for _, tensor in self.net.tensors(PARTS):
                if tensor.is_floating_point():
                    tensor.add_(0.1 * torch.randn_like(tensor))
        self.versions.add(self.net, PARTS, LABELS, {"score": score, "score_in_use_before": 0.25})
        return self.net(self.image)

    def test_each_version_gives_what_was_trained(self):
        with torch.no_grad():
            shipped = self.net(self.image)
            expected = {SHIPPED: shipped, "v1": self.add(), "v2": self.add()}
            net = merge_full(self.shipped, self.backbone)
            for name in ("v1", SHIPPED, "v2", "v1"):
                torch.testing.assert_close(self.versions.load(net, name, LABELS)(self.image), expected[name])
        self.assertEqual([record["name"] for record in self.versions.records()], ["v1", "v2"])

    def test_adding_puts_nothing_in_use(self):
        self.assertEqual((self.versions.active, self.versions.names), (SHIPPED, [SHIPPED]))
        self.add()
        self.assertEqual((self.versions.active, self.versions.names), (SHIPPED, [SHIPPED, "v1"]))
        self.versions.use("v1")
        again = AdapterVersions(self.versions.folder, self.shipped)
        self.assertEqual((again.active, again.names), ("v1", ["v1", SHIPPED]))
        again.use(SHIPPED)
        self.assertEqual(self.versions.active, SHIPPED)

    def test_version_of_another_adapter_is_refused(self):
        self.add()
        randomise(self.net)
        other = save_adapter(load_adapter(self.net, self.shipped), self.folder / "other.safetensors", labels=LABELS)
        with torch.no_grad():
            next(tensor for _, tensor in self.net.tensors(["decoder"])).add_(1)
        save_adapter(self.net, other, labels=LABELS)
        mixed = AdapterVersions(self.versions.folder, other)
        with self.assertRaisesRegex(InputError, "v1.safetensors: goes on from the adapter with SHA-256"):
            mixed.load(self.net, "v1", LABELS)

    def test_what_is_not_there_is_refused(self):
        self.add()
        with self.assertRaisesRegex(InputError, r"adapter must be one of \['shipped', 'v1'\], got 'v7'"):
            self.versions.use("v7")
        (self.versions.folder / "v1.safetensors").unlink()
        with self.assertRaisesRegex(InputError, "v1.safetensors: the adapter v1 must be there, but the file is gone"):
            self.versions.use("v1")
        self.versions.index.write_text("{")
        with self.assertRaisesRegex(InputError, "versions.json: must be a list of adapter versions"):
            self.versions.records()


class TestVersionsCommand(unittest.TestCase):
    setUp, add = TestAdapterVersions.setUp, TestAdapterVersions.add

    def test_list_use_and_export(self):
        with torch.no_grad():
            expected = self.add(0.75)
        status, out, err = call(main, "versions", self.versions.folder, "--use", "v1")
        self.assertEqual((status, err), (0, ""))
        rows = [line.split() for line in out.splitlines()]
        self.assertEqual(rows[1], [SHIPPED])
        self.assertEqual((rows[2][:2], rows[2][3:5]), (["*", "v1"], ["0.7500", "0.2500"]))
        self.assertEqual(json.loads(call(main, "versions", self.versions.folder, "--json")[1])["in_use"], "v1")
        whole = self.folder / "whole.safetensors"
        options = ["--export", "v1", "--output", whole, "--backbone", self.backbone]
        self.assertEqual(call(main, "versions", self.versions.folder, *options)[::2], (0, ""))
        with torch.no_grad():
            torch.testing.assert_close(merge_full(whole, self.backbone)(self.image), expected)
        self.assertEqual(call(main, "versions", self.versions.folder, *options)[0], 1)
        status, _, err = call(main, "versions", self.versions.folder, "--use", "v1", "--output", whole)
        self.assertEqual(status, 1)
        self.assertIn("--output and --backbone must come with --export", err)

    def test_folder_without_versions(self):
        status, _, err = call(main, "versions", self.folder)
        self.assertEqual(status, 1)
        self.assertIn("must hold adapter versions", err)
