# SPDX-License-Identifier: Apache-2.0
"""Weights out of MONAI bundles and zip files, hostile ones included."""

from __future__ import annotations

import json
import tempfile
import unittest
import warnings
import zipfile
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from monai.networks.nets import SwinUNETR, vista3d132
from parameterized import parameterized
from safetensors.torch import save_file
from utils_data import temporary_folder
from utils_networks import DVPT_SIZES, SWIN_2D, SWIN_3D, changed, copy_of_state, randomise, small_image
from utils_sources import noise, save, timm_state, timm_tokens, tokens_of, vit

from monai_dvpt.networks.adapter import merge_full, save_adapter
from monai_dvpt.networks.nets import DVPTSwinUNETR
from monai_dvpt.networks.parts import freeze_backbone
from monai_dvpt.networks.pretrained import load_pretrained, read_backbone
from monai_dvpt.utils import InputError

TOLERANCE = {"rtol": 0, "atol": 5e-5}
LIMIT = "MONAI_DVPT_MAX_BYTES"


def swin(sizes: dict[str, Any] = SWIN_2D, **arguments: Any) -> DVPTSwinUNETR:
    torch.manual_seed(2)
    return DVPTSwinUNETR(**{**sizes, "out_channels": 3, **arguments}).eval()


def plain_swin(sizes: dict[str, Any] = SWIN_2D) -> SwinUNETR:
    own = {name: value for name, value in sizes.items() if name not in DVPT_SIZES}
    return randomise(SwinUNETR(**own, out_channels=3), seed=4).eval()


def bundle(folder: Path, state: dict[str, torch.Tensor], suffix: str = ".pt", version: str = "1.6.1") -> Path:
    """A bundle as the model zoo has them."""
    (folder / "configs").mkdir(parents=True)
    (folder / "docs").mkdir()
    (folder / "configs" / "metadata.json").write_text(json.dumps({"monai_version": version}), encoding="utf-8")
    (folder / "configs" / "inference.json").write_text("{}", encoding="utf-8")
    (folder / "docs" / "README.md").write_text("A bundle.", encoding="utf-8")
    save(folder / "models" / f"model{suffix}", state)
    return folder


def zipped(folder: Path, path: Path, method: int = zipfile.ZIP_DEFLATED, root: str = "") -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, root + file.relative_to(folder).as_posix())
    return path


