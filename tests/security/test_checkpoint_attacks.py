# SPDX-License-Identifier: Apache-2.0
"""Files of weights made to take memory or time, or to slip values into a network that it cannot compute with."""

from __future__ import annotations

import json
import os
import pickle
import struct
import unittest
import warnings
import zipfile
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from parameterized import parameterized
from safetensors.torch import save_file
from utils_attack import attack
from utils_data import temporary_folder

from monai_dvpt.networks.nets import DVPTViT
from monai_dvpt.networks.pretrained import load_pretrained
from monai_dvpt.utils import InputError
from monai_dvpt.utils.limits import VARIABLE

WIDTH, MLP, LAYERS = 8, 12, 2
LOAD_EACH = """
from monai_dvpt.networks.nets import DVPTViT

net = DVPTViT(3, 32, 16, hidden_size=8, mlp_dim=12, num_layers=2, num_heads=2, bottleneck_size=2, num_prompts=2)
found = []
for source in arguments:
    try:
        monai_dvpt.networks.pretrained.load_pretrained(net, source, verbose=False)
        found.append("READ " + source)
    except InputError as error:
        found.append(str(error))
return "\\t".join(found)
"""


def state(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    """A small ViT in the layout of timm."""
    shapes = {"cls_token": (1, 1, WIDTH), "pos_embed": (1, 5, WIDTH), "patch_embed.proj.weight": (WIDTH, 3, 16, 16)}
    shapes |= {"patch_embed.proj.bias": (WIDTH,), "norm.weight": (WIDTH,), "norm.bias": (WIDTH,)}
    for block in (f"blocks.{layer}." for layer in range(LAYERS)):
        for name, out, width in (
            ("attn.qkv", 3 * WIDTH, WIDTH),
            ("attn.proj", WIDTH, WIDTH),
            ("mlp.fc1", MLP, WIDTH),
            ("mlp.fc2", WIDTH, MLP),
        ):
            shapes |= {f"{block}{name}.weight": (out, width), f"{block}{name}.bias": (out,)}
        for norm in ("norm1", "norm2"):
            shapes |= {f"{block}{norm}.weight": (WIDTH,), f"{block}{norm}.bias": (WIDTH,)}
    return {name: torch.full(shape, 0.5) for name, shape in shapes.items()} | changes


def network() -> DVPTViT:
    """The network that takes it."""
    sizes = {"hidden_size": WIDTH, "mlp_dim": MLP, "num_layers": LAYERS, "num_heads": 2}
    return DVPTViT(3, 32, 16, **sizes, bottleneck_size=2, num_prompts=2, spatial_dims=2, qkv_bias=True)


def safetensors_head(tensors: dict[str, tuple[str, list[int], int]]) -> bytes:
    """The head of a file by hand: type, shape and number of bytes of each tensor."""
    entries, start = {}, 0
    for name, (dtype, shape, size) in tensors.items():
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, start + size]}
        start += size
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text


