# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import unittest
from collections.abc import Callable

import torch
from parameterized import parameterized
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from utils_data import temporary_folder
from utils_limits import file_size_limit
from utils_networks import changed, copy_of_state, randomise, small_image, small_unetr

from monai_dvpt.networks.adapter import (
    PARTS,
    adapter_metadata,
    backbone_sha256,
    count_parameters,
    freeze_backbone,
    load_adapter,
    parameter_groups,
    save_adapter,
)
from monai_dvpt.networks.nets import DVPTUNETR
from monai_dvpt.utils import InputError

TRAIN = [(("dvpt",),), (("head",),), (("dvpt", "decoder", "head"),), (("backbone", "decoder", "head"),), (PARTS,)]
UNUSED = "norm_cross_attn"  # MONAI builds it in every block, and uses it with cross-attention alone


def part_of(name: str) -> str:
    """The part to which a parameter belongs, judged by MONAI's name."""
    return {"vit": "backbone", "dvpt": "dvpt", "out": "head"}.get(name.split(".")[0], "decoder")


def to_be_trained(net: DVPTUNETR, train: tuple[str, ...]) -> set[str]:
    return {name for name, _ in net.named_parameters() if part_of(name) in train and UNUSED not in name}


def with_backbone_of(net: DVPTUNETR, seed: int, **arguments) -> DVPTUNETR:
    """Another network, other weights everywhere but in the backbone."""
    other = small_unetr(seed, **arguments).eval()
    other.vit.load_state_dict(net.vit.state_dict())
    return other


