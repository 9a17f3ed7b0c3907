# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import unittest
from types import SimpleNamespace
from unittest.mock import patch

import torch
from utils_commands import call, save_pair
from utils_data import temporary_folder
from utils_networks import randomise

from monai_dvpt.__main__ import main
from monai_dvpt.apps.monailabel import bundles
from monai_dvpt.apps.monailabel.adapter_versions import SHIPPED, AdapterVersions
from monai_dvpt.apps.monailabel.bundles import LoadedNetwork
from monai_dvpt.networks.adapter import adapter_metadata, adapter_names, load_adapter, merge_full, save_adapter, stored
from monai_dvpt.networks.nets import DVPTUNETR
from monai_dvpt.networks.parts import tune
from monai_dvpt.utils import InputError

LABELS = ["none", "mild", "severe"]
PARTS = ["method", "head"]


class TestAdapterVersions(unittest.TestCase):
    def setUp(self):
        self.folder = temporary_folder(self)
        self.net, self.shipped, self.backbone = save_pair(self.folder, DVPTUNETR)
        self.versions = AdapterVersions(self.folder / "versions", self.shipped)
        self.image = torch.rand(1, 2, 32, 48)

    def add(self, score: float = 0.5, method: str = "dvpt") -> torch.Tensor:
        """Adds a version with other values in the trained parts; what the network then gives."""
        if method != self.net.method.name:
            tune(self.net, method).eval()
        parts = PARTS if method != "linear" else ["head"]
        with torch.no_grad():
            for _, tensor in self.net.tensors(parts):
                if tensor.is_floating_point():
                    tensor.add_(0.1 * torch.randn_like(tensor))
            answer = self.net(self.image)
        self.versions.add(self.net, parts, LABELS, {"score": score, "score_in_use_before": 0.25, "method": method})
        return answer

    def test_each_version_gives_what_was_trained(self):
        with torch.no_grad():
            shipped = self.net(self.image)
            expected = {SHIPPED: shipped, "v1": self.add(), "v2": self.add(method="lora")}
            expected |= {"v3": self.add(method="linear"), "v4": self.add(method="full")}
            net = merge_full(self.shipped, self.backbone)
            for name in ("v1", "v4", SHIPPED, "v2", "v1", "v3"):
                self.assertTrue(torch.equal(self.versions.load(net, name, LABELS)(self.image), expected[name]), name)
        self.assertEqual([record["name"] for record in self.versions.records()], ["v1", "v2", "v3", "v4"])
        stored_parts = [adapter_metadata(self.versions.file_of(name))["parts"] for name in ("v2", "v3")]
        self.assertEqual(stored_parts, [PARTS, ["head"]])

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
        with self.assertRaisesRegex(InputError, "v1.safetensors: starts from the adapter with SHA-256"):
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