def repacked(source: Path, target: Path, method: int, **replaced: tuple[bytes, bytes]) -> Path:
    """A zip file with its members compressed by another method, and bytes of its pickle replaced."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", method) as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("data.pkl"):
                for before, after in replaced.values():
                    assert before in content
                    content = content.replace(before, after)
            new.writestr(name, content)
    return target


class Attacks(unittest.TestCase):
    def setUp(self):
        self.folder = temporary_folder(self)

    def check_refused(self, source: Path, *words: str) -> None:
        net = network()
        before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with self.assertRaises(InputError) as caught:
                load_pretrained(net, source, verbose=False)
        for word in (str(source), *words):
            self.assertIn(word, str(caught.exception))
        self.assertLess(len(str(caught.exception)), 2000)
        self.assertTrue(all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items()))

    def saved(self, name: str, content: object) -> Path:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the types that torch will not have for long
            torch.save(content, self.folder / name)
        return self.folder / name


class TestMemory(Attacks):
    def test_in_a_limited_process(self):
        """What these would take is more than the process may have; each is refused by its rule, none by the kernel."""
        rules = {}
        views = state(pos_embed=torch.zeros(1).expand(1, 800_000_000, WIDTH))
        rules[self.saved("expanded.pth", views)] = "would take 25,6"
        storage = torch.zeros(400_000)
        windows = {f"x{i}": storage[i:].as_strided((100_000, 3), (1, 1)) for i in range(3000)}  # 3.6 GB of 1.6 MB
        rules[self.saved("overlapping.pth", state() | windows)] = "would take 3,6"
        sparse = self.folder / "sparse.safetensors"
        sparse.write_bytes(safetensors_head({"pos_embed": ("F32", [1 << 34, 4], 1 << 38)}))
        os.truncate(sparse, sparse.stat().st_size + (1 << 38))
        rules[sparse] = "would take 274,877,"
        holes = self.folder / "holes.bin"
        holes.write_bytes(b"\x80\x02")
        os.truncate(holes, 1 << 38)
        rules[holes] = "would take 274,877,906,944"
        many = self.folder / "many.safetensors"
        many.write_bytes(safetensors_head({f"blocks.{i}.norm1.weight": ("F32", [0], 0) for i in range(400_000)}))
        rules[many] = "must take at most 16,777,216 bytes"
        with zipfile.ZipFile(self.folder / "many.npz", "w") as archive:
            for i in range(21_000):
                archive.writestr(f"{i}.npy", b"")
        rules[self.folder / "many.npz"] = "at most 20,000 tensors, got 21,000 members"
        patch = torch.zeros(WIDTH, 3, 20_000, 1)  # resizing would take the square
        rules[self.saved("patch.pth", state(**{"patch_embed.proj.weight": patch}))] = "sides of at most 512"
        self.saved("plain.pth", {"a": torch.zeros(70_000)})
        said = {"size": (struct.pack("<cI", b"J", 70_000), struct.pack("<cI", b"J", 1_900_000_000))}
        rules[repacked(self.folder / "plain.pth", self.folder / "said.pth", zipfile.ZIP_STORED, **said)] = (
            "cannot be read"
        )
        torch.save({"a": torch.zeros(70_000)}, self.folder / "old.pth", _use_new_zipfile_serialization=False)
        rules[self.folder / "old.pth"] = "cannot be read"
        content = (self.folder / "old.pth").read_bytes()
        self.assertIn(said["size"][0], content)
        (self.folder / "old.pth").write_bytes(content.replace(*said["size"]))
        for index, name in enumerate(("a.pth", "models/model.pt", "model.safetensors")):
            path = self.lying_zip(f"{index}.zip", name, 4_000_000_000)
            rules[path] = (
                "what it inflates to must take at most 2,147,483,648 bytes of memory, would take 4,000,000,000"
            )
        answers = attack(LOAD_EACH, *rules).removeprefix("read: ").split("\t")
        self.assertEqual(len(answers), len(rules))
        for (path, rule), answer in zip(rules.items(), answers, strict=True):
            self.assertTrue(answer.startswith(f"{path}: "), answer)
            self.assertIn(rule, answer)

    def lying_zip(self, name: str, member: str, said: int) -> Path:
        """A zip file of a deflated file of 70,001 bytes whose directory says another number."""
        with zipfile.ZipFile(self.folder / name, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(member, bytes(70_001))
        content = (self.folder / name).read_bytes()
        self.assertEqual(content.count(struct.pack("<I", 70_001)), 2)
        (self.folder / name).write_bytes(content.replace(struct.pack("<I", 70_001), struct.pack("<I", said)))
        return self.folder / name

    def test_zip_file_larger_than_its_directory_says(self):
        self.check_refused(self.lying_zip("a.zip", "a.pth", 1000), "cannot be read as a zip file: Bad CRC-32")

    def test_tied_tensors_count_once(self):
        """Two names of one large tensor are no more than the file holds."""
        content = {"head.weight": torch.zeros(1000, WIDTH)}
        content["unused"] = content["head.weight"]
        with mock.patch.dict(os.environ, {VARIABLE: "1"}):
            load_pretrained(network(), self.saved("tied.pth", state() | content), verbose=False)

    def test_deflated_checkpoint(self):
        path = repacked(self.saved("a.pth", state()), self.folder / "b.pth", zipfile.ZIP_DEFLATED)
        self.check_refused(path, "its members must be stored as they are")

    def test_deflated_arrays(self):
        path = self.folder / "a.npz"
        np.savez_compressed(path, x=np.zeros((1000, 1000), np.float32))
        with mock.patch.dict(os.environ, {VARIABLE: "3999999"}):
            self.check_refused(path, "must take at most 3,999,999 bytes of memory, would take 4,000,128", VARIABLE)
        with mock.patch.dict(os.environ, {VARIABLE: "4000128"}):  # small enough: then its layout is what is wrong
            self.check_refused(path, "must hold weights of a ViT")

    def test_arrays_larger_than_their_directory_says(self):
        path = self.folder / "a.npz"
        np.savez_compressed(path, x=np.zeros((1000, 1000), np.float32))
        content = path.read_bytes()
        self.assertEqual(content.count(struct.pack("<I", 4_000_128)), 2)
        path.write_bytes(content.replace(struct.pack("<I", 4_000_128), struct.pack("<I", 1_000)))
        self.check_refused(path, "cannot be read as weights")

    @parameterized.expand([(zipfile.ZIP_BZIP2,), (zipfile.ZIP_LZMA,)])
    def test_arrays_compressed_otherwise(self, method):
        """Python unpacks these by blocks, whose size only the file limits."""
        np.savez(self.folder / "a.npz", x=np.zeros(4))
        path = repacked(self.folder / "a.npz", self.folder / "b.npz", method)
        self.check_refused(path, "must be stored or deflated, got 'x.npy'")

    def test_pickle_that_takes_memory(self):
        """An array of bytes of any size is among what torch lets a pickle make."""

        class Bytes:
            def __reduce__(self):
                return bytearray, (1 << 20,)

        for old in (False, True):
            path = self.folder / "a.pth"
            torch.save(state() | {"x": Bytes()}, path, _use_new_zipfile_serialization=not old)
            self.check_refused(path, "it must hold tensors only")

    def test_many_tensors(self):
        storage = torch.zeros(20_001)
        tensors = {f"x{i}": storage[i] for i in range(20_001)}
        self.check_refused(self.saved("a.pth", tensors), "at most 20,000 tensors, got 20,001")
        save_file({f"x{i}": torch.zeros(1) for i in range(20_001)}, self.folder / "a.safetensors")
        self.check_refused(self.folder / "a.safetensors", "at most 20,000 tensors, got 20,001")

    def test_dictionaries_in_circles(self):
        """Every dictionary in every other: to follow all ways would take for ever."""
        rooms: list[dict] = [{} for _ in range(200)]
        for room in rooms:
            room |= {f"door{i}": other for i, other in enumerate(rooms)}
        path = self.folder / "a.pth"
        torch.save({"rooms": rooms[0], "model": state()}, path)
        self.assertEqual(load_pretrained(network(), path, verbose=False).initialised[0], "classification_head.weight")


class TestKinds(Attacks):
    @parameterized.expand(
        [
            ("complex64", "got complex64"),
            ("bool", "got bool"),
            ("int8", "got int8"),
            ("float8_e4m3fn", "got float8_e4m3fn"),
            ("float8_e5m2", "got float8_e5m2"),
            ("expanded", "got an expanded one, 8 values in 4 bytes"),
            ("meta", "got a meta tensor"),
            ("sparse", "got torch.sparse_coo"),
            ("quantised", "got torch.strided, torch.qint8"),
        ]
    )
    def test_tensor_of_another_kind(self, kind, words):
        plain = torch.ones(WIDTH)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = {
                "expanded": lambda: torch.ones(1).expand(WIDTH),
                "meta": lambda: torch.ones(WIDTH, device="meta"),
                "sparse": lambda: plain.to_sparse(),
                "quantised": lambda: torch.quantize_per_tensor(plain, 0.1, 0, torch.qint8),
            }.get(kind, lambda: plain.to(getattr(torch, kind)))()
        for name in ("norm.weight", "blocks.1.norm2.bias"):
            self.check_refused(self.saved("a.pth", state(**{name: made})), name, words)
        monai = {name: tensor for name, tensor in network().state_dict().items() if not name.startswith("dvpt")}
        self.check_refused(self.saved("a.pth", monai | {"norm.weight": made}), "norm.weight", words)

    def test_unused_tensor_of_another_kind(self):
        """Masks and the like, for which the network has no place, do no harm."""
        path = self.saved("a.pth", state(attn_mask=torch.zeros(3, dtype=torch.bool)))
        self.assertIn("attn_mask", load_pretrained(network(), path, verbose=False).unused)

    @parameterized.expand([(1e300,), (-1e39,), (float("nan"),)])
    def test_finite_only_before_the_cast(self, value):
        for name in ("norm.bias", "blocks.1.mlp.fc1.weight"):
            tensors = state()
            tensors[name] = tensors[name].double()
            tensors[name].view(-1)[3] = value
            self.check_refused(self.saved("a.pth", tensors), "must be finite as float32")
        monai = {name: tensor for name, tensor in network().state_dict().items() if not name.startswith("dvpt")}
        monai["norm.bias"] = torch.full((WIDTH,), value, dtype=torch.float64)
        self.check_refused(self.saved("a.pth", monai), "norm.bias must be finite as float32")

    @parameterized.expand(
        [("9" * 5000, "at most 512 characters"), ("9" * 400, "below 20000"), ("99999", "below 20000")]
    )
    def test_index_of_a_block(self, index, words):
        bias = torch.ones(WIDTH)
        self.check_refused(self.saved("a.pth", state(**{f"blocks.{index}.norm1.bias": bias})), words)
        monai = {name: tensor for name, tensor in network().state_dict().items() if not name.startswith("dvpt")}
        self.check_refused(self.saved("a.pth", monai | {f"blocks.{index}.norm1.bias": bias}), words)
        if len(index) < 500:
            self.check_refused(self.saved("a.pth", monai | {"blocks.x.norm1.bias": bias}), "got 'x'")

    def test_name_that_writes_to_a_terminal(self):
        self.check_refused(self.saved("a.pth", state(**{"\x1b[2J": torch.ones(1)})), "must be printable", r"\x1b[2J")
        content = {"\x1b[2Jteacher": state(), "student": state()}
        self.check_refused(self.saved("a.pth", content), "must have printable names", r"\x1b[2Jteacher")

    @parameterized.expand([("norm.weight", (0,)), ("patch_embed.proj.weight", (WIDTH, 0, 16, 16)), ("pos_embed", (0,))])
    def test_empty_tensor(self, name, shape):
        self.check_refused(self.saved("a.pth", state(**{name: torch.zeros(shape)})))
        self.check_refused(self.saved("a.pth", state(**{"patch_embed.proj.weight": torch.zeros(WIDTH, 3, 0, 16)})))


class TestFiles(Attacks):
    @parameterized.expand([("a.safetensors",), ("a.pth",), ("a.npz",), ("model.safetensors.index.json",)])
    def test_pipe(self, name):
        os.mkfifo(self.folder / name)
        self.check_refused(self.folder / name, "must be an existing file, and a regular one")
        link = self.folder / f"link_{name}"
        link.symlink_to("/dev/zero")
        self.check_refused(link, "must be an existing file, and a regular one")

    @parameterized.expand(
        [
            (b'{"vision_config": ' + b"[" * 200_000, "nested too deeply"),
            (b'{"num_attention_heads": ' + b"9" * 5000 + b"}", "cannot be read as JSON"),
            (b'{"num_attention_heads": ' + b"9" * 400 + b"}", "must be above 0 and below 1,000,000"),
            (b'{"layer_norm_eps": Infinity}', "must be above 0 and below 1,000,000"),
            (b'{"layer_norm_eps": NaN}', "must be above 0 and below 1,000,000"),
            (b'{"layer_norm_eps": true}', "layer_norm_eps must be a number, got True"),
            (b'{"a": "' + b" " * (16 << 20) + b'"}', "must have at most 16,777,216 bytes, got 16,777,225"),
        ]
    )
    def test_config(self, content, words):
        save_file(state(), self.folder / "model.safetensors")
        (self.folder / "config.json").write_bytes(content)
        with self.assertRaises(InputError) as caught:
            load_pretrained(network(), self.folder, verbose=False)
        self.assertIn(f"{self.folder / 'config.json'}: ", str(caught.exception))
        self.assertIn(words, str(caught.exception))

    def test_config_that_is_a_pipe(self):
        save_file(state(), self.folder / "model.safetensors")
        os.mkfifo(self.folder / "config.json")
        with self.assertRaisesRegex(InputError, "config.json: must be an existing file, and a regular one"):
            load_pretrained(network(), self.folder, verbose=False)

    def test_protocol_of_pickle(self):
        (self.folder / "a.pth").write_bytes(pickle.dumps({"norm.weight": 1.0}))
        self.check_refused(self.folder / "a.pth", "cannot be read as weights")

    @parameterized.expand(
        [
            ("../model-1.safetensors",),
            ("/etc/model-1.safetensors",),
            ("..\\model-1.safetensors",),
            (".safetensors",),
            ("model-1.py",),
            (5,),
        ]
    )
    def test_index_that_leads_elsewhere(self, name):
        path = self.folder / "model.safetensors.index.json"
        path.write_text(json.dumps({"weight_map": {"norm.weight": name}}), encoding="utf-8")
        self.check_refused(path, "weight_map must give names of files beside it")


if __name__ == "__main__":
    unittest.main()