class TestBundles(unittest.TestCase):
    def setUp(self):
        self.folder = temporary_folder(self)

    @parameterized.expand(
        [
            (suffix, *way)
            for suffix in (".pt", ".safetensors")
            for way in (
                ("folder", 0, ""),
                ("zip", zipfile.ZIP_DEFLATED, ""),
                ("zip", zipfile.ZIP_STORED, "swin_unetr_btcv_segmentation/"),
            )
        ]
    )
    def test_swin_unetr(self, suffix, way, method, root):
        plain, net = plain_swin(), swin(decoder_tuning="none")
        source = bundle(self.folder / "swin", plain.state_dict(), suffix)
        if way == "zip":
            source = zipped(source, self.folder / "swin_unetr_btcv_segmentation_v0.5.6.zip", method, root)
        report = load_pretrained(net, source, verbose=False)
        self.assertEqual((report.initialised, report.unused, report.kind), ([], [], "MONAI SwinUNETR"))
        self.assertEqual(report.source, source.name if way == "zip" else f"model{suffix}")
        image = small_image(net)
        with torch.no_grad():
            torch.testing.assert_close(net(image), plain(image), **TOLERANCE)

    def test_safetensors_come_first(self):
        source = bundle(self.folder / "both", plain_swin().state_dict(), ".safetensors")
        (source / "models" / "model.pt").write_bytes(b"something else")
        for each in (source, zipped(source, self.folder / "both.zip")):
            load_pretrained(swin(), each, verbose=False)

    @parameterized.expand([("folder",), ("zip",)])
    def test_version_of_monai_tells_the_merging(self, way):
        plain = plain_swin(SWIN_3D)
        for version in ("1.4.0", "1.2.0rc3", "0.9.1"):
            source = bundle(self.folder / version, plain.state_dict(), version=version)
            source = zipped(source, self.folder / f"{version}.zip") if way == "zip" else source
            net = swin(SWIN_3D)
            before = copy_of_state(net)
            with self.assertRaisesRegex(
                InputError, rf"downsample must be merging_before_1_5, .* of MONAI {version[:3]}"
            ):
                load_pretrained(net, source)
            self.assertEqual(changed(before, net), set())
            load_pretrained(swin(SWIN_3D, downsample="merging_before_1_5"), source, verbose=False)
            load_pretrained(swin(), bundle(self.folder / f"flat{version}", plain_swin().state_dict()), verbose=False)
        for version in ("1.5.0", "2.0", "unknown"):
            load_pretrained(
                swin(SWIN_3D), bundle(self.folder / version, plain.state_dict(), version=version), verbose=False
            )

    @parameterized.expand([("folder",), ("zip",)])
    def test_adapter_on_it(self, way):
        source = bundle(self.folder / "swin", plain_swin().state_dict())
        source = zipped(source, self.folder / "swin.zip") if way == "zip" else source
        net = swin()
        load_pretrained(net, source, verbose=False)
        randomise(freeze_backbone(net).encoder().dvpt, seed=8)
        save_adapter(net, self.folder / "adapter.safetensors")
        again = merge_full(self.folder / "adapter.safetensors", source)
        image = small_image(net)
        with torch.no_grad():
            torch.testing.assert_close(again(image), net(image), rtol=0, atol=0)
        if way == "zip":  # lies beside the adapter, under the name that it states
            merge_full(self.folder / "adapter.safetensors")

    @parameterized.expand([("folder",), ("zip",)])
    def test_what_is_refused(self, way):
        with torch.device("meta"):
            vista = vista3d132(in_channels=1)
        vista_state = {name: torch.zeros(1).expand(3) for name in vista.state_dict()}
        vista_state = {name: tensor.clone() for name, tensor in vista_state.items()}
        program = bundle(self.folder / "program", timm_state())
        (program / "models" / "model.pt").rename(program / "models" / "model.ts")
        large = bundle(self.folder / "large", timm_state())
        (large / "models" / "model.pt").unlink()
        (large / "large_files.yml").write_text("large_files: []", encoding="utf-8")
        empty = bundle(self.folder / "empty", timm_state())
        (empty / "models" / "model.pt").unlink()
        for source, words in (
            (bundle(self.folder / "vista3d", vista_state), "VISTA3D, whose encoder is a SegResNet, a convolutional"),
            (program, "models/model.ts is a TorchScript program, not run"),
            (large, "without its weights; python -m monai.bundle download_large_files"),
            (empty, "of pretrained weights must hold one of"),
        ):
            source = zipped(source, source.with_suffix(".zip")) if way == "zip" else source
            with self.assertRaisesRegex(InputError, f"{source}.*{words}"):
                load_pretrained(swin(), source)

    def test_torchscript_under_the_name_of_weights(self):
        source = bundle(self.folder / "program", timm_state())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.save(torch.jit.script(torch.nn.Linear(2, 3)), source / "models" / "model.pt")
        for each in (source, zipped(source, self.folder / "program.zip")):
            with self.assertRaisesRegex(InputError, "it is a TorchScript program; save its tensors first"):
                load_pretrained(swin(), each)


