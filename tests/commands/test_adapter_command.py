# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import contextlib
import hashlib
import io
import json
import random
import subprocess
import sys
import unittest
from importlib import metadata
from pathlib import Path

import monai
import pydicom
import torch
import yaml
from monai.bundle import ConfigParser
from parameterized import parameterized
from safetensors.torch import load_file
from utils_commands import call, save_backbone, save_pair
from utils_data import ROOT, temporary_folder
from utils_limits import file_size_limit
from utils_networks import seal

from monai_dvpt.__main__ import main
from monai_dvpt.networks.adapter import adapter_metadata, backbone_sha256, save_adapter
from monai_dvpt.networks.nets import DVPTUNETR, DVPTViT
from monai_dvpt.networks.parts import count_parameters

SHIPPED = ROOT / "bundles/hippocampus_mri_dvpt_unetr_segmentation/models/adapter.safetensors"
CHECKED = ["format", "tensors", "network", "backbone"]


class TestInfo(unittest.TestCase):
    def setUp(self):
        self.folder = temporary_folder(self)

    def test_table(self):
        net, path, _ = save_pair(self.folder)
        status, out, err = call(main, "adapter", "info", path)
        self.assertEqual((status, err), (0, ""))
        rows = [line.split() for line in out.splitlines()]
        counts = count_parameters(net)
        self.assertEqual(counts["head"]["total"], 24 * 3 + 3)
        dvpt = 2 * (24 * 5 + 5 + 7 * 5 + 1 + 5 * 24 + 24)
        for row in (
            ["file", "adapter.safetensors,", f"{path.stat().st_size:,}", "bytes"],
            ["network", "DVPTViT"],
            ["img_size", "[32,", "48]"],
            ["method", "dvpt"],
            ["bottleneck_size", "5"],
            ["share_every", "3"],
            ["start_layer", "0"],
            ["side_path", "false"],
            ["num_prompts", "7"],
            ["labels", "0", "none,", "1", "mild,", "2", "severe"],
            ["method", f"{dvpt}", f"{4 * dvpt:,}"],
            ["head", "75", "300"],
            ["backbone", "backbone.safetensors"],
            ["SHA-256", backbone_sha256(net)],
            ["kappa", "0.875"],
        ):
            self.assertIn(row, rows)
        names = [row[0] for row in rows]
        self.assertNotIn("proj_type", names)  # it is as the class has it
        self.assertNotIn("decoder", names)

    @parameterized.expand([(DVPTViT,), (DVPTUNETR,)])
    def test_json(self, kind):
        net, path, _ = save_pair(self.folder, kind)
        status, out, err = call(main, "adapter", "info", path, "--json")
        self.assertEqual((status, err), (0, ""))
        facts = json.loads(out)
        file = facts.pop("file")
        self.assertEqual(facts, adapter_metadata(path))
        self.assertEqual((file["name"], file["bytes"]), (path.name, path.stat().st_size))
        counts = count_parameters(net)  # buffers of the batch normalisation are no parameters, but bytes
        expected = {part: counts[part]["total"] for part in ("method", "decoder", "head") if counts[part]["total"]}
        self.assertEqual({part: size["parameters"] for part, size in file["parts"].items()}, expected)
        tensors = load_file(path).values()
        self.assertEqual(sum(size["bytes"] for size in file["parts"].values()), sum(t.nbytes for t in tensors))

    def test_nothing_steers_the_terminal(self):
        net, path, _ = save_pair(self.folder)
        save_adapter(net, path, labels=["\x1b[2Jnone", "\ud800", "é"])
        status, out, err = call(main, "adapter", "info", path)
        self.assertEqual((status, err), (0, ""))
        self.assertIn(r"0 \x1b[2Jnone, 1 \ud800, 2 é", out)

    def test_module(self):
        _, path, _ = save_pair(self.folder)
        command = [sys.executable, "-m", "monai_dvpt", "adapter", "info", str(path)]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
        self.assertEqual(ended.returncode, 0, ended.stderr)
        self.assertEqual(ended.stdout, call(main, "adapter", "info", path)[1])

    def test_version(self):
        out = io.StringIO()
        with self.assertRaises(SystemExit) as ended, contextlib.redirect_stdout(out):
            main(["--version"])
        self.assertEqual(ended.exception.code, 0)
        lines = out.getvalue().splitlines()
        self.assertEqual(lines[0], f"monai_dvpt {metadata.version('monai_dvpt')}")
        for module in (torch, monai, pydicom):
            self.assertIn(f"{module.__name__} {module.__version__}", lines)

    @parameterized.expand([((),), (("adapter",),), (("adapter", "info"),), (("adapter", "verify"),)])
    def test_help(self, words):
        with self.assertRaises(SystemExit) as ended:
            call(main, *words, "--help")
        self.assertEqual(ended.exception.code, 0)


