# SPDX-License-Identifier: Apache-2.0
"""``python -m monai.bundle onnx_export`` and ``ckpt_export`` on the hippocampus bundle, in this process."""

from __future__ import annotations

import tempfile
import unittest
from pathlib import Path

import torch
from monai.bundle import ConfigParser, ckpt_export, onnx_export
from monai.utils import optional_import
from utils_networks import randomise

from monai_dvpt.networks.adapter import disable_adapter

onnxruntime, has_onnxruntime = optional_import("onnxruntime")
_, has_onnxscript = optional_import("onnxscript")

CONFIGS = Path(__file__).parents[2] / "bundles" / "hippocampus_mri_dvpt_unetr_segmentation" / "configs"
FILES = {"config_file": str(CONFIGS / "inference.yaml"), "meta_file": str(CONFIGS / "metadata.json")}
FILES["bundle_root"] = str(CONFIGS.parent)
CONVERTER = {"dynamo": True, "external_data": False, "input_names": ["image"], "output_names": ["pred"]}


class TestExport(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.temporary.cleanup)
        cls.folder = Path(cls.temporary.name)
        parser = ConfigParser()
        parser.read_config(FILES["config_file"])
        parser["bundle_root"] = FILES["bundle_root"]
        net = randomise(parser.get_parsed_content("network_def"), seed=3).eval()
        torch.save(net.state_dict(), cls.folder / "model.pt")
        cls.image = torch.randn(1, 1, 40, 56, 40, generator=torch.Generator().manual_seed(4))
        with torch.no_grad():
            cls.expected = net(cls.image)
            with disable_adapter(net):
                cls.expected_off = net(cls.image)

    def export(self, command, name: str, **options) -> Path:
        path = self.folder / name
        command("network_def", str(path), ckpt_file=str(self.folder / "model.pt"), **FILES, **options)
        return path

    def test_dvpt_matters(self):
        self.assertGreater((self.expected - self.expected_off).abs().max(), 1e-2)

    @unittest.skipUnless(has_onnxruntime and has_onnxscript, "needs the packages of the extra onnx")
    def test_onnx(self):
        path = self.export(onnx_export, "model.onnx", use_trace=True, converter_kwargs={**CONVERTER})
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        ports = [(port.name, port.shape) for port in (*session.get_inputs(), *session.get_outputs())]
        self.assertEqual(ports, [("image", [1, 1, 40, 56, 40]), ("pred", [1, 3, 40, 56, 40])])
        pred = torch.from_numpy(session.run(["pred"], {"image": self.image.numpy()})[0])
        torch.testing.assert_close(pred, self.expected, rtol=1e-4, atol=1e-4)

    def test_torchscript(self):
        script = torch.jit.load(self.export(ckpt_export, "model.ts"))
        with torch.no_grad():
            torch.testing.assert_close(script(self.image), self.expected, rtol=1e-5, atol=1e-5)


if __name__ == "__main__":
    unittest.main()