class TestZips(unittest.TestCase):
    def setUp(self):
        self.folder = temporary_folder(self)
        self.spare = temporary_folder(self)
        self.net = vit()

    def check_equal(self, net: Any, state: dict[str, torch.Tensor]) -> None:
        image = noise(1, 3, 48, 48)
        torch.testing.assert_close(tokens_of(net, image), timm_tokens(state, image), rtol=0, atol=1e-4)

    def check_refused(self, path: Path, words: str) -> None:
        before = copy_of_state(self.net)
        with mock.patch.object(tempfile, "tempdir", str(self.spare)):
            with self.assertRaisesRegex(InputError, f"^{path}: .*{words}") as caught:
                load_pretrained(self.net, path)
        self.assertNotIn(str(self.spare), str(caught.exception))
        self.assertEqual(list(self.spare.iterdir()), [])
        self.assertEqual(changed(before, self.net), set())

    def write(self, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED, name: str = "a.zip") -> Path:
        with zipfile.ZipFile(self.folder / name, "w", method) as archive:
            for member, content in members.items():
                archive.writestr(member, content)
        return self.folder / name

    def torch_file(self, content: Any = None) -> bytes:
        return save(self.folder / "one.pt", timm_state() if content is None else content).read_bytes()

    def test_one_file_of_any_name(self):
        for name in ("weights.pth", "checkpoints/best/epoch 3.ckpt", "../../out.pth", "/etc/out.pt", "C:\\out.bin"):
            path = self.write({"readme.txt": b"text", name: self.torch_file(), "__MACOSX/._out.pth": b"x"})
            net = vit()
            with mock.patch.object(tempfile, "tempdir", str(self.spare)):
                self.assertEqual(load_pretrained(net, path, verbose=False).source, "a.zip")
            self.check_equal(net, timm_state())
            self.assertEqual(list(self.spare.iterdir()), [])
        self.assertEqual({file.name for file in self.folder.iterdir()}, {"one.pt", "a.zip"})

    def test_files_beside_it(self):
        """The configuration beside the weights counts, and its normalisation after the archive is closed."""
        config = json.dumps({"layer_norm_eps": 1e-3, "num_attention_heads": 6}).encode()
        preprocessor = json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}).encode()
        beside = {"config.json": config, "preprocessor_config.json": preprocessor}
        for name in ("model.safetensors", "any.pth"):
            save_file(timm_state(), self.folder / "m.safetensors")
            content = (self.folder / "m.safetensors").read_bytes() if name.endswith("rs") else self.torch_file()
            path = self.write({f"vit/{name}": content} | {f"vit/{each}": text for each, text in beside.items()})
            report = load_pretrained(vit(), path, verbose=False)
            self.assertIn("layer_norm_eps 0.001", report.facts[0])
            for told in (report.backbone, read_backbone(path)):
                self.assertEqual((told.source, told.num_heads), (str(path), 6))
                self.assertEqual((told.image_mean, told.image_std), ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6]))

    @parameterized.expand([("",), ("vit/",)])
    def test_shards(self, root):
        state = timm_state()
        names = sorted(state)
        parts = {"model-00001-of-00002.safetensors": names[:9], "model-00002-of-00002.safetensors": names[9:]}
        members = {}
        for part, own in parts.items():
            save_file({name: state[name] for name in own}, self.folder / part)
            members[root + part] = (self.folder / part).read_bytes()
        index = {"weight_map": {name: part for part, own in parts.items() for name in own}}
        members[root + "model.safetensors.index.json"] = json.dumps(index).encode()
        net = vit()
        load_pretrained(net, self.write(members), verbose=False)
        self.check_equal(net, state)
        del members[root + "model-00002-of-00002.safetensors"]
        self.check_refused(self.write(members), "model-00002-of-00002.safetensors.*must be an existing file")
        index["weight_map"][names[0]] = "../model-00001-of-00002.safetensors"
        members[root + "model.safetensors.index.json"] = json.dumps(index).encode()
        self.check_refused(self.write(members), "weight_map must give names of files beside it")

    def test_torch_file_is_read_as_one(self):
        """It is a zip file too; its content decides, not its name."""
        (self.folder / "torch.zip").write_bytes(self.torch_file())
        load_pretrained(vit(), self.folder / "torch.zip", verbose=False)
        inner = self.write({"weights.pth": self.torch_file()}, name="archive.pth")
        load_pretrained(vit(), inner, verbose=False)

    def test_hostile(self):
        two = {"a.pth": b"1", "b.pth": b"2"}
        self.check_refused(self.write(two), "a zip file of pretrained weights must hold one of")
        self.check_refused(self.write({"a.txt": b"1"}), "a zip file of pretrained weights must hold one of")
        self.check_refused(self.write({"a.zip": b"1"}), "a zip file of pretrained weights must hold one of")
        self.check_refused(self.write({"a.pth": b"no weights"}), "weights.pth: cannot be read as weights")
        self.check_refused(self.write({"a.pth": b""}), "weights.pth: cannot be read as weights")
        self.check_refused(self.write({"a.pth": self.torch_file()}, zipfile.ZIP_LZMA), "must be stored or deflated")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with zipfile.ZipFile(self.folder / "a.zip", "w") as archive:
                archive.writestr("models/model.pt", self.torch_file())
                archive.writestr("models/model.pt", b"another")
        self.check_refused(self.folder / "a.zip", "must hold each of its files once")
        path = self.write({"a.pth": self.torch_file()})
        path.write_bytes(
            path.read_bytes().replace(b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01")
        )
        self.check_refused(path, "must be stored or deflated|cannot be read as a zip file")
        path = self.write({"a.pth": self.torch_file()}, zipfile.ZIP_STORED)
        content = bytearray(path.read_bytes())
        content[3000] ^= 1  # its check sum no longer holds
        path.write_bytes(content)
        self.check_refused(path, "cannot be read as a zip file: Bad CRC-32")
        path.write_bytes(path.read_bytes()[:-30])
        self.check_refused(path, "cannot be read as weights")

    def test_many_files(self):
        with zipfile.ZipFile(self.folder / "a.zip", "w") as archive:
            for index in range(20_001):
                archive.writestr(f"{index}.txt", b"")
        self.check_refused(self.folder / "a.zip", "must hold at most 20,000 files, got 20,001")

    def test_bomb(self):
        zeros = {f"blocks.{index}.x": torch.zeros(1 << 20) for index in range(4)}
        path = self.write({"a.pth": self.torch_file(zeros)})
        self.assertLess(path.stat().st_size, 1 << 20)
        with mock.patch.dict("os.environ", {LIMIT: str(1 << 23)}):
            self.check_refused(path, "what it inflates to must take at most 8,388,608 bytes of memory")

    def test_pickle_that_runs_code(self):
        touched = self.folder / "touched"
        path = self.write({"a.pth": self.torch_file(timm_state() | {"norm.bias": TouchesFile(touched)})})
        self.check_refused(path, "it must hold tensors only")
        self.assertFalse(touched.exists())


class TouchesFile:
    """A pickle of it runs code when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


if __name__ == "__main__":
    unittest.main()