class TestVerify(unittest.TestCase):
    def setUp(self):
        self.folder = temporary_folder(self)

    @parameterized.expand([(DVPTViT,), (DVPTUNETR,)])
    def test_backbone_beside_the_adapter(self, kind):
        _, path, _ = save_pair(self.folder, kind)
        status, out, err = call(main, "adapter", "verify", path)
        self.assertEqual((status, err), (0, ""))
        self.assertEqual([line.split(":")[0] for line in out.splitlines()], [*CHECKED, "ok"])
        self.assertIn("backbone: backbone.safetensors is the one of the adapter", out)

    def test_backbone_elsewhere(self):
        _, path, backbone = save_pair(self.folder)
        moved = temporary_folder(self) / "moved.safetensors"
        backbone.rename(moved)
        status, out, _ = call(main, "adapter", "verify", path)
        self.assertEqual(status, 0)
        self.assertIn("backbone: not checked; backbone.safetensors lies neither beside the adapter nor", out)
        self.assertEqual(out.splitlines()[-1], "ok")
        status, out, _ = call(main, "adapter", "verify", path, "--backbone", moved)
        self.assertEqual(status, 0)
        self.assertIn("backbone: moved.safetensors is the one of the adapter", out)

    def test_one_part(self):
        net, path, _ = save_pair(self.folder)
        save_adapter(net, path, parts=["method"])
        status, out, _ = call(main, "adapter", "verify", path)
        self.assertEqual(status, 0)
        self.assertIn("the tensors of method fit", out)
        status, out, err = call(main, "adapter", "merge-full", path, "--output", self.folder / "model.pt")
        self.assertEqual((status, out), (1, ""))
        self.assertIn("parts must be ['method', 'head'], got ['method']", err)

    def test_shipped_adapter(self):
        status, out, err = call(main, "adapter", "verify", SHIPPED)
        self.assertEqual((status, err), (0, ""))
        self.assertIn("mri_vit_tiny_patch8_40x56x40.safetensors is the one of the adapter", out)


class TestMerge(unittest.TestCase):
    def setUp(self):
        self.folder = temporary_folder(self)
        self.output = self.folder / "full" / "model.pt"

    def check_merged(self, out: str) -> torch.nn.Module:
        """The network that the printed definition makes of the written file, loaded strictly."""
        first, _, definition = out.partition("\n")
        sha256 = hashlib.sha256(self.output.read_bytes()).hexdigest()
        self.assertEqual(first, f"wrote {self.output}: {self.output.stat().st_size:,} bytes, SHA-256 {sha256}")
        parser = ConfigParser(yaml.safe_load(definition))
        net = parser.get_parsed_content("network_def")
        net.load_state_dict(torch.load(self.output, weights_only=True))
        return net.eval()

    @parameterized.expand([(DVPTViT,), (DVPTUNETR,), (DVPTUNETR, ("instance", {"affine": True}), "norm")])
    def test_answers_are_the_same(self, kind, norm_name="batch", decoder_tuning="all"):
        arguments = {} if kind is DVPTViT else {"norm_name": norm_name, "decoder_tuning": decoder_tuning}
        net, path, backbone = save_pair(self.folder, kind, **arguments)
        status, out, err = call(main, "adapter", "merge-full", path, "--output", self.output)
        self.assertEqual((status, err), (0, ""))
        image = torch.randn(1, 2, 32, 48)
        with torch.no_grad():
            self.assertTrue(torch.equal(self.check_merged(out)(image), net(image)))
        self.assertEqual(list(self.output.parent.iterdir()), [self.output])

    def test_shipped_adapter(self):
        status, out, err = call(main, "adapter", "merge-full", SHIPPED, "--output", self.output)
        self.assertEqual((status, err), (0, ""))
        self.assertEqual(backbone_sha256(self.check_merged(out)), adapter_metadata(SHIPPED)["backbone_sha256"])

    def test_does_not_overwrite(self):
        _, path, backbone = save_pair(self.folder)
        for output in (path, backbone):
            before = output.read_bytes()
            for force in ((), ("--force",)):
                status, _, err = call(main, "adapter", "merge-full", path, "--output", output, *force)
                self.assertEqual(status, 1)
                self.assertIn("is read, so it cannot be the output" if force else "exists; --force replaces it", err)
            self.assertEqual(output.read_bytes(), before)
        self.output.parent.mkdir()
        self.output.write_bytes(b"old")
        self.assertEqual(call(main, "adapter", "merge-full", path, "--output", self.output)[0], 1)
        self.assertEqual(self.output.read_bytes(), b"old")
        written = set()
        for _ in range(2):
            status, out, _ = call(main, "adapter", "merge-full", path, "--output", self.output, "--force")
            self.assertEqual(status, 0)
            self.check_merged(out)
            written.add(self.output.read_bytes())
        self.assertEqual(len(written), 1)  # the same bytes every time

    def check_not_written(self, status: int, out: str, err: str, word: str) -> None:
        self.assertEqual((status, out), (1, ""))
        self.assertRegex(err, rf"^error: .*{word}.*\n$")

    def test_unwritable(self):
        _, path, _ = save_pair(self.folder)
        ended = call(main, "adapter", "merge-full", path, "--output", path / "model.pt")
        self.check_not_written(*ended, "model.pt: cannot be written")
        with file_size_limit(1000):
            ended = call(main, "adapter", "merge-full", path, "--output", self.output)
        self.check_not_written(*ended, "model.pt: cannot be written")
        self.assertEqual(list(self.output.parent.iterdir()), [])

    def test_no_backbone(self):
        _, path, backbone = save_pair(self.folder)
        backbone.unlink()
        ended = call(main, "adapter", "merge-full", path, "--output", self.output)
        self.check_not_written(*ended, "needs its backbone; backbone.safetensors lies neither")

    @parameterized.expand([("$__import__('os')",), ("@x",), ("%x",), ({"_target_": "os.getcwd"},)])
    def test_expressions(self, value):
        net, path, backbone = save_pair(
            self.folder, DVPTUNETR, norm_name=("instance", {"affine": True}), decoder_tuning="norm"
        )
        header = adapter_metadata(path)
        header["arguments"]["norm_name"] = ["instance", {"affine": value}]  # it is true, so the network could be built
        seal(load_file(path), path, header)
        ended = call(main, "adapter", "merge-full", path, "--output", self.output)
        self.check_not_written(*ended, "adapter.safetensors: arguments must have norm_name as a word")
        self.assertFalse(self.output.exists())


