# SPDX-License-Identifier: Apache-2.0
"""Hostile adapter files: each is refused with a reason, before it takes memory or time."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import struct
import unittest

import torch
from parameterized import parameterized
from safetensors.torch import _SIZE, load_file, save_file
from utils_attack import attack
from utils_commands import save_pair
from utils_data import ROOT, temporary_folder
from utils_networks import seal

from monai_dvpt.commands.adapter import adapter_facts, check_adapter, write_full_model
from monai_dvpt.networks.adapter import adapter_metadata, build_network, load_adapter, merge_full, save_adapter
from monai_dvpt.networks.methods import METHODS
from monai_dvpt.networks.nets import DVPTUNETR, DVPTSwinClassifier, DVPTSwinUNETR, DVPTViT, DVPTViTSegmenter
from monai_dvpt.utils import InputError

CAN_WRITE_COMPLEX = torch.complex64 in _SIZE  # the oldest safetensors cannot

SHIPPED = ROOT / "bundles/hippocampus_mri_dvpt_unetr_segmentation/models/adapter.safetensors"
WIDE = {"hidden_size": 16_384, "mlp_dim": 65_536, "num_heads": 64}  # its layers take more than 100 GB
DEEP = {"num_layers": 64, "hidden_size": 2048, "mlp_dim": 8192, "num_heads": 8}

# every way that reads an adapter, one after the other; each must refuse each file
READ_ALL = """
from monai_dvpt.commands.adapter import check_adapter, write_full_model
from monai_dvpt.networks.adapter import build_network, load_adapter
from monai_dvpt.networks.nets import DVPTViT

backbone, output, *paths = arguments
net = DVPTViT(2, (32, 48), hidden_size=24, mlp_dim=20, num_layers=5, num_heads=6, spatial_dims=2, bottleneck_size=5)
ways = [
    lambda path: list(check_adapter(path, backbone)),
    lambda path: write_full_model(path, output, backbone),
    lambda path: load_adapter(net, path, name="second"),
    build_network,
]
accepted = []
for path in paths:
    for number, way in enumerate(ways):
        try:
            way(path)
            accepted.append((path.rsplit("/", 1)[-1], number))
        except InputError as error:
            assert path in str(error), error