class TestLoadedNetwork(unittest.TestCase):
    add = TestAdapterVersions.add

    def setUp(self):
        TestAdapterVersions.setUp(self)
        self.built = 0
        bundle = SimpleNamespace(lacks="", adapter_path=self.shipped, backbone_path=self.backbone, network=self.network)
        bundle.labels = SimpleNamespace(names=LABELS)
        self.loaded = LoadedNetwork(bundle, self.versions)
        made = patch.object(self.versions, "load", wraps=self.versions.load)
        self.load = made.start()
        self.addCleanup(made.stop)

    def network(self):
        self.built += 1
        return merge_full(self.shipped, self.backbone)

    @torch.no_grad()
    def answer(self, version: str) -> torch.Tensor:
        net = self.loaded.get(version, "cpu")
        self.assertFalse(any(module.training for module in net.modules()))
        self.assertEqual((self.loaded.version, adapter_names(net)[0]), (version, version))
        return net(self.image)

    def read(self) -> list[str]:
        """Names of the versions whose files were read since this was asked last."""
        names = [call.args[1] for call in self.load.call_args_list]
        self.load.reset_mock()
        return names

    def test_each_file_is_read_once_and_the_backbone_hashed_once(self):
        with torch.no_grad():
            expected = {SHIPPED: self.net(self.image)}
        expected |= {"v1": self.add(), "v2": self.add(method="lora"), "v3": self.add(method="full")}
        hashed = []

        def hashing(tensors):
            hashed.extend(name for name in tensors if "blocks.0.attn.qkv.weight" in name)
            return tensors_sha256(tensors)

        tensors_sha256 = stored.tensors_sha256
        with patch.object(stored, "tensors_sha256", hashing):
            for name, output in expected.items():
                self.assertTrue(torch.equal(self.answer(name), output), name)
            # once the backbone, once what full fine-tuning has in its file
            self.assertEqual(hashed, ["blocks.0.attn.qkv.weight", "vit.blocks.0.attn.qkv.weight"])
            self.assertEqual((self.read(), self.built), ([SHIPPED, "v1", "v2", "v3"], 1))
            with patch.object(stored, "tensors_sha256") as never:
                for name in ("v2", SHIPPED, "v3", "v2", "v1", SHIPPED):
                    self.assertTrue(torch.equal(self.answer(name), expected[name]), name)
            never.assert_not_called()
        self.assertEqual((self.read(), self.built), ([], 1))

    def test_file_that_changed_is_read_again(self):
        before = self.add()
        self.assertTrue(torch.equal(self.answer("v1"), before))
        after = self.add()
        path = self.versions.file_of("v1")
        self.versions.file_of("v2").replace(path)
        os.utime(path, (1, 1))
        self.assertTrue(torch.equal(self.answer("v1"), after))
        self.assertEqual((self.read(), self.built), (["v1", "v1"], 1))

    def test_other_adapter_that_was_shipped(self):
        before = self.answer(SHIPPED)
        randomise(self.net.out, 5)
        save_adapter(self.net, self.shipped, labels=LABELS)
        os.utime(self.shipped, (1, 1))
        self.assertFalse(torch.equal(self.answer(SHIPPED), before))
        self.assertEqual(self.built, 2)

    def test_damaged_version(self):
        expected = self.add()
        before, path = self.answer("v1"), self.versions.file_of("v1")
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        os.utime(path, (1, 1))
        for _ in range(2):
            with self.assertRaisesRegex(InputError, "v1.safetensors: tensors_sha256 must be"):
                self.loaded.get("v1", "cpu")
        self.assertFalse(torch.equal(self.answer(SHIPPED), before))
        self.assertEqual(adapter_names(self.loaded.network), [SHIPPED])  # what was loaded before it is not kept
        path.write_bytes(data)
        self.assertTrue(torch.equal(self.answer("v1"), expected))

    def test_most_that_are_kept(self):
        expected = {f"v{number}": self.add() for number in range(1, 5)}
        with patch.object(bundles, "MOST_LOADED", 2):
            for name in ("v1", "v2", "v1", "v3"):
                self.answer(name)
            self.assertEqual(set(adapter_names(self.loaded.network)), {SHIPPED, "v1", "v3"})
            self.assertEqual(self.read(), ["v1", "v2", "v3"])
            for name in ("v1", "v3", "v4", "v1", SHIPPED):
                output = self.answer(name)
                self.assertTrue(name == SHIPPED or torch.equal(output, expected[name]))
            self.assertEqual(self.read(), ["v4", "v1", SHIPPED])


class TestVersionsCommand(unittest.TestCase):
    setUp, add = TestAdapterVersions.setUp, TestAdapterVersions.add

    def test_list_use_and_export(self):
        with torch.no_grad():
            expected = self.add(0.75)
        status, out, err = call(main, "versions", self.versions.folder, "--use", "v1")
        self.assertEqual((status, err), (0, ""))
        rows = [line.split() for line in out.splitlines()]
        self.assertEqual(rows[1], [SHIPPED])
        self.assertEqual((rows[2][:2], rows[2][3:6]), (["*", "v1"], ["dvpt", "0.7500", "0.2500"]))
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