class TestRefused(unittest.TestCase):
    """Every bad file is named with the reason, in one line and without a traceback."""

    def setUp(self):
        self.folder = temporary_folder(self)
        self.net, self.path, self.backbone = save_pair(self.folder)

    def check_refused(
        self, *words: str, actions=("info", "verify", "merge-full"), path: Path | None = None, options=()
    ):
        path = self.path if path is None else path
        output = self.folder / "model.pt"
        for action in actions:
            extra = [*options, *(["--output", output] if action == "merge-full" else [])]
            status, out, err = call(main, "adapter", action, path, *extra)
            self.assertEqual(status, 1, action)
            self.assertRegex(err, r"^error: [^\n]*\n$")
            for word in words:
                self.assertIn(word, err)
            self.assertNotIn("ok\n", out)
            self.assertFalse(output.exists())

    def edit(self, **changes) -> None:
        header = {**adapter_metadata(self.path), **changes}
        seal(load_file(self.path), self.path, header)

    def test_missing(self):
        missing = self.folder / "none.safetensors"
        self.check_refused(f"error: {missing}: must be an existing file, and a regular one.", path=missing)
        self.check_refused(f"error: {self.folder}: must be an existing file, and a regular one.", path=self.folder)

    def test_pickled_object(self):
        torch.save(Path("anything"), self.path)
        self.check_refused(f"error: {self.path}: cannot be read as weights")

    @parameterized.expand([(0,), (4,), (200,), (-1,)])
    def test_truncated(self, size):
        self.path.write_bytes(self.path.read_bytes()[:size])
        self.check_refused(f"error: {self.path}: cannot be read as weights")

    def test_flipped_bit(self):
        data = bytearray(self.path.read_bytes())
        data[-6] ^= 1
        self.path.write_bytes(data)
        self.check_refused(f"error: {self.path}: tensors_sha256 must be", "damaged", actions=["verify", "merge-full"])

    def test_not_finite(self):
        tensors, header = load_file(self.path), adapter_metadata(self.path)
        tensors["dvpt.1.gate"].fill_(torch.nan)
        seal(tensors, self.path, header)
        self.check_refused("dvpt.1.gate must be finite", actions=["verify", "merge-full"])

    def test_type_without_arithmetic(self):
        tensors, header = load_file(self.path), adapter_metadata(self.path)
        tensors["dvpt.1.gate"] = tensors["dvpt.1.gate"].to(torch.float8_e4m3fn)
        seal(tensors, self.path, header)
        self.check_refused(f"error: {self.path}: ", "ype", actions=["verify", "merge-full"])

    def test_wrong_backbone(self):
        other = save_backbone(self.net, self.folder / "other.safetensors", shift=1e-5)
        words = (f"error: {other}: is not the backbone of {self.path}", backbone_sha256(self.net))
        self.check_refused(*words, actions=["verify", "merge-full"], options=["--backbone", other])
        other.replace(self.backbone)
        self.check_refused(f"error: {self.backbone}: is not", actions=["verify", "merge-full"])

    def test_backbone_that_does_not_fit(self):
        del self.net
        folder = temporary_folder(self)
        _, _, other = save_pair(folder, hidden_size=36)
        words = (f"error: {other}: ", "hidden_size")
        self.check_refused(*words, actions=["verify", "merge-full"], options=["--backbone", other])

    @parameterized.expand([("none.safetensors",), ("owner/name",)])
    def test_missing_backbone(self, name):
        words = (f"error: {name}: backbone must be an existing file",)
        self.check_refused(*words, actions=["verify", "merge-full"], options=["--backbone", name])

    @parameterized.expand([("../backbone.safetensors",), ("/etc/passwd",), ("a\\b",), ("..",), ("",), (7,)])
    def test_path_in_backbone_file(self, name):
        self.edit(backbone_file=name)
        self.check_refused(f"error: {self.path}: backbone_file must be the name of a file beside the adapter")

    @parameterized.expand([("4",), (None,), (3,)])
    def test_format_version(self, version):
        self.edit(format_version=version)
        self.check_refused("format_version must be 4")

    @parameterized.expand([("UNETR",), (None,), ([],), ("TunableNetwork",)])
    def test_network(self, name):
        self.edit(network=name)
        self.check_refused(f"error: {self.path}: network must be one of")

    @parameterized.expand([({},), ({"num_layers": "12"},), ({"hidden_size": -24},), ({"num_heads": 0},), ({"x": 1},)])
    def test_arguments(self, changes):
        self.edit(arguments={**adapter_metadata(self.path)["arguments"], **changes} if changes else {})
        self.check_refused(f"error: {self.path}: ", "arguments", actions=["verify", "merge-full"])

    def test_tensors_of_another_network(self):
        self.edit(arguments={**adapter_metadata(self.path)["arguments"], "num_classes": 4})
        self.check_refused(f"error: {self.path}: ", "must")

    @parameterized.expand([({"bottleneck_size": 6}, "must have shape"), ({"start_layer": 3}, "extra ['dvpt.1.")])
    def test_tensors_of_another_method(self, changes, word):
        method = adapter_metadata(self.path)["method"]
        self.edit(method={**method, "options": {**method["options"], **changes}})
        self.check_refused(f"error: {self.path}: ", word)

    @parameterized.expand(
        [
            ("dvpt", "method must be a JSON object, got 'dvpt'"),
            ({"name": "dvpt"}, "method must have the options ["),
            (
                {"name": "lora", "options": {"rank": 8}},
                "method must have the options ['alpha', 'rank'], got {'rank': 8}",
            ),
            ({"name": "lora", "options": {"rank": "8", "alpha": None}}, "method must have rank as a whole number in"),
            ({"name": "lora", "options": {"rank": 0, "alpha": None}}, "method does not fit: rank must be"),
            ({"name": "eval", "options": {}}, "method must be one of"),
            ({"name": "lora", "options": {"rank": 8, "alpha": None}}, "tensors must be those of ['method', 'head']"),
        ]
    )
    def test_method(self, method, word):
        self.edit(method=method)
        self.check_refused(f"error: {self.path}: {word}")

    @parameterized.expand([(None,), ("method",), ([{}],)])
    def test_parts_that_are_no_list_of_names(self, parts):
        self.edit(parts=parts)
        self.check_refused(f"error: {self.path}: parts must be a list of names")

    @parameterized.expand([([],), (["head", "method"],), (["backbone"],)])
    def test_parts(self, parts):
        self.edit(parts=parts)
        self.check_refused(f"error: {self.path}: parts must be of ['method', 'head']", actions=["verify", "merge-full"])

    def test_any_flipped_bit_of_the_header(self):
        data = self.path.read_bytes()
        header = range(8 + int.from_bytes(data[:8], "little"))
        generator = random.Random(0)
        for position in generator.sample(header, 150):
            flipped = bytearray(data)
            flipped[position] ^= 1 << generator.randrange(8)
            self.path.write_bytes(flipped)
            for action in ("info", "verify"):
                status, _, err = call(main, "adapter", action, self.path)
                self.assertEqual(err.count("\n"), status)
            self.assertEqual(status, 1, position)  # of verify


if __name__ == "__main__":
    unittest.main()