return accepted
"""


def dvpt_tensors(widths: list[int]) -> dict[str, torch.Tensor]:
    """DVPT blocks of a bottleneck of 1 and without prompts, as small as they can be."""
    tensors = {}
    for index, width in enumerate(widths):
        block = {"down.weight": (1, width), "down.bias": (1,), "prompts": (0, 1), "gate": (1,)}
        block |= {"up.weight": (width, 1), "up.bias": (width,)}
        tensors |= {f"dvpt.{index}.{name}": torch.zeros(shape) for name, shape in block.items()}
    return tensors


def changed_facts(header: dict, changes: dict) -> dict:
    """The arguments and the method of an adapter, changed where each of them has such an entry."""
    method = header["method"]
    options = {**method["options"], **{key: value for key, value in changes.items() if key in method["options"]}}
    own = {key: value for key, value in changes.items() if key not in options}
    return {"arguments": {**header["arguments"], **own}, "method": {**method, "options": options}}


class TestMemory(unittest.TestCase):
    def test_no_network_is_built_before_it_fits(self):
        """Files of some kilobytes, whose networks would take gigabytes, under a limit of 1 GiB."""
        folder = temporary_folder(self)
        net, path, backbone = save_pair(folder)
        header, tensors = adapter_metadata(path), load_file(path)
        small = {"bottleneck_size": 1, "num_prompts": 0, "num_classes": 0, "pooling": "mean"}
        cases = {
            "other_tensors": (WIDE, tensors),
            "wide": ({**WIDE, **small, "share_every": 5}, dvpt_tensors([16_384])),
            "deep": ({**DEEP, **small, "share_every": 64}, dvpt_tensors([2048])),
            "layers": ({"num_layers": 65_536}, tensors),
            "endless_layers": ({"num_layers": 10**4000}, tensors),
            "many_tokens": ({"img_size": [65_536, 65_536], "patch_size": 1}, tensors),
            "sincos": ({"img_size": [4096, 4096], "patch_size": 1, "pos_embed_type": "sincos"}, tensors),
            "fourier": ({"img_size": [4096, 4096], "patch_size": 1, "pos_embed_type": "fourier"}, tensors),
            "prompts": ({"num_prompts": 65_536, "hidden_size": 65_536, "bottleneck_size": 65_535}, tensors),
        }
        paths = []
        for name, (changes, stored) in cases.items():
            paths.append(folder / f"{name}.safetensors")
            facts = {**header, **changed_facts(header, changes)}
            facts["tensors_sha256"] = sha256_of(stored)
            if not set(stored) >= {"classification_head.weight"}:
                facts["parts"] = ["method"]
            seal(stored, paths[-1], facts)
            self.assertLess(paths[-1].stat().st_size, 300_000)
        swin = folder / "swin.safetensors"
        arguments = {**small_swin(), "feature_size": 12_288, "num_heads": [1, 1, 1, 1], "depths": [64] * 4}
        seal(tensors, swin, {**header, "network": "DVPTSwinUNETR", "arguments": arguments})
        said = attack(READ_ALL, backbone, folder / "out.pt", *paths, swin, seconds=300)
        self.assertEqual(said, "read: []")

    def test_headers_and_sizes(self):
        """A million nested lists, 400,000 tensors, a file of a terabyte without content."""
        folder = temporary_folder(self)
        _, path, backbone = save_pair(folder)
        paths = [folder / f"{name}.safetensors" for name in ("lists", "tensors", "hole", "stated")]
        save_file({"a": torch.zeros(1)}, paths[0], metadata={"monai_dvpt": "[" + "[]," * 3_000_000 + "[]]"})
        entries = ",".join(f'"{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(400_000))
        paths[1].write_bytes(struct.pack("<Q", len(entries) + 2) + b"{" + entries.encode() + b"}")
        paths[2].write_bytes(path.read_bytes())
        os.truncate(paths[2], 1 << 40)
        paths[3].write_bytes(struct.pack("<Q", 1 << 62) + path.read_bytes()[8:])
        self.assertEqual(attack(READ_ALL, backbone, folder / "out.pt", *paths, seconds=300), "read: []")


class TestRefused(unittest.TestCase):
    def setUp(self):
        self.folder = temporary_folder(self)
        self.net, self.path, self.backbone = save_pair(self.folder)

    def edit(self, tensors=None, **changes) -> None:
        seal(load_file(self.path) | (tensors or {}), self.path, {**adapter_metadata(self.path), **changes})

    def check_refused(self, *words: str, info: bool = False) -> None:
        ways = [
            lambda: list(check_adapter(self.path)),
            lambda: write_full_model(self.path, self.folder / "out.pt"),
            lambda: load_adapter(self.net, self.path),
            lambda: load_adapter(self.net, self.path, name="second"),
            *([lambda: adapter_facts(self.path)] if info else []),
        ]
        for way in ways:
            with self.assertRaises(InputError) as caught:
                way()
            for word in (str(self.path), *words):
                self.assertIn(word, str(caught.exception))
        self.assertFalse((self.folder / "out.pt").exists())

    def test_a_number_of_the_metadata(self):
        """One bit: 3 heads become 1, which fits every tensor and gives other answers."""
        data = SHIPPED.read_bytes()
        old, new = (rb"\"num_heads\": " + number for number in (b"3", b"1"))
        self.assertEqual(data.count(old), 1)
        self.path.write_bytes(data.replace(old, new))
        for read in (
            adapter_metadata,
            adapter_facts,
            build_network,
            merge_full,
            lambda path: list(check_adapter(path)),
        ):
            with self.assertRaisesRegex(InputError, "metadata_sha256 must be that of the metadata.*it is damaged"):
                read(self.path)

    @parameterized.expand([("labels", ["a", "b", "c"]), ("notes", {"kappa": 1}), ("versions", {}), ("inflate_axis", 0)])
    def test_every_entry_is_covered(self, key, value):
        header = {**adapter_metadata(self.path), key: value}
        save_file(load_file(self.path), self.path, metadata={"monai_dvpt": json.dumps(header)})
        self.check_refused("metadata_sha256 must be", info=True)

    @parameterized.expand(
        [
            ("num_layers", 65, "at most 64"),
            ("num_layers", True, "a whole number in [0, 65536]"),
            ("num_layers", 5.0, "a whole number"),
            ("hidden_size", 65_537, "a whole number"),
            ("hidden_size", 10**4000, "a longer number"),
            ("dropout_rate", 1e300, "a number in [0, 65536]"),
            ("dropout_rate", "0", "a number"),
            ("qkv_bias", 1, "true or false"),
            ("pooling", "$__import__('os')", "pooling as a word, or a word and an object"),
            ("pooling", "a" * 1000, "pooling as a word, or a word and an object"),
            ("img_size", [32] * 9, "at most 8 whole numbers"),
            ("img_size", [[32, 48]], "at most 8 whole numbers"),
        ]
    )
    def test_arguments(self, key, value, words):
        header = adapter_metadata(self.path)
        self.edit(arguments={**header["arguments"], key: value})
        for read in (build_network, merge_full, lambda path: list(check_adapter(path))):
            with self.assertRaises(InputError) as caught:
                read(self.path)
            self.assertIn(f"{self.path}: arguments must have {key}", str(caught.exception))
            self.assertIn(words, str(caught.exception))
            self.assertLess(len(str(caught.exception)), 500)

    def test_an_argument_that_is_not_there(self):
        arguments = adapter_metadata(self.path)["arguments"]
        self.edit(arguments={key: value for key, value in arguments.items() if key != "pooling"})
        with self.assertRaisesRegex(InputError, r"unknown \[\], missing \['pooling'\]"):
            build_network(self.path)

    def test_an_option_that_is_not_there(self):
        options = adapter_metadata(self.path)["method"]["options"]
        self.edit(method={"name": "dvpt", "options": {k: v for k, v in options.items() if k != "side_path"}})
        with self.assertRaisesRegex(InputError, r"method must have the options \[.*'side_path'.*\], got"):
            build_network(self.path)

    def test_an_encoder_that_the_backbone_does_not_hold(self):
        arguments = adapter_metadata(self.path)["arguments"]
        self.edit(arguments={**arguments, "mlp_dim": 40_000})
        words = f"arguments name an encoder of .* numbers, more than the .* bytes of {self.backbone}"
        for read in (merge_full, lambda path: list(check_adapter(path))):
            with self.assertRaisesRegex(InputError, words):
                read(self.path)

    @parameterized.expand(
        [
            ("bool", torch.zeros(7, 5, dtype=torch.bool), "BOOL"),
            *([("complex", torch.zeros(7, 5, dtype=torch.complex64), "C64")] if CAN_WRITE_COMPLEX else []),
            ("float8", torch.zeros(7, 5).to(torch.float8_e4m3fn), "F8_E4M3"),
        ]
    )
    def test_types(self, _, tensor, kind):
        self.edit({"dvpt.1.prompts": tensor})
        self.check_refused("dvpt.1.prompts must have a type of", f"got {kind}", info=True)

    def test_infinite_in_the_type_of_the_network(self):
        tensors = load_file(self.path)
        tensors["dvpt.1.gate"] = torch.tensor([1e300], dtype=torch.float64)
        self.edit(tensors, tensors_sha256=sha256_of(tensors))
        self.check_refused("dvpt.1.gate must be finite as float32")

    @parameterized.expand(
        [("labels", "abc"), ("labels", [1]), ("notes", []), ("versions", None), ("arguments", []), ("method", None)]
    )
    def test_entries(self, key, value):
        self.edit(**{key: value})
        self.check_refused(f"{key} must be ", info=True)

    def test_no_regular_file(self):
        self.path.unlink()
        os.mkfifo(self.path)  # opening it would wait for ever
        self.check_refused("must be an existing file, and a regular one", info=True)
        self.path.unlink()
        self.path.symlink_to("/dev/zero")
        self.check_refused("must be an existing file, and a regular one", info=True)


class TestSaved(unittest.TestCase):
    """What could not be read again is not written."""

    @parameterized.expand(
        [
            ("meta", lambda tensor: tensor.to("meta")),
            ("sparse", lambda tensor: tensor.to_sparse()),
            ("complex", lambda tensor: tensor.to(torch.complex64)),
            ("float8", lambda tensor: tensor.to(torch.float8_e4m3fn)),
            ("infinite", lambda tensor: tensor + torch.inf),
        ]
    )
    def test_refused(self, _, change):
        folder = temporary_folder(self)
        net, path, _ = save_pair(folder)
        before = path.read_bytes()
        net.dvpt[1].prompts = torch.nn.Parameter(change(net.dvpt[1].prompts.detach()), requires_grad=False)
        with self.assertRaisesRegex(InputError, f"^{path}: dvpt.1.prompts must "):
            save_adapter(net, path)
        self.assertEqual(path.read_bytes(), before)

    def test_long_notes(self):
        net, path, _ = save_pair(temporary_folder(self))
        with self.assertRaisesRegex(InputError, "metadata must have at most 4,194,304 bytes as JSON"):
            save_adapter(net, path, notes={"log": "a" * 4_300_000})


def sha256_of(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 of tensors as the format says: names, types, shapes and bytes, by name."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def small_swin() -> dict:
    """Arguments of a ``DVPTSwinUNETR``, as JSON has them."""
    net = DVPTSwinUNETR(1, 2, feature_size=12, bottleneck_size=1)
    return json.loads(json.dumps(net.arguments))


class TestAnnotations(unittest.TestCase):
    def test_every_argument_has_a_rule(self):
        from monai_dvpt.networks.adapter.built import RULES

        for kind in (DVPTViT, DVPTViTSegmenter, DVPTUNETR, DVPTSwinUNETR, DVPTSwinClassifier):
            annotations = dict(kind.__init__.__annotations__)
            for key in ("return", "method", "options"):  # what the last two may be stands in the method's own fields
                del annotations[key]
            kinds = {annotation.removesuffix(" | None") for annotation in annotations.values()}
            self.assertLessEqual(kinds, set(RULES), kind)
        for method in METHODS.values():
            annotations = [field.type.removesuffix(" | None") for field in dataclasses.fields(method)]
            self.assertLessEqual(set(annotations), set(RULES), method)


if __name__ == "__main__":
    unittest.main()