class TestFreezing(unittest.TestCase):
    @parameterized.expand(TRAIN)
    def test_requires_grad(self, train):
        net = freeze_backbone(small_unetr(), PARTS)  # a second call starts anew
        self.assertIs(freeze_backbone(net, train), net)
        trained = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
        self.assertEqual(trained, to_be_trained(net, train))

    def test_default_trains_all_but_backbone(self):
        net = freeze_backbone(small_unetr())
        trained = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
        self.assertEqual(trained, to_be_trained(net, ("dvpt", "decoder", "head")))

    @parameterized.expand([(("encoder",),), (("dvpt", "Head"),), ((),), ("dvpt",)])
    def test_unknown_part(self, train):
        net = small_unetr()
        with self.assertRaisesRegex(ValueError, r"^train must name parts of \['backbone', 'decoder', 'dvpt', 'head'\]"):
            freeze_backbone(net, train)
        self.assertTrue(all(parameter.requires_grad for parameter in net.parameters()))

    @parameterized.expand(TRAIN)
    def test_training_step_changes_what_is_trained(self, train):
        net = freeze_backbone(small_unetr(norm_name="batch"), train).train()
        before, sha256 = copy_of_state(net), backbone_sha256(net)
        optimiser = torch.optim.AdamW(parameter_groups(net, dict.fromkeys(PARTS, 0.1)))
        net(small_image(net, batch=2)).square().mean().backward()
        optimiser.step()
        statistics = {name for name, _ in net.named_buffers() if "decoder" in train}  # of the batch normalisation
        self.assertEqual(changed(before, net), to_be_trained(net, train) | statistics)
        self.assertEqual(backbone_sha256(net) == sha256, "backbone" not in train)

    @parameterized.expand(TRAIN)
    def test_count_parameters(self, train):
        net = freeze_backbone(small_unetr(share_every=5), train)
        counts = count_parameters(net)
        sizes = {name: parameter.numel() for name, parameter in net.named_parameters()}
        trained = to_be_trained(net, train)
        for part in PARTS:
            names = {name for name in sizes if part_of(name) == part}
            total, trainable = (sum(sizes[name] for name in chosen) for chosen in (names, names & trained))
            self.assertEqual(counts[part], {"total": total, "trainable": trainable})
        self.assertEqual(counts["dvpt"]["total"], 3 * (24 * 5 + 5 + 7 * 5 + 1 + 5 * 24 + 24))
        for key in ("total", "trainable"):
            self.assertEqual(counts["network"][key], sum(counts[part][key] for part in PARTS))
        self.assertEqual(counts["network"]["total"], sum(sizes.values()))

    @parameterized.expand(TRAIN)
    def test_parameter_groups(self, train):
        net = freeze_backbone(small_unetr(), train)
        rates = {"backbone": 0.1, "dvpt": 0.2, "decoder": 0.3, "head": 0.3}
        found = [(id(p), group["lr"]) for group in parameter_groups(net, rates) for p in group["params"]]
        trained = to_be_trained(net, train)
        expected = [(id(p), rates[part_of(name)]) for name, p in net.named_parameters() if name in trained]
        self.assertEqual(sorted(found), sorted(expected))
        with self.assertRaisesRegex(ValueError, f"learning_rates must have one for {train[-1]}, which is trained"):
            parameter_groups(net, {part: rate for part, rate in rates.items() if part != train[-1]})


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

    @parameterized.expand([(2, {}), (3, {}), (3, {"patch_size": 8, "start_layer": 4}), (2, {"num_prompts": 0})])
    def test_exact(self, spatial_dims, arguments):
        net = freeze_backbone(small_unetr(1, spatial_dims, **arguments)).eval()
        other = with_backbone_of(net, 2, spatial_dims=spatial_dims, **arguments)
        image = small_image(net)
        with torch.no_grad():
            self.assertFalse(torch.equal(other(image), net(image)))
            self.assertEqual(save_adapter(net, self.path), self.path)
            load_adapter(other, self.path)
            self.assertTrue(torch.equal(other(image), net(image)))
        self.assertEqual(changed(copy_of_state(net), other), set())

    def test_dvpt_alone(self):
        net = small_unetr(1)
        other = with_backbone_of(net, 2, out_channels=4, feature_size=8)
        before = copy_of_state(other)
        self.assertIs(load_adapter(other, save_adapter(net, self.path, parts=("dvpt",)), parts=("dvpt",)), other)
        self.assertEqual(changed(before, other), {f"dvpt.{name}" for name in net.dvpt.state_dict()})
        self.assertEqual(changed(copy_of_state(net.dvpt), other.dvpt), set())
        self.assertEqual(adapter_metadata(self.path)["parts"], ["dvpt"])

    def test_float16(self):
        net = small_unetr(1)
        other = with_backbone_of(net, 2)
        load_adapter(other, save_adapter(net, self.path, dtype=torch.float16))
        for part in ("dvpt", "decoder2", "out"):
            expected = {name: tensor.half().float() for name, tensor in getattr(net, part).state_dict().items()}
            self.assertEqual(changed(expected, getattr(other, part)), set())
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
        expected = {name: tensor for name, tensor in net.state_dict().items() if part_of(name) != "backbone"}
        tensors = load_file(self.path)
        self.assertEqual(tensors.keys(), expected.keys())
        self.assertTrue(all(torch.equal(tensors[name], expected[name]) for name in tensors))
        metadata = adapter_metadata(self.path)
        self.assertEqual(metadata["notes"], notes)
        self.assertEqual(metadata["parts"], ["dvpt", "decoder", "head"])
        self.assertEqual(metadata["backbone_sha256"], backbone_sha256(net))
        self.assertEqual(metadata["dvpt"], net.dvpt.config)
        self.assertEqual(metadata["labels"], ["none", "left"])
        self.assertIs(load_adapter(net, self.path, labels=["none", "left"]), net)
        with self.assertRaisesRegex(InputError, r"labels must be \['none', 'right'\], got \['none', 'left'\]"):
            load_adapter(net, self.path, labels=["none", "right"])

    def test_not_finite(self):
        net = small_unetr(1)
        with torch.no_grad():
            net.dvpt[1].gate.fill_(torch.nan)
        with self.assertRaisesRegex(InputError, r"tensors must be finite to be saved, \['dvpt.1.gate'\] are not"):
            save_adapter(net, self.path)
        self.assertFalse(self.path.exists())

    @parameterized.expand([(("backbone",),), (("dvpt", "neck"),), ((),)])
    def test_parts_that_cannot_be_saved(self, parts):
        with self.assertRaisesRegex(ValueError, r"^parts must name parts of \['decoder', 'dvpt', 'head'\], got "):
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

    def check_refused(self, *words: str, net: DVPTUNETR | None = None) -> None:
        net = self.net if net is None else net
        before = copy_of_state(net)
        with self.assertRaises(InputError) as caught:
            load_adapter(net, self.path)
        for word in (str(self.path), *words):
            self.assertIn(word, str(caught.exception))
        self.assertEqual(changed(before, net), set())

    def edit(self, tensors: Callable[[dict], object] = len, metadata: Callable[[dict], object] = len) -> None:
        """Changes tensors or metadata of the file in place."""
        stored, header = load_file(self.path), adapter_metadata(self.path)
        tensors(stored)
        metadata(header)
        save_file(stored, self.path, metadata={"monai_dvpt": json.dumps(header)})

    def test_unedited_file_is_accepted(self):
        self.edit()
        load_adapter(self.net, self.path)

    def test_other_backbone(self):
        with torch.no_grad():
            self.net.vit.blocks[11].mlp.linear2.bias[3] += 1e-5
        self.check_refused("backbone_sha256", backbone_sha256(self.net), backbone_sha256(self.saved))

    @parameterized.expand(
        [("num_prompts", 6), ("bottleneck_size", 4), ("share_every", 4), ("share_every", 5), ("start_layer", 1)]
    )
    def test_other_dvpt_configuration(self, name, value):
        other = with_backbone_of(self.saved, 2, **{name: value})
        self.check_refused("dvpt must", f"'{name}': {value}", f"'{name}': {self.saved.dvpt.config[name]}", net=other)

    def test_other_decoder(self):
        self.check_refused("shape", net=with_backbone_of(self.saved, 2, feature_size=8))

    def test_other_number_of_classes(self):
        net = with_backbone_of(self.saved, 2, out_channels=5)
        self.check_refused("out.conv.conv", "shape", "(5,", "(3,", net=net)

    @parameterized.expand([("dvpt.3.gate",), ("out.conv.conv.bias",)])
    def test_missing_tensor(self, name):
        self.edit(lambda tensors: tensors.pop(name))
        self.check_refused(f"missing ['{name}'], extra []")

    @parameterized.expand([("dvpt.4.gate",), ("vit.norm.weight",)])
    def test_extra_tensor(self, name):
        self.edit(lambda tensors: tensors.update({name: torch.ones(24)}))
        self.check_refused(f"missing [], extra ['{name}']")

    def test_wrong_shape(self):
        self.edit(lambda tensors: tensors.update({"dvpt.1.prompts": torch.zeros(5, 7)}))
        self.check_refused("dvpt.1.prompts must have shape (7, 5), got (5, 7)")

    @parameterized.expand([("nan",), ("inf",), ("-inf",)])
    def test_not_finite(self, value):
        self.edit(lambda tensors: tensors["out.conv.conv.weight"].view(-1)[2:3].fill_(float(value)))
        self.check_refused("out.conv.conv.weight must be finite")

    def test_wrong_type(self):
        self.edit(lambda tensors: tensors.update({"dvpt.1.prompts": torch.zeros(7, 5, dtype=torch.int32)}))
        self.check_refused("dvpt.1.prompts must have type torch.float32, got torch.int32")

    @parameterized.expand(
        [("network", "DVPTSwinUNETR"), ("network", None), ("dvpt", {}), ("backbone_sha256", "0" * 64)]
    )
    def test_other_identity(self, key, value):
        self.edit(metadata=lambda header: header.update({key: value}))
        self.check_refused(f"{key} must be that of the network", f"got {value}.")

    @parameterized.expand([(None,), ("dvpt",), (["dvpt", "neck"],), (["backbone"],), (["dvpt"],), ([],)])
    def test_other_parts(self, parts):
        self.edit(metadata=lambda header: header.update(parts=parts))
        self.check_refused(f"parts must be ['dvpt', 'decoder', 'head'], got {parts}.")

    @parameterized.expand([(0,), (2,), ("1",), (None,)])
    def test_unknown_format_version(self, version):
        self.edit(metadata=lambda header: header.update(format_version=version))
        self.check_refused(f"format_version must be 1, got {version}.")

    @parameterized.expand([(None,), ({"format": "pt"},), ({"monai_dvpt": "{"},), ({"monai_dvpt": "[1]"},)])
    def test_other_metadata(self, metadata):
        save_file(load_file(self.path), self.path, metadata=metadata)
        self.check_refused("metadata")

    @parameterized.expand([(0,), (4,), (200,), (-1,), (-5000,)])
    def test_truncated(self, size):
        self.path.write_bytes(self.path.read_bytes()[:size])
        self.check_refused("cannot be read as an adapter")

    def test_flipped_byte_in_length_of_header(self):
        data = bytearray(self.path.read_bytes())
        for position in range(8):
            flipped = bytearray(data)
            flipped[position] ^= 0x40
            self.path.write_bytes(flipped)
            self.check_refused("cannot be read as an adapter")

    def test_flipped_byte_in_header(self):
        expected = load_file(save_adapter(self.saved, self.path, parts=("dvpt",)))
        data = self.path.read_bytes()
        header = range(8, 8 + int.from_bytes(data[:8], "little"))
        generator, refused = random.Random(0), 0
        for position in generator.sample(header, 300):
            flipped = bytearray(data)
            flipped[position] ^= 1 << generator.randrange(8)
            self.path.write_bytes(flipped)
            before = copy_of_state(self.net)
            try:
                load_adapter(self.net, self.path)
            except InputError as error:
                refused += 1
                self.assertIn(str(self.path), str(error))
                self.assertEqual(changed(before, self.net), set())
            else:  # it hit a note or a version, which do not matter for what is loaded
                self.assertTrue(all(torch.equal(self.net.state_dict()[name], expected[name]) for name in expected))
                randomise(self.net.dvpt, seed=position)
        self.assertGreater(refused, 200)

    def test_flipped_bit_in_tensors(self):
        data = bytearray(self.path.read_bytes())
        data[-6] ^= 1  # the last bits of a number: still finite, hardly different
        self.path.write_bytes(data)
        self.check_refused("tensors_sha256 must be", "it is damaged")

    def test_torch_pickle(self):
        torch.save(self.net.state_dict(), self.path)
        self.check_refused("cannot be read as an adapter")

    def test_missing_file(self):
        self.path.unlink()
        self.check_refused("cannot be read as an adapter")

    def test_folder(self):
        self.path.unlink()
        self.path.mkdir()
        self.check_refused("cannot be read as an adapter")


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
from monai_dvpt.networks import adapter
from utils_networks import small_unetr

def write_half(tensors, path, metadata):
    data = save(tensors, metadata)
    Path(path).write_bytes(data[: len(data) // 2])
    os.kill(os.getpid(), signal.SIGKILL)

adapter.save_file = write_half
adapter.save_adapter(small_unetr(2), sys.argv[1])
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
            self.assertEqual(set(file.keys()), {name for name in net.state_dict() if part_of(name) != "backbone"})


if __name__ == "__main__":
    unittest.main()
